# SPDX-License-Identifier: Apache-2.0
"""The byte console: all that the console machinery asks of whatever connects it to a device."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some bytes the device sent; ``seq`` is the offset of the first one in all it ever sent.

    A chunk whose ``seq`` is not the end of the chunk before proves that bytes were lost in between.
    """

    seq: int
    data: bytes
    event: str = ""
    """``lost: ...`` when the port behind the console went away (it may come back), ``open`` when it is there again."""


class ByteConsole(Protocol):
    """A console as two directions of bytes. Errors of either direction are raised, never swallowed."""

    def chunks(self) -> AsyncIterator[Chunk]:
        """What the device sends, until the console is gone (the iteration ends or raises)."""
        ...

    async def write(self, data: bytes) -> None:
        """Send ``data`` to the device; returns when it is on its way, in order."""
        ...

    async def aclose(self) -> None:
        """Let go of the console. Safe to call twice."""
        ...
