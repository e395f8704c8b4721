# SPDX-License-Identifier: Apache-2.0
"""The controllers that serve from one database: which ones live, and what becomes of the exporters of the others.

Every controller writes down now and then that it is there (one row, whatever the number of exporters). One that is
silent for `LOST` seconds, seen by another one that was there all the time, is buried by that one: its exporters are no
longer connected, and have the usual time to come back, to any controller. Transactions for `Lab.change` and
`Database.write`.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import ColumnElement, delete, or_, select, update

from jumpstarter_controller.leases.schedule import exporter_topic
from jumpstarter_controller.state.bus import LAB_TOPIC
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Dial, Exporter, Replica

__all__ = ["BEAT", "LOST", "bury", "is_here", "join", "leave"]

#: Seconds between two signs of life of a controller, and of silence after which it counts as dead.
BEAT, LOST = 5.0, 20.0
#: Seconds after which a dial that nobody has taken is forgotten: the controller that made it has died.
_DIAL_AGE = 120.0


def join(tx: Transaction, replica: str, connected: Collection[str], *, alone: bool) -> None:
    """This controller serves. connected: ids of the exporters that it has Status streams of.

    alone: no other can be there. Called at its start, and when it was taken for dead and is not.
    """
    if alone:
        tx.session.execute(delete(Replica))
    tx.session.execute(delete(Replica).where(Replica.id == replica))
    tx.session.add(Replica(id=replica, started_at=tx.now, last_seen=tx.now))
    tx.session.flush()
    _disconnect_orphans(tx)
    for key in connected:
        exporter = tx.session.get(Exporter, key)
        if exporter is not None and exporter.registered and not exporter.connected:
            exporter.connected = exporter.online = True
            exporter.replica = replica
            exporter.last_seen = tx.now
            tx.touch(exporter_topic(key))


def is_here(tx: Transaction, replica: str) -> tuple[bool, bool]:
    """A sign of life. Returns whether others believe it, and whether somebody is to be buried."""
    seen = tx.session.execute(update(Replica).where(Replica.id == replica).values(last_seen=tx.now))
    silent = tx.session.scalars(select(Replica.id).where(Replica.last_seen < tx.now - LOST).limit(1)).first()
    return bool(getattr(seen, "rowcount", 0)), silent is not None


def bury(tx: Transaction) -> None:
    """Forget controllers that are silent; nobody is connected to them any more."""
    silent = Replica.last_seen < tx.now - LOST
    for replica in tx.session.scalars(select(Replica).where(silent)).all():
        tx.audit("controller", "replica lost", replica=replica.id, last_seen=replica.last_seen)
        tx.session.delete(replica)
    tx.session.flush()
    _disconnect_orphans(tx)
    tx.session.execute(delete(Dial).where(Dial.created_at < tx.now - _DIAL_AGE))


def leave(tx: Transaction, replica: str) -> None:
    """This controller ends; others take over what it had in mind."""
    tx.session.execute(delete(Replica).where(Replica.id == replica))
    _disconnect(tx, Exporter.replica == replica)
    tx.touch(LAB_TOPIC)


def _disconnect_orphans(tx: Transaction) -> None:
    _disconnect(tx, or_(Exporter.replica.is_(None), Exporter.replica.not_in(select(Replica.id))))


def _disconnect(tx: Transaction, whose: ColumnElement[bool]) -> None:
    gone = select(Exporter.id).where(Exporter.connected.is_(True), whose)
    for key in tx.session.scalars(gone).all():
        tx.touch(exporter_topic(key))
    tx.session.execute(
        update(Exporter).where(Exporter.connected.is_(True), whose).values(connected=False, last_seen=tx.now)
    )
