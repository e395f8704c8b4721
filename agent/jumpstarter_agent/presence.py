# SPDX-License-Identifier: Apache-2.0
"""The mark of a living agent in its directory: a lock that the kernel drops when the process ends."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import AgentError

if TYPE_CHECKING:
    from .agent import Watched

__all__ = ["PRESENCE_NAME", "Presence", "read_presence"]

PRESENCE_NAME = "agent.json"


class Presence:
    """``with Presence(directory, watched):`` holds the lock; a second agent in the directory gets an `AgentError`."""

    def __init__(self, directory: Path, watched: Watched | None) -> None:
        self._path = directory / PRESENCE_NAME
        self._watched = watched
        self._fd = -1

    def __enter__(self) -> Presence:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise AgentError("busy", f"{self._path.parent}: another agent serves this directory") from None
        document: dict[str, Any] = {"pid": os.getpid()}
        if self._watched is not None:
            document.update(watch_pid=self._watched.pid, watch_start=self._watched.started)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, json.dumps(document).encode(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def read_presence(directory: Path) -> tuple[bool, dict[str, Any]]:
    """Whether a living agent holds `directory`, and what the mark says ({} when there is none)."""
    try:
        descriptor = os.open(directory / PRESENCE_NAME, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False, {}
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alive = False
        except BlockingIOError:
            alive = True
        try:
            document = json.loads(os.pread(descriptor, 4096, 0))
        except ValueError:
            document = {}
    finally:
        os.close(descriptor)
    return alive, document if isinstance(document, dict) else {}
