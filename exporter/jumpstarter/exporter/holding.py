# SPDX-License-Identifier: Apache-2.0
"""LabService.Hold: who holds a session, and what happens when they leave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import grpc

from jumpstarter_protocol.jumpstarter.lab.v1 import lab_pb2

__all__ = ["Holding"]

logger = logging.getLogger(__name__)

#: Seconds until the end of a holder's connection is noticed here, at the latest.
_NOTICE_SECONDS = 0.5

#: Seconds the switching off of a slow supply may take before the next holder is told that the exporter is held.
_GIVE_BACK_SECONDS = 30.0


class _Hold:
    """One hold."""

    def __init__(self, holder: str, keep: frozenset[str]) -> None:
        self.holder = holder or "somebody"
        self.since = datetime.now(UTC)
        #: Paths of the drivers that were on before: whoever switched them on switches them off.
        self.keep = keep
        self.left = asyncio.Event()  # its stream has ended, or shall; the device is being given back
        self.gone = asyncio.Event()  # and that is done
        self.ending: asyncio.Task[None] | None = None


class Holding:
    """The hold of a session; at most one at a time.

    give_back: puts the device back to rest; gets the paths of the drivers that shall stay on.
    """

    def __init__(self, give_back: Callable[[frozenset[str]], Awaitable[None]]) -> None:
        self._give_back = give_back
        self._hold: _Hold | None = None

    @property
    def holder(self) -> tuple[str, datetime] | None:
        """Who holds the session, since when."""
        return (self._hold.holder, self._hold.since) if self._hold is not None else None

    async def hold(self, request: Any, context: Any, where: str, on: frozenset[str]) -> AsyncIterator[Any]:
        """Serve one Hold call. where: the exporter's name. on: paths of the drivers that are switched on now."""
        if self._hold is not None:
            await self._wait_for_leaving(self._hold)
        if self._hold is not None:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the exporter {where or 'here'} is held by {self._hold.holder} "
                f"since {self._hold.since:%Y-%m-%d %H:%M:%S} UTC",
            )
        hold = self._hold = _Hold(request.holder, on)
        try:
            yield lab_pb2.HoldResponse()
            await hold.left.wait()
        finally:
            self._leave(hold)

    async def end(self) -> None:
        """End the hold, whoever has it: the lease is over. Returns when the device is given back."""
        hold = self._hold
        if hold is not None:
            self._leave(hold)
            await hold.gone.wait()

    def _leave(self, hold: _Hold) -> None:
        hold.left.set()
        if hold.ending is None:
            logger.info("holder %s left", hold.holder)
            # A task of its own: the call that started it is over.
            hold.ending = asyncio.create_task(self._ended(hold))

    async def _ended(self, hold: _Hold) -> None:
        # Held until the device is back in its rest state, so that the next holder finds it so.
        try:
            await self._give_back(hold.keep)
        finally:
            self._hold = None
            hold.gone.set()

    async def _wait_for_leaving(self, hold: _Hold) -> None:
        """Return when the holder is gone, or soon when it stays.

        A run that starts when another was just killed gets the device as soon as that is back in its rest state.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_NOTICE_SECONDS):
                await hold.left.wait()
            async with asyncio.timeout(_GIVE_BACK_SECONDS):
                await hold.gone.wait()
