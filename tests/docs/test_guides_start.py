# SPDX-License-Identifier: Apache-2.0
"""Getting started: what `make demo` runs, its report, and the first commands by hand."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from guide_pages import ROOT, Reader, blocks


@pytest.mark.timeout(900)
def test_getting_started(reader: Callable[..., Reader], arm64_image: Path) -> None:
    assert arm64_image.exists()
    made = reader()
    for name in ("inventories", "playbooks", "boards", "ansible.cfg", "build", ".venv"):
        (made.directory / name).symlink_to(ROOT / name)
    made.read("getting-started.md")


def test_make_demo_is_what_getting_started_says() -> None:
    steps = subprocess.run(
        ["make", "-n", "--no-print-directory", "demo"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    consoles = [block for block in blocks("getting-started.md") if block.language == "console"]
    play = [command for block in consoles for command, _ in block.commands]
    assert steps.stdout.splitlines()[-1].endswith(play[1])
    for tool in ("qemu-system-arm", "u-boot-qemu", "mtools", "openssh-client"):
        assert tool in steps.stdout
