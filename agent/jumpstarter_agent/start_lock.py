# SPDX-License-Identifier: Apache-2.0
"""The lock under which an agent is started: a file beside the agent's directory that goes when the agent does."""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path

__all__ = ["remove_start_lock", "take_start_lock", "try_start_lock"]


async def take_start_lock(directory: Path) -> int:
    """Wait for the lock; returns the descriptor that holds it."""
    waiting = asyncio.create_task(asyncio.to_thread(_take, directory))
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        # The thread waits on: what it gets must not stay locked.
        waiting.add_done_callback(lambda done: os.close(done.result()))
        raise


def _take(directory: Path) -> int:
    while True:
        descriptor = _open(directory)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _is_current(directory, descriptor):
            return descriptor
        os.close(descriptor)


def try_start_lock(directory: Path) -> int | None:
    """The descriptor that holds the lock, or None when somebody starts an agent there now."""
    descriptor = _open(directory)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    if _is_current(directory, descriptor):
        return descriptor
    os.close(descriptor)
    return None


def remove_start_lock(directory: Path) -> None:
    """Remove the lock file unless somebody holds it."""
    descriptor = try_start_lock(directory)
    if descriptor is None:
        return
    try:
        _path(directory).unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _path(directory: Path) -> Path:
    return Path(f"{directory}.lock")


def _open(directory: Path) -> int:
    return os.open(_path(directory), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _is_current(directory: Path, descriptor: int) -> bool:
    # Whoever held it before may have removed the file: then the next one locks another file of that name.
    try:
        return os.path.samestat(os.stat(_path(directory)), os.fstat(descriptor))
    except FileNotFoundError:
        return False
