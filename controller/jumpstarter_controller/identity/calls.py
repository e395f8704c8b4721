# SPDX-License-Identifier: Apache-2.0
"""Calls that are under way, and their end when the one who called is not who it was any more."""

from __future__ import annotations

import asyncio
import logging
from weakref import WeakKeyDictionary

from jumpstarter_controller.errors import Refused
from jumpstarter_controller.identity.callers import Caller

__all__ = ["OpenCalls", "why_cancelled"]

logger = logging.getLogger(__name__)

_reasons: WeakKeyDictionary[asyncio.Task[object], Refused] = WeakKeyDictionary()


def why_cancelled(task: asyncio.Task[object]) -> Refused | None:
    """What the caller of a cancelled call is to be told; None when the call was not cancelled for it."""
    return _reasons.pop(task, None)


class OpenCalls:
    """The calls of one controller, by the task that serves them."""

    def __init__(self) -> None:
        self._callers: dict[asyncio.Task[object], Caller] = {}

    def add(self, task: asyncio.Task[object], caller: Caller) -> None:
        """Know a call until it ends."""
        if task not in self._callers:
            task.add_done_callback(self._callers.pop)
        self._callers[task] = caller

    def callers(self) -> set[Caller]:
        """Who calls."""
        return set(self._callers.values())

    def end(self, refused: dict[Caller, Refused]) -> None:
        """End the calls of these callers, who are told why."""
        for task, caller in list(self._callers.items()):
            if caller in refused and not task.done():
                logger.warning("a call of %s ends: %s", caller, refused[caller].message)
                _reasons[task] = refused[caller]
                task.cancel()
