# SPDX-License-Identifier: Apache-2.0
"""Knowing when a process that is not our child has ended."""

from __future__ import annotations

import asyncio
import os
import select
from pathlib import Path

__all__ = ["is_alive", "start_time", "wait_gone"]

_POLL_SECONDS = 1.0


def start_time(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot, as /proc gives it.

    None when there is no such process (or it is a zombie: dead for every purpose of ours); "0" when it exists but
    this system has no /proc.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return "0" if not os.path.isdir("/proc/self") and _exists(pid) else None
    # The command name may hold spaces and parentheses: fields count from the last one.
    fields = stat.rpartition(b")")[2].split()
    if not fields or fields[0] in (b"Z", b"X"):
        return None
    return fields[19].decode("ascii")


def is_alive(pid: int, started: str) -> bool:
    """Whether the process `pid` that started at `started` still runs (a reused pid is another process)."""
    return start_time(pid) == started


async def wait_gone(pid: int, started: str) -> str:
    """Return, with the reason as text, once the process has ended. Returns at once for a process that is not there.

    Uses a pidfd, which cannot mistake a reused pid for the process; where the kernel has none, looks every second.
    """
    descriptor = _open_pidfd(pid)
    if descriptor is None:
        while is_alive(pid, started):
            await asyncio.sleep(_POLL_SECONDS)
        return f"process {pid} ended"
    try:
        # Only now: a pid reused between the caller's look and the open would have another start time.
        if not is_alive(pid, started):
            return f"process {pid} (started at {started}) is not there"
        gone = asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor, _set_once, gone)
        try:
            await gone
        finally:
            loop.remove_reader(descriptor)
    finally:
        os.close(descriptor)
    return f"process {pid} ended"


def _set_once(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _open_pidfd(pid: int) -> int | None:
    opener = getattr(os, "pidfd_open", None)
    if opener is None or not hasattr(select, "epoll"):
        return None
    try:
        return int(opener(pid))
    except OSError:
        # No such process, or a kernel without it: the start time tells which.
        return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
