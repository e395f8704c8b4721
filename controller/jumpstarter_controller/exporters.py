# SPDX-License-Identifier: Apache-2.0
"""What exporters do: register, say how they are, be there, leave. Transactions for `Lab.change`."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import select

from jumpstarter.common.enums import ExporterStatus
from jumpstarter_controller.errors import Refused, failed_precondition, not_found, one_line
from jumpstarter_controller.identity import Caller
from jumpstarter_controller.leases.conditions import READY
from jumpstarter_controller.leases.ending import end_lease, exporter_topic
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Exporter, Lease

__all__ = [
    "Assignment",
    "assignment",
    "connected",
    "disconnected",
    "register",
    "release_by_exporter",
    "report_status",
    "unregister",
]

#: The one label that an exporter may give itself, and only with its own name. All others are the administrator's: by a
#: label of its choice an exporter could slip into selectors and access policies.
NAME_LABEL = "jumpstarter.dev/name"


class Assignment(NamedTuple):
    """What an exporter is told on its Status stream."""

    lease: str | None
    client: str | None
    context: dict[str, str]


def _own(tx: Transaction, caller: Caller) -> Exporter:
    exporter = tx.session.get(Exporter, caller.id)
    # A deleted one may keep its row, in no namespace.
    if exporter is None or exporter.namespace != caller.namespace:
        raise not_found(f"exporter {caller.namespace}/{caller.name} does not exist any more")
    tx.touch(exporter_topic(exporter.id))
    return exporter


def current_lease(tx: Transaction, exporter_id: str) -> Lease | None:
    """The lease that holds this exporter."""
    return tx.session.scalars(select(Lease).where(Lease.exporter_id == exporter_id, ~Lease.ended)).first()


def register(tx: Transaction, caller: Caller, labels: dict[str, str], devices: list[dict[str, Any]]) -> str:
    """An exporter announces its drivers. Returns its id."""
    exporter = _own(tx, caller)
    exporter.reported_labels = {NAME_LABEL: exporter.name} if labels.get(NAME_LABEL) == exporter.name else {}
    exporter.devices = devices
    exporter.registered = True
    exporter.last_seen = tx.now
    tx.audit(str(caller), "exporter registered", exporter=exporter.name, devices=len(devices))
    return exporter.id


def unregister(tx: Transaction, caller: Caller, reason: str) -> None:
    """An exporter leaves. Its lease, if there is one, stays."""
    exporter = _own(tx, caller)
    exporter.devices = []
    exporter.registered = exporter.online = False
    exporter.status = ExporterStatus.OFFLINE.value
    reason = one_line(reason)
    exporter.status_message = reason or "Exporter unregistered"
    tx.audit(str(caller), "exporter unregistered", exporter=exporter.name, reason=reason)


def report_status(tx: Transaction, caller: Caller, status: int, message: str, release: bool) -> None:
    """An exporter says how it is; with ``release`` it also ends its lease."""
    exporter = _own(tx, caller)
    known = ExporterStatus.from_proto(status)
    exporter.status = known.value
    exporter.status_message = message = one_line(message)
    exporter.last_seen = tx.now
    exporter.online = known is not ExporterStatus.OFFLINE
    tx.audit(str(caller), "exporter status", exporter=exporter.name, status=known.name, message=message)
    if release and (lease := current_lease(tx, exporter.id)) is not None:
        _release(tx, caller, lease)


def release_by_exporter(tx: Transaction, caller: Caller, name: str) -> None:
    """An exporter ends the lease that holds it. Ending it twice is allowed."""
    lease = tx.session.scalars(select(Lease).where(Lease.namespace == caller.namespace, Lease.name == name)).first()
    if lease is None:
        raise not_found(f"lease {name} does not exist")
    if lease.exporter_id != caller.id:
        raise failed_precondition(f"lease {name} is not held by exporter {caller.name}")
    if not lease.ended:
        _release(tx, caller, lease)


def _release(tx: Transaction, caller: Caller, lease: Lease) -> None:
    tx.audit(str(caller), "lease released", lease=lease.name, exporter=caller.name, client=lease.client.name)
    end_lease(tx, lease, "Released", "The lease was released by its exporter", READY, status=False)


def connected(tx: Transaction, caller: Caller, replica: str | None = None) -> None:
    """The exporter's Status stream is open, to this controller (`Lab.replica`)."""
    exporter = _own(tx, caller)
    if exporter.registered and exporter.status == ExporterStatus.OFFLINE.value:
        # It was lost and is back; how it is, it will say.
        exporter.status, exporter.status_message = ExporterStatus.UNSPECIFIED.value, ""
    exporter.connected = True
    exporter.replica = replica
    exporter.online = exporter.registered
    exporter.last_seen = tx.now


def disconnected(tx: Transaction, caller: Caller, replica: str | None = None) -> None:
    """The exporter's Status stream to this controller has ended; it may come back, or be at another one already."""
    try:
        exporter = _own(tx, caller)
    except Refused:
        return  # deleted meanwhile
    if exporter.replica != replica:
        return
    exporter.connected = False
    exporter.last_seen = tx.now


def assignment(tx: Transaction, caller: Caller) -> Assignment:
    """Who holds the exporter now."""
    lease = current_lease(tx, caller.id)
    if lease is None:
        return Assignment(None, None, {})
    return Assignment(lease.name, lease.client.name, dict(lease.context))
