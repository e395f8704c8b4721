# SPDX-License-Identifier: Apache-2.0
"""Images, targets and loop devices for the storage tests. Those that use devices or mounts need root (as in CI)."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from storage_helpers import MIB, loop_device

from jumpstarter.common.utils import serve


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records and caches of a test stay its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk image of 6 MiB and a bit: data, a long run of zeros, data that ends off any boundary."""
    noise = random.Random(7)
    path = tmp_path / "disk.img"
    path.write_bytes(noise.randbytes(2 * MIB) + bytes(3 * MIB + 70_000) + noise.randbytes(MIB + 12_345))
    os.utime(path, (1_700_000_000, 1_700_000_000))  # old enough for what is computed about it to be kept
    return path


@pytest.fixture
def block_device(tmp_path: Path) -> Iterator[str]:
    """A block device of 8 MiB."""
    with loop_device(tmp_path / "backing", 8 * MIB) as path:
        yield path


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount something for the time of the test: ``mounted("tmpfs", "tmpfs", "size=2m")`` gives the mount point."""
    points: list[Path] = []

    def mount(kind: str, what: str, options: str = "defaults") -> Path:
        point = tmp_path / f"mount{len(points)}"
        point.mkdir()
        subprocess.run(["mount", "-t", kind, "-o", options, what, str(point)], check=True)
        points.append(point)
        return point

    yield mount
    for point in reversed(points):
        subprocess.run(["umount", str(point)], check=True)


@pytest.fixture
def client() -> Iterator[Callable[[Any], Any]]:
    """Serve a driver for the time of the test; gives its client."""
    with ExitStack() as stack:
        yield lambda driver: stack.enter_context(serve(driver))
