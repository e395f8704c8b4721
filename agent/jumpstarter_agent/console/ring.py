# SPDX-License-Identifier: Apache-2.0
"""What the console said lately, addressed by sequence number, with waiters."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

_TRIM_SLACK = 1 << 18  # bytes over the limit before old ones are dropped: deleting from the front costs a copy


@dataclass(frozen=True, slots=True)
class LogSlice:
    """A piece of the log: ``data`` starts at ``seq``; ``dropped`` bytes before it are no longer held."""

    seq: int
    data: bytes
    dropped: int


class Ring:
    """The last ``limit`` bytes of a console.

    Positions are sequence numbers: they only grow, and they survive that old bytes are dropped. Bytes that were
    lost on the way make the numbers jump; the buffer then holds what follows as if it were adjacent, and counts.
    """

    def __init__(self, limit: int = 8 << 20) -> None:
        self._limit = limit
        self._data = bytearray()
        self._start = 0
        self._waiters: list[asyncio.Future[None]] = []
        self.lost = 0

    @property
    def start(self) -> int:
        """Position of the oldest byte held."""
        return self._start

    @property
    def end(self) -> int:
        """Position after the newest byte."""
        return self._start + len(self._data)

    def append(self, data: bytes) -> None:
        """Add what arrived and wake everybody who waits."""
        self._data += data
        if len(self._data) > self._limit + _TRIM_SLACK:
            cut = len(self._data) - self._limit
            del self._data[:cut]
            self._start += cut
        self.wake()

    def wake(self) -> None:
        """Make everybody who waits look again (new bytes, or a state change they must notice)."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def changed(self, timeout: float) -> bool:
        """Wait for the next :meth:`wake`; False when ``timeout`` seconds pass without one."""
        if timeout <= 0:
            return False
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters.append(waiter)
        timer = loop.call_later(timeout, _expire, waiter)
        try:
            await waiter
        except TimeoutError:
            return False
        finally:
            timer.cancel()
            if waiter in self._waiters:
                self._waiters.remove(waiter)
        return True

    def line(self, pos: int) -> tuple[bytes, int] | None:
        """The whole line that begins at ``pos`` (without its line end) and the position after it; None: not yet."""
        offset = max(pos - self._start, 0)
        found = self._data.find(b"\n", offset)
        if found < 0:
            return None
        return bytes(self._data[offset:found]).rstrip(b"\r"), self._start + found + 1

    def since(self, pos: int) -> bytes:
        """Everything held from ``pos`` on."""
        return bytes(self._data[max(pos - self._start, 0) :])

    def slice(self, since: int, max_bytes: int) -> LogSlice:
        """At most ``max_bytes`` from position ``since`` on."""
        begin = min(max(since, self._start), self.end)
        offset = begin - self._start
        return LogSlice(begin, bytes(self._data[offset : offset + max_bytes]), max(begin - since, 0))


def _expire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())
