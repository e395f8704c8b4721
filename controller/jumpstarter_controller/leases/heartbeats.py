# SPDX-License-Identifier: Apache-2.0
"""Signs of life of those who hold or wait for leases, and the end of leases whose holder is silent.

A heartbeat is kept in memory and written down a little later, together with the others. So what the database knows may
be late by `slack`, and a lease ends that much after its time at the most; never before it. When nobody was there to
take heartbeats (this controller was stopped, its database away, its clock set), everybody gets the whole time again.
"""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy import bindparam, select, update
from sqlalchemy.exc import SQLAlchemyError

from jumpstarter_controller.errors import failed_precondition
from jumpstarter_controller.state.database import Database, Transaction, Unavailable
from jumpstarter_controller.state.models import Lease

__all__ = ["Heartbeats", "restart_heartbeats", "silent_leases", "silent_time", "slack"]

logger = logging.getLogger(__name__)

_LONGEST_SLACK = 5.0
#: Seconds that a pass may be late. Later than that nobody was there.
_LATE = 3.0


def slack(heartbeat: float) -> float:
    """Seconds that a heartbeat may take until the database knows of it."""
    return min(heartbeat / 4, _LONGEST_SLACK)


def silent_time(beat: float, heartbeat: float) -> float:
    """When a lease ends of which nothing is heard after ``beat``."""
    return beat + heartbeat + slack(heartbeat)


class Heartbeats:
    """Heartbeats that this controller has taken and not written down yet."""

    def __init__(self) -> None:
        self._beats: dict[int, tuple[float, float]] = {}  # by lease: when, and its heartbeat
        self._came = asyncio.Event()
        self._delay = _LONGEST_SLACK / 2
        #: The database was away, and nobody has got the whole time since then.
        self.away = False

    def beat(self, lease: Lease, now: float) -> float:
        """The holder of this lease is alive. Returns the lease's heartbeat, in seconds."""
        if lease.ended:
            why = lease.conditions[-1]["message"] if lease.conditions else "it was released"
            raise failed_precondition(f"lease {lease.name} has ended: {why}")
        if lease.heartbeat is None:
            raise failed_precondition(f"lease {lease.name} was created without a heartbeat and needs none")
        self._beats[lease.sequence] = (now, lease.heartbeat)
        self._delay = min(self._delay, slack(lease.heartbeat) / 2)
        self._came.set()
        return lease.heartbeat

    def database_down(self, down: bool) -> None:
        """The database is lost, or back: nobody could be heard in the meantime."""
        if down:
            self.away = True
        else:
            self._came.set()

    def newest(self, sequence: int) -> float | None:
        """The newest heartbeat of this lease that may not be in the database."""
        beat = self._beats.get(sequence)
        return None if beat is None else beat[0]

    async def keep(self, database: Database) -> None:
        """Write heartbeats down, until cancelled."""
        while True:
            await self._came.wait()
            await asyncio.sleep(self._delay)  # so many as come in the meantime cost one transaction
            self._came.clear()
            try:
                if self.away:
                    await database.write(restart_heartbeats)
                    self.away = False
                await self.flush(database)
            except (SQLAlchemyError, Unavailable) as error:
                logger.warning("heartbeats cannot be written down, they are kept: %s", error)
                self._came.set()

    async def flush(self, database: Database) -> None:
        """Write them down now."""
        beats = dict(self._beats)
        if not beats:
            return
        await database.write(_write, beats)
        for sequence, beat in beats.items():
            if self._beats.get(sequence) == beat:
                del self._beats[sequence]


def _write(tx: Transaction, beats: dict[int, tuple[float, float]]) -> None:
    leases = Lease.__table__
    tx.session.connection().execute(
        update(Lease)
        .where(leases.c.sequence == bindparam("lease"), ~leases.c.ended)
        .values(heartbeat_at=bindparam("beat"), silent_at=bindparam("silent")),
        [{"lease": key, "beat": at, "silent": silent_time(at, span)} for key, (at, span) in beats.items()],
    )


def silent_leases(tx: Transaction, beats: Heartbeats | None) -> list[Lease]:
    """The leases that end now because nothing was heard of their holders. Others that seem due get their new time."""
    silent = []
    due = select(Lease).where(~Lease.ended, Lease.silent_at.is_not(None), Lease.silent_at <= tx.now)
    for lease in tx.session.scalars(due).all():
        assert lease.heartbeat is not None and lease.silent_at is not None
        beat = beats.newest(lease.sequence) if beats is not None else None
        if tx.now - lease.silent_at > _LATE or (beats is not None and beats.away):
            beat = tx.now
        if beat is not None and silent_time(beat, lease.heartbeat) > tx.now:
            lease.heartbeat_at = beat
            lease.silent_at = silent_time(beat, lease.heartbeat)
        else:
            silent.append(lease)
    return silent


def restart_heartbeats(tx: Transaction) -> None:
    """A controller starts: who could not reach it gets the whole time to do so."""
    rows = tx.session.execute(
        select(Lease.sequence, Lease.heartbeat).where(~Lease.ended, Lease.silent_at.is_not(None))
    ).all()
    beats = {sequence: (tx.now, heartbeat) for sequence, heartbeat in rows if heartbeat is not None}
    if beats:
        _write(tx, beats)
