# SPDX-License-Identifier: Apache-2.0
"""One pass over everything that waits or is due, within one transaction.

The pass runs at the end of every transaction that may have changed its outcome, and at the moment it said itself.
It ends leases that are due, notices exporters that are lost, and walks the queue. What it costs depends on what waits,
not on how many exporters and ended leases there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from sqlalchemy import Double, bindparam, func, select

from jumpstarter.common.enums import ExporterStatus
from jumpstarter_controller.leases.assign import Walk
from jumpstarter_controller.leases.catalogue import Catalogue
from jumpstarter_controller.leases.ending import end_lease, exporter_topic, lease_topic, queue_topic
from jumpstarter_controller.leases.heartbeats import Heartbeats, silent_leases
from jumpstarter_controller.leases.preempt import end_preempted, preempt
from jumpstarter_controller.leases.queue import Waiting, read_waiting
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Exporter, Lease

__all__ = ["SchedulePolicy", "end_lease", "exporter_topic", "lease_topic", "queue_topic", "schedule"]


@dataclass(frozen=True)
class SchedulePolicy:
    """Seconds. offline_after: an exporter that was last seen so long ago is lost. retention: of ended leases.

    spot_grace: that the holder of a spot lease gets when it is taken away. audit_retention: of entries of the audit
    log.
    """

    offline_after: float = 60.0
    retention: float = 30 * 86400.0
    spot_grace: float = 60.0
    audit_retention: float = 365 * 86400.0


def schedule(
    tx: Transaction, policy: SchedulePolicy, catalogue: Catalogue | None = None, beats: Heartbeats | None = None
) -> float | None:
    """Bring everything up to date. Returns when this must run again at the latest (None: when something changes)."""
    now = tx.now
    expires, silent, preempted, lost, _ = _deadlines(tx, policy)
    if expires <= now:
        _expire(tx)
    if preempted <= now:
        tx.session.flush()
        end_preempted(tx)
    if silent <= now:
        tx.session.flush()
        for lease in silent_leases(tx, beats):
            message = f"Nothing was heard of the client for {lease.heartbeat:g} seconds"
            end_lease(tx, lease, "HeartbeatLost", message, status=False)
    if lost <= now:
        _notice_lost_exporters(tx, policy)
    tx.session.flush()
    again = _walk(tx, read_waiting(tx), policy, catalogue or Catalogue())
    tx.session.flush()
    deadline = min(_deadlines(tx, policy))
    if again is not None:
        deadline = min(deadline, again)
    return None if deadline == _NEVER else deadline


def _walk(tx: Transaction, queue: list[Waiting], policy: SchedulePolicy, catalogue: Catalogue) -> float | None:
    needs = []
    for namespace, waiting in groupby(queue, key=lambda waiting: waiting.namespace):
        walk = Walk(tx, namespace, catalogue.of(tx, namespace), policy.spot_grace)
        needs += walk.run(list(waiting))
    return preempt(tx, needs, policy.spot_grace)


def _expire(tx: Transaction) -> None:
    due = select(Lease).where(~Lease.ended, Lease.expires_at <= tx.now)
    for lease in tx.session.scalars(due).all():
        end_lease(tx, lease, "Expired", "The lease has expired", status=False)


def _notice_lost_exporters(tx: Transaction, policy: SchedulePolicy) -> None:
    lost = select(Exporter).where(
        Exporter.online, ~Exporter.connected, Exporter.last_seen <= tx.now - policy.offline_after
    )
    for exporter in tx.session.scalars(lost).all():
        exporter.online = False
        exporter.status = ExporterStatus.OFFLINE.value
        exporter.status_message = f"Connection lost - last seen more than {policy.offline_after:g} seconds ago"
        tx.touch(exporter_topic(exporter.id))
        tx.audit("controller", "exporter lost", namespace=exporter.namespace, exporter=exporter.name)


_NEVER = float("inf")

# Built once: putting it together anew takes longer than running it, and it runs twice in every pass.
_DEADLINES = select(
    select(func.min(Lease.expires_at)).where(~Lease.ended).scalar_subquery(),
    select(func.min(Lease.silent_at)).where(~Lease.ended, Lease.silent_at.is_not(None)).scalar_subquery(),
    select(func.min(Lease.preempted_at)).where(~Lease.ended, Lease.preempted_at.is_not(None)).scalar_subquery(),
    select(func.min(Exporter.last_seen)).where(Exporter.online, ~Exporter.connected).scalar_subquery(),
    select(func.min(Lease.begin_time))
    .where(~Lease.ended, Lease.exporter_id.is_(None), Lease.begin_time > bindparam("now", type_=Double))
    .scalar_subquery(),
)


def _deadlines(tx: Transaction, policy: SchedulePolicy) -> tuple[float, float, float, float, float]:
    """When the first lease expires, is silent for too long, has to go; when an exporter is lost, a lease begins."""
    expires, silent, preempted, seen, begins = tx.session.execute(_DEADLINES, {"now": tx.now}).one()
    return (
        _or_never(expires),
        _or_never(silent),
        _or_never(preempted),
        _or_never(seen) + policy.offline_after,
        _or_never(begins),
    )


def _or_never(time: float | None) -> float:
    return _NEVER if time is None else time
