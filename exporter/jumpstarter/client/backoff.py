# SPDX-License-Identifier: Apache-2.0
"""Waiting between attempts."""

from __future__ import annotations

import asyncio
import random

__all__ = ["Backoff"]


class Backoff:
    """Waits that grow, with some randomness so that many clients do not come back at once. Seconds."""

    def __init__(self, first: float = 0.2, longest: float = 5.0) -> None:
        self._first, self._longest = first, longest
        self._next = first

    def reset(self) -> None:
        """Begin anew: it worked."""
        self._next = self._first

    async def wait(self) -> None:
        """Wait, longer every time."""
        await asyncio.sleep(self._next * random.uniform(0.8, 1.2))
        self._next = min(self._next * 1.6, self._longest)
