# SPDX-License-Identifier: Apache-2.0
"""Chunks from the event loop to a worker thread: bounded, woken only when there is something to do."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Iterator
from typing import Final

from jumpstarter.common.storage import Buffer

_LIMIT: Final = 16 << 20
_WAKE: Final = 1 << 20


class Feeder:
    """`put`, `close` and `fail` are called in the event loop; a worker thread iterates.

    At most ``limit`` bytes wait. The iteration ends after `close` and raises what was given to `fail`.
    """

    def __init__(self, limit: int = _LIMIT) -> None:
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[Buffer | BaseException | None] = queue.SimpleQueue()
        self._room = asyncio.Event()
        self._waiting = 0
        self._abandoned = False

    async def put(self, chunk: Buffer) -> None:
        """Hand over a chunk; waits while the worker is behind. Chunks for a worker that gave up are dropped."""
        while self._waiting >= self._limit and not self._abandoned:
            self._room.clear()
            await self._room.wait()
        if not self._abandoned:
            self._waiting += len(chunk)
            self._queue.put(chunk)

    def close(self) -> None:
        """No more chunks: the stream is complete."""
        self._queue.put(None)

    def fail(self, error: BaseException) -> None:
        """No more chunks: the worker shall get ``error`` once it took what waits."""
        self._queue.put(error)

    def abandon(self) -> None:
        """The worker takes no more: `put` returns at once from now on."""
        self._abandoned = True
        self._room.set()

    def __iter__(self) -> Iterator[Buffer]:
        taken = 0
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            taken += len(item)
            yield item
            if taken >= _WAKE or self._queue.empty():
                self._tell(taken)
                taken = 0

    def _tell(self, taken: int) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone, and with it whoever waited
            self._loop.call_soon_threadsafe(self._took, taken)

    def _took(self, taken: int) -> None:
        self._waiting -= taken
        self._room.set()
