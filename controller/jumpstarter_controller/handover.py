# SPDX-License-Identifier: Apache-2.0
"""Dials that go from the controller where the client is to the one where the exporter listens.

Which Listen stream counts is `Lease.listener`, written by the stream that begins last. A dial for a stream at another
controller is a row that names the stream; that controller marks the row as taken and tells the exporter, once. The
dialing controller deletes the row, when it was taken or when it gives up: who changes the row first has decided.
Transactions for `Database.write` and `read`.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import select

from jumpstarter.common.enums import ExporterStatus
from jumpstarter_controller.errors import failed_precondition, permission_denied
from jumpstarter_controller.identity import Caller
from jumpstarter_controller.leases.requests import find_lease, find_own_lease
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Dial, Exporter

__all__ = [
    "Place",
    "attend",
    "begin_listening",
    "check_listener",
    "dial_topic",
    "dials_topic",
    "listener_topic",
    "outcome",
    "place_of",
    "post",
    "take",
    "withdraw",
]

_FAILED = {ExporterStatus.BEFORE_LEASE_HOOK_FAILED.value, ExporterStatus.AFTER_LEASE_HOOK_FAILED.value}


def listener_topic(namespace: str, lease: str) -> str:
    """Bus topic: a Listen stream for this lease has begun."""
    return f"listener/{namespace}/{lease}"


def dials_topic(session: str) -> str:
    """Bus topic: there is a dial for this Listen stream."""
    return f"dials/{session}"


def dial_topic(dial: str) -> str:
    """Bus topic: this dial was taken, or refused."""
    return f"dial/{dial}"


# --- where the exporter listens ---------------------------------------------------------------------------------------


def check_listener(tx: Transaction, caller: Caller, name: str) -> None:
    """Raises `Refused` when this exporter does not hold the lease (any more)."""
    lease = find_lease(tx, caller.namespace, name)
    if lease.exporter_id != caller.id:
        raise permission_denied(f"permission denied: lease {name} is not held by {caller}")
    if lease.ended:
        raise failed_precondition(f"lease {name} has ended")


def begin_listening(tx: Transaction, caller: Caller, name: str, session: str) -> None:
    """This Listen stream is the one that counts from now on. Raises `Refused`."""
    check_listener(tx, caller, name)
    find_lease(tx, caller.namespace, name).listener = session
    tx.touch(listener_topic(caller.namespace, name))


def attend(tx: Transaction, caller: Caller, name: str, session: str) -> bool:
    """Whether dials wait for this stream. Raises `Refused` when it does not count any more."""
    check_listener(tx, caller, name)
    if find_lease(tx, caller.namespace, name).listener != session:
        raise failed_precondition(f"another stream listens on lease {name}")
    waiting = select(Dial.id).where(Dial.listener == session, Dial.taken.is_(False), Dial.refused == "").limit(1)
    return tx.session.scalars(waiting).first() is not None


def take(tx: Transaction, session: str, room: int, refusal: str) -> list[tuple[str, str]]:
    """(endpoint, token) of the dials that wait for this stream; those for which there is no room are refused."""
    waiting = tx.session.scalars(
        select(Dial)
        .where(Dial.listener == session, Dial.taken.is_(False), Dial.refused == "")
        .order_by(Dial.created_at)
    ).all()
    for dial in waiting:
        tx.touch(dial_topic(dial.id))
    for dial in waiting[room:]:
        dial.refused = refusal
    for dial in waiting[:room]:
        dial.taken = True
    return [(dial.endpoint, dial.token) for dial in waiting[:room]]


# --- where the client dials -------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a dial has to go. listener: the Listen stream that counts, None before the first."""

    status: ExporterStatus
    exporter_id: str
    labels: dict[str, str]
    listener: str | None


def place_of(tx: Transaction, caller: Caller, name: str) -> Place:
    """Where a dial of this lease has to go. Raises `Refused` when waiting would not help."""
    lease = find_own_lease(tx, caller, name)
    if lease.ended:
        raise failed_precondition(f"lease {name} has ended")
    exporter: Exporter | None = lease.exporter
    if exporter is None:
        raise failed_precondition(f"lease not active: {name} waits for an exporter")
    if not exporter.online or exporter.status == ExporterStatus.OFFLINE.value:
        raise failed_precondition("exporter is offline")
    status = ExporterStatus.from_proto(exporter.status)
    if exporter.status in _FAILED:
        word = "".join(part.capitalize() for part in status.name.split("_"))
        raise failed_precondition(f"exporter cannot be used (status: {word}): {exporter.status_message}")
    return Place(status, exporter.id, exporter.all_labels, lease.listener)


def post(tx: Transaction, dial: str, listener: str, endpoint: str, token: str) -> None:
    """Hand a dial over to where this stream is."""
    tx.session.add(Dial(id=dial, listener=listener, endpoint=endpoint, token=token, created_at=tx.now))
    tx.touch(dials_topic(listener))


def outcome(tx: Transaction, dial: str) -> tuple[bool, str]:
    """Whether the dial was taken, and why it was refused ("": it was not)."""
    row = tx.session.get(Dial, dial)
    return (False, "") if row is None else (row.taken, row.refused)


def withdraw(tx: Transaction, dial: str) -> bool:
    """Forget the dial. Returns whether it had been taken before."""
    row = tx.session.get(Dial, dial)
    if row is None:
        return False
    taken = row.taken
    tx.session.delete(row)
    return taken
