# SPDX-License-Identifier: Apache-2.0
"""Real machines for the tests of the QEMU driver: an arm64 board with Debian's U-Boot as firmware."""

from __future__ import annotations

import os
import re
import select
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

UBOOT = Path("/usr/lib/u-boot/qemu_arm64/u-boot.bin")


def board(**config: Any) -> Any:
    """An arm64 board that starts U-Boot and stays there: no disk to boot from, unless given."""
    from jumpstarter_driver_qemu.driver import Qemu

    settings: dict[str, Any] = {"arch": "aarch64", "mem": "128M", "smp": 1, "vnc": False, "cloud_init": False}
    settings |= {"powerdown_timeout": 0, "default_partitions": {}, **config}
    settings["default_partitions"] = {"bios": UBOOT, **settings["default_partitions"]}
    return Qemu(**settings)


def wait_console(client: Any, pattern: bytes, *, since: int = 0, timeout: float = 120.0) -> tuple[re.Match[bytes], int]:
    """Follow the console from an offset until a pattern appears; the match, and the offset behind what was read."""
    seen = b""
    deadline = time.monotonic() + timeout
    for item in client.console.follow(since):
        seen += item["data"]
        found = re.search(pattern, seen)
        if found:
            return found, int(item["seq"]) + len(item["data"])
        assert time.monotonic() < deadline, f"no {pattern!r} within {timeout} s in {seen[-500:]!r}"
    raise AssertionError(f"the log ended without {pattern!r}: {seen[-500:]!r}")


def wait_gone(pid: int, timeout: float = 60.0) -> None:
    """Wait until ``pid`` is gone, by its pidfd (it may be a child of somebody else)."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ready, _, _ = select.select([fd], [], [], timeout)
        assert ready, f"process {pid} is still there after {timeout} s"
    finally:
        os.close(fd)


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 60.0) -> None:
    """Wait for something that nothing but looking at it can tell."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.01)


@contextmanager
def served(driver: Any) -> Iterator[Any]:
    """The driver's client over a real session."""
    from jumpstarter.common.utils import serve

    with serve(driver) as client:
        yield client


@pytest.fixture
def serving() -> Iterator[Callable[[Any], Any]]:
    """Serve drivers until the end of the test."""
    with ExitStack() as stack:
        yield lambda driver: stack.enter_context(served(driver))
