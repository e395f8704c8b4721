# SPDX-License-Identifier: Apache-2.0
"""The running lab: every change to the state goes through here, so that the queue is looked at after each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import update

from jumpstarter_controller.leases.schedule import SchedulePolicy, schedule
from jumpstarter_controller.state.database import Database, Transaction
from jumpstarter_controller.state.models import Exporter

__all__ = ["Lab"]

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Seconds after which a pass that failed (a full disk, say) is tried again.
_RETRY_SECONDS = 5.0


class Lab:
    """State with its clockwork. Use within `running`."""

    def __init__(self, database: Database, policy: SchedulePolicy | None = None) -> None:
        self.database = database
        self.bus = database.bus
        self.policy = policy or SchedulePolicy()
        self._deadline: float | None = None
        self._moved = asyncio.Event()

    async def change(self, body: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``body`` and a pass over the queue in one transaction."""

        def changing(tx: Transaction) -> tuple[T, float | None]:
            value = body(tx, *args, **kwargs)
            tx.session.flush()
            return value, schedule(tx, self.policy)

        value, self._deadline = await self.database.write(changing)
        self._moved.set()
        return value

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Context in which leases end and begin at their time."""
        await self.change(_start_over)
        clockwork = asyncio.create_task(self._keep_time(), name="lab clockwork")
        try:
            yield
        finally:
            clockwork.cancel()
            await asyncio.gather(clockwork, return_exceptions=True)

    async def _keep_time(self) -> None:
        while True:
            self._moved.clear()
            left = None if self._deadline is None else max(0.0, self._deadline - self.database.clock())
            try:
                async with asyncio.timeout(left):
                    await self._moved.wait()
                continue
            except TimeoutError:
                pass
            try:
                await self.change(_nothing)
            except Exception:
                logger.exception("the queue could not be looked at; next try in %g s", _RETRY_SECONDS)
                self._deadline = self.database.clock() + _RETRY_SECONDS


def _nothing(_: Transaction) -> None:
    pass


def _start_over(tx: Transaction) -> None:
    """Nobody is connected to a controller that starts. Who was gets the usual time to come back."""
    tx.session.execute(update(Exporter).where(Exporter.connected.is_(True)).values(connected=False, last_seen=tx.now))
