# SPDX-License-Identifier: Apache-2.0
"""The last bytes of an endless stream, each known by its offset from the start, with the time it arrived."""

from __future__ import annotations

from bisect import bisect_right

__all__ = ["Ring"]

#: Bytes that arrive within this many seconds share one time mark.
RESOLUTION = 0.02

#: Time marks kept; older bytes share the time of the oldest mark.
_MARKS = 8192


class Ring:
    """A fixed amount of memory holding the newest ``capacity`` bytes.

    head: offset of the next byte to come, which is the number of bytes seen so far. first: offset of the oldest byte
    still here. Everything from ``first`` to ``head`` is here without a gap, so whoever remembers an offset can tell
    how much was lost since: ``max(0, first - offset)``.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}, must be positive")
        self.capacity = capacity
        self.head = 0
        self._memory = bytearray(capacity)
        self._marks: list[int] = [0]
        self._times: list[float] = [0.0]

    @property
    def first(self) -> int:
        """Offset of the oldest byte still here."""
        return max(0, self.head - self.capacity)

    def append(self, data: bytes, now: float) -> None:
        """Add bytes that arrived at ``now`` (seconds since the epoch)."""
        if now - self._times[-1] >= RESOLUTION or now < self._times[-1]:
            self._mark(now)
        size = len(data)
        if size > self.capacity:
            self.head += size - self.capacity
            data = data[-self.capacity :]
            size = self.capacity
        at = self.head % self.capacity
        room = self.capacity - at
        if size <= room:
            self._memory[at : at + size] = data
        else:
            self._memory[at:] = data[:room]
            self._memory[: size - room] = data[room:]
        self.head += size

    def read(self, since: int, limit: int) -> tuple[int, bytes]:
        """Up to ``limit`` bytes from the offset on, or from the oldest byte still here; with the first one's offset."""
        start = max(since, self.first)
        size = min(limit, self.head - start)
        if size <= 0:
            return min(start, self.head), b""
        at = start % self.capacity
        room = self.capacity - at
        if size <= room:
            return start, bytes(self._memory[at : at + size])
        return start, bytes(self._memory[at:]) + bytes(self._memory[: size - room])

    def time(self, offset: int) -> float:
        """When the byte at the offset arrived, to `RESOLUTION`; 0.0 before there was any."""
        return self._times[bisect_right(self._marks, offset) - 1]

    def same_time(self, offset: int) -> int:
        """Offset of the first byte after ``offset`` that arrived at a later time, or ``head``."""
        index = bisect_right(self._marks, offset)
        return self._marks[index] if index < len(self._marks) else self.head

    def _mark(self, now: float) -> None:
        if self._marks[-1] == self.head:
            self._times[-1] = now
            return
        self._marks.append(self.head)
        self._times.append(now)
        if len(self._marks) > _MARKS:
            # Half at once, so that trimming costs nothing per byte.
            keep = len(self._marks) // 2
            del self._marks[:keep], self._times[:keep]
            self._marks[0] = 0
