# SPDX-License-Identifier: Apache-2.0
"""How long to wait before the next try."""

from __future__ import annotations

import asyncio
import random

__all__ = ["Backoff"]


class Backoff:
    """Waits that double from ``first`` to ``most`` seconds, each shortened at random by up to half.

    The chance spreads a thousand exporters that lost the same controller.
    """

    def __init__(self, first: float = 0.1, most: float = 10.0) -> None:
        self._first = first
        self._most = most
        self._next = first

    def worked(self, seconds: float) -> None:
        """What was tried held for so long: start again with short waits, if that was not just a moment."""
        if seconds >= max(1.0, self._next):
            self._next = self._first

    def next(self) -> float:
        """Seconds to wait now."""
        delay = self._next * random.uniform(0.5, 1.0)
        self._next = min(self._next * 2, self._most)
        return delay

    async def wait(self) -> None:
        """Wait."""
        await asyncio.sleep(self.next())
