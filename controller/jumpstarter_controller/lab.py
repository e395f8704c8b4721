# SPDX-License-Identifier: Apache-2.0
"""The running lab: every change to the state goes through here, so that the queue is looked at after each."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Concatenate, ParamSpec, TypeVar
from uuid import uuid4

from jumpstarter_controller import exporters, replicas
from jumpstarter_controller.identity import Caller
from jumpstarter_controller.leases import retention
from jumpstarter_controller.leases.catalogue import Catalogue
from jumpstarter_controller.leases.heartbeats import Heartbeats, restart_heartbeats
from jumpstarter_controller.leases.requests import Limits
from jumpstarter_controller.leases.schedule import SchedulePolicy, schedule
from jumpstarter_controller.state.bus import LAB_TOPIC
from jumpstarter_controller.state.database import Database, Transaction, Unavailable

__all__ = ["Lab"]

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Seconds after which a pass that failed (a full disk, say) is tried again.
_RETRY_SECONDS = 5.0


class Lab:
    """State with its clockwork. Use within `running`. replica: names this controller among those of the database."""

    def __init__(self, database: Database, policy: SchedulePolicy | None = None, limits: Limits | None = None) -> None:
        self.database = database
        self.limits = limits or Limits()
        self.catalogue = Catalogue()
        self.beats = Heartbeats()
        database.outage.watchers.append(self.beats.database_down)
        self.bus = database.bus
        self.policy = policy or SchedulePolicy()
        self.replica = uuid4().hex
        #: The newest Status stream of each exporter that is connected to this controller.
        self.status_streams: dict[str, object] = {}
        #: This controller has said that it ends.
        self.leaving = False
        self._later: set[asyncio.Task[None]] = set()
        self._deadline: float | None = None
        self._moved = asyncio.Event()

    async def change(self, body: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``body`` and a pass over the queue in one transaction. Raises `Unavailable` when the database is."""

        def changing(tx: Transaction) -> T:
            value = body(tx, *args, **kwargs)
            tx.session.flush()
            deadline = schedule(tx, self.policy, self.catalogue, self.beats)
            # Also when the caller has gone by then: its lease ends in time all the same.
            tx.then(lambda: self._look_at(deadline))
            return value

        return await self.database.write(changing)

    def _look_at(self, deadline: float | None) -> None:
        self._deadline = deadline
        self._moved.set()

    async def patient_change(
        self, body: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """`change`, after the end of an outage of any length."""
        while True:
            try:
                return await self.change(body, *args, **kwargs)
            except Unavailable:
                await self.database.outage.over(None)

    async def disconnected(self, caller: Caller) -> None:
        """An exporter's Status stream to this controller has ended. Returns when that is written down, or will be."""
        if self.leaving:
            return
        try:
            await self.change(exporters.disconnected, caller, self.replica)
        except Unavailable:
            task = asyncio.create_task(self._disconnected_later(caller), name=f"{caller} is disconnected")
            self._later.add(task)
            task.add_done_callback(self._later.discard)

    async def _disconnected_later(self, caller: Caller) -> None:
        await self.database.outage.over(None)
        if caller.id not in self.status_streams:
            await self.disconnected(caller)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Context in which leases end and begin at their time, and other controllers know of this one."""
        async with self.database.running():
            await self.database.compare_clocks()
            # Nobody is connected to a controller that starts. Who was to one that is no more has time to come back.
            await self.database.write(restart_heartbeats)
            await self.change(replicas.join, self.replica, (), alone=not self.database.shared)
            work = [
                asyncio.create_task(self._keep_time(), name="lab clockwork"),
                asyncio.create_task(self._hear(), name="lab topic"),
                asyncio.create_task(self.beats.keep(self.database), name="heartbeats"),
                asyncio.create_task(retention.keep(self.database, self.policy), name="retention"),
            ]
            if self.database.shared:
                work.append(asyncio.create_task(self._show_life(), name="replica"))
            try:
                yield
            finally:
                for task in (rest := [*work, *self._later]):
                    task.cancel()
                await asyncio.gather(*rest, return_exceptions=True)
                await self.leave()

    async def leave(self) -> None:
        """Say that this controller ends: its exporters count as disconnected, other controllers go on."""
        if self.leaving:
            return
        self.leaving = True
        try:
            await self.change(replicas.leave, self.replica)
        except Unavailable as error:
            logger.warning("nobody could be told that this controller ends: %s", error)

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
            await self._pass()

    async def _hear(self) -> None:
        """Look at the queue when somebody has changed the state without doing so."""
        with self.bus.subscribe(LAB_TOPIC) as subscription:
            while True:
                await subscription.changed()
                await self._pass()

    async def _pass(self) -> None:
        try:
            await self.patient_change(_nothing)
        except Exception:
            logger.exception("the queue could not be looked at; next try in %g s", _RETRY_SECONDS)
            self._look_at(self.database.clock() + _RETRY_SECONDS)

    async def _show_life(self) -> None:
        """Tell other controllers that this one lives, and notice those that do not."""
        begin = time.monotonic()
        while True:
            await asyncio.sleep(replicas.BEAT)
            try:
                await self.database.compare_clocks()
                believed, somebody_is_dead = await self.database.write(replicas.is_here, self.replica)
                if not believed:
                    logger.warning("this controller was taken for dead by another one; it is back")
                    await self.change(replicas.join, self.replica, list(self.status_streams), alone=False)
                if somebody_is_dead and time.monotonic() - begin > replicas.LOST:
                    await self.change(replicas.bury)
            except Unavailable as error:
                logger.info("no sign of life: %s", error)
                await self.database.outage.over(None)
                # Nobody could show signs of life; everybody gets the time to do so.
                begin = time.monotonic()
            except Exception:
                logger.exception("no sign of life could be written; next try in %g s", replicas.BEAT)


def _nothing(_: Transaction) -> None:
    pass
