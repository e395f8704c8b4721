# SPDX-License-Identifier: Apache-2.0
"""The frames a bus received in a session, for any number of readers.

Each frame has a number. A reader remembers the number it wants next; readers do not take frames from each other. A
reader without a wish begins with the first frame that nobody has seen, so that what arrives between the start of a
session and its first `recv` is not lost. The newest frames are kept; a reader that is too slow is told how many it
missed.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Backlog", "Entry"]


class Entry(NamedTuple):
    """A received frame. ident: id with the extended bit. packed: see `packing`."""

    ident: int
    packed: bytes
    channel: str | int | None


class Backlog:
    """Filled by one thread, read in event loops. size: frames that are kept."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._entries: deque[Entry] = deque()
        self._first = 0
        self._seen = 0
        self._failure: Exception | None = None
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    @property
    def end(self) -> int:
        """Number of the next frame."""
        return self._first + len(self._entries)

    def begin(self, since: int | None) -> int:
        """Where a reader starts. None: with what nobody has seen; negative: with the next frame."""
        with self._lock:
            if since is None:
                return max(self._seen, self._first)
            return self.end if since < 0 else min(since, self.end)

    def forget(self) -> None:
        """What came so far is for nobody who comes from now on."""
        with self._lock:
            self._seen = self.end

    def append(self, entry: Entry) -> None:
        """A frame came."""
        with self._lock:
            self._entries.append(entry)
            if len(self._entries) > self._size:
                self._entries.popleft()
                self._first += 1
            waiters, self._waiters = self._waiters, []
        self._wake(waiters)

    def fail(self, error: Exception | None) -> None:
        """Nothing more comes, because of this error; None: frames may come again."""
        with self._lock:
            self._failure = error
            waiters, self._waiters = self._waiters, []
        self._wake(waiters)

    @staticmethod
    def _wake(waiters: Sequence[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
        for loop, event in waiters:
            try:
                loop.call_soon_threadsafe(event.set)
            except RuntimeError:
                continue  # that loop was closed, and its readers with it

    def take(self, cursor: int, limit: int) -> tuple[list[Entry], int, int]:
        """Frames from `cursor` on, how many were missed before them, and the next cursor."""
        with self._lock:
            dropped = max(self._first - cursor, 0)
            start = max(cursor - self._first, 0)
            # By index: a deque is quick near its ends, where readers are.
            stop = min(start + limit, len(self._entries))
            entries = [self._entries[index] for index in range(start, stop)]
            cursor = self._first + start + len(entries)
            self._seen = max(self._seen, cursor)
        return entries, dropped, cursor

    async def wait(self, cursor: int) -> None:
        """Return when the frame `cursor` is there. Raises what `fail` was told."""
        while True:
            with self._lock:
                if cursor < self.end:
                    return
                if self._failure is not None:
                    raise self._failure
                event = asyncio.Event()
                waiter = (asyncio.get_running_loop(), event)
                self._waiters.append(waiter)
            try:
                await event.wait()
            finally:
                with self._lock:
                    if waiter in self._waiters:
                        self._waiters.remove(waiter)
