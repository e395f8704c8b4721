# SPDX-License-Identifier: Apache-2.0
"""Who gets which exporter: one pass over everything that waits or is due, within one transaction.

The pass runs at the end of every transaction that may have changed its outcome, and at the moment it said itself.
It ends leases that are due, notices exporters that are lost, and walks the queue (priority, then first come).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import delete, func, or_, select

from jumpstarter.common.enums import ExporterStatus
from jumpstarter.common.selectors import Selector, parse_selector
from jumpstarter_controller.leases.access import AccessRules
from jumpstarter_controller.leases.conditions import INVALID, PENDING, READY, UNSATISFIABLE, with_condition
from jumpstarter_controller.leases.times import Times, expiry
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Exporter, Lease

__all__ = ["SchedulePolicy", "end_lease", "exporter_topic", "lease_topic", "schedule"]

_READY_STATUS = {ExporterStatus.UNSPECIFIED.value, ExporterStatus.AVAILABLE.value}


@dataclass(frozen=True)
class SchedulePolicy:
    """Seconds. offline_after: an exporter that was last seen so long ago is lost. retention: of ended leases."""

    offline_after: float = 60.0
    retention: float = 30 * 86400.0


def lease_topic(namespace: str, name: str) -> str:
    """Bus topic of a lease."""
    return f"lease/{namespace}/{name}"


def exporter_topic(exporter_id: str) -> str:
    """Bus topic of an exporter."""
    return f"exporter/{exporter_id}"


def end_lease(tx: Transaction, lease: Lease, reason: str, message: str, kind: str = READY, *, status: bool) -> None:
    """End a lease, for good."""
    lease.ended = True
    lease.effective_end = tx.now
    lease.conditions = with_condition(lease.conditions, kind, status, reason, message, tx.now)
    tx.touch(lease_topic(lease.namespace, lease.name))
    if lease.exporter_id is not None:
        tx.touch(exporter_topic(lease.exporter_id))
    exporter = None if lease.exporter is None else lease.exporter.name
    tx.audit("controller", f"lease ended: {reason}", lease=lease.name, exporter=exporter)


def schedule(tx: Transaction, policy: SchedulePolicy) -> float | None:
    """Bring everything up to date. Returns when this must run again at the latest (None: when something changes)."""
    _expire(tx)
    _notice_lost_exporters(tx, policy)
    _forget_ended_leases(tx, policy)
    tx.session.flush()
    _walk_the_queue(tx)
    tx.session.flush()
    return _next_deadline(tx, policy)


def _expire(tx: Transaction) -> None:
    due = select(Lease).where(Lease.ended.is_(False), Lease.expires_at <= tx.now)
    for lease in tx.session.scalars(due):
        end_lease(tx, lease, "Expired", "The lease has expired", status=False)


def _notice_lost_exporters(tx: Transaction, policy: SchedulePolicy) -> None:
    lost = select(Exporter).where(
        Exporter.online.is_(True),
        Exporter.connected.is_(False),
        Exporter.last_seen <= tx.now - policy.offline_after,
    )
    for exporter in tx.session.scalars(lost):
        exporter.online = False
        exporter.status = ExporterStatus.OFFLINE.value
        exporter.status_message = f"Connection lost - last seen more than {policy.offline_after:g} seconds ago"
        tx.touch(exporter_topic(exporter.id))
        tx.audit("controller", "exporter lost", exporter=exporter.name)


def _forget_ended_leases(tx: Transaction, policy: SchedulePolicy) -> None:
    tx.session.execute(delete(Lease).where(Lease.ended.is_(True), Lease.effective_end <= tx.now - policy.retention))


def _next_deadline(tx: Transaction, policy: SchedulePolicy) -> float | None:
    session = tx.session
    active = Lease.ended.is_(False)
    expires = session.scalar(select(func.min(Lease.expires_at)).where(active))
    begins = session.scalar(
        select(func.min(Lease.begin_time)).where(active, Lease.exporter_id.is_(None), Lease.begin_time > tx.now)
    )
    seen = session.scalar(
        select(func.min(Exporter.last_seen)).where(Exporter.online.is_(True), Exporter.connected.is_(False))
    )
    ended = session.scalar(select(func.min(Lease.effective_end)).where(Lease.ended.is_(True)))
    times = [
        expires,
        begins,
        None if seen is None else seen + policy.offline_after,
        None if ended is None else ended + policy.retention,
    ]
    return min((time for time in times if time is not None), default=None)


@dataclass
class _Wish:
    """A lease in the queue and the exporters it may have, the best first."""

    lease: Lease
    approved: list[tuple[int, Exporter]]

    @property
    def place(self) -> tuple[int, int]:
        return (-self.approved[0][0], self.lease.sequence)


def _walk_the_queue(tx: Transaction) -> None:
    waiting = tx.session.scalars(
        select(Lease).where(
            Lease.ended.is_(False),
            Lease.exporter_id.is_(None),
            or_(Lease.begin_time.is_(None), Lease.begin_time <= tx.now),
        )
    ).all()
    for namespace in {lease.namespace for lease in waiting}:
        _assign(tx, namespace, [lease for lease in waiting if lease.namespace == namespace])


def _assign(tx: Transaction, namespace: str, waiting: Iterable[Lease]) -> None:
    exporters = tx.session.scalars(select(Exporter).where(Exporter.namespace == namespace)).all()
    taken = set(
        tx.session.scalars(select(Lease.exporter_id).where(Lease.ended.is_(False), Lease.exporter_id.is_not(None)))
    )
    access = AccessRules.of(tx.session, namespace)
    wishes = [wish for lease in waiting if (wish := _wish(tx, lease, exporters, access)) is not None]
    for wish in sorted(wishes, key=lambda wish: wish.place):
        online = [(priority, e) for priority, e in wish.approved if e.online and e.connected and e.registered]
        free = [(priority, e) for priority, e in online if e.id not in taken]
        ready = [(priority, e) for priority, e in free if e.status in _READY_STATUS]
        if ready:
            priority, exporter = ready[0]
            taken.add(exporter.id)
            _acquire(tx, wish.lease, exporter, priority)
        elif free:
            status = ExporterStatus(free[0][1].status).name
            _wait(
                tx, wish.lease, "NotReady", f"exporter {free[0][1].name} is free but not ready: its status is {status}"
            )
        elif online:
            names = ", ".join(e.name for _, e in online[:5])
            _wait(tx, wish.lease, "NotAvailable", f"all {len(online)} matching exporters are leased: {names}")
        else:
            names = ", ".join(e.name for _, e in wish.approved[:5])
            _wait(tx, wish.lease, "Offline", f"all {len(wish.approved)} matching exporters are offline: {names}")


def _acquire(tx: Transaction, lease: Lease, exporter: Exporter, priority: int) -> None:
    lease.exporter_id, lease.exporter = exporter.id, exporter
    lease.priority = priority
    lease.effective_begin = tx.now
    lease.expires_at = expiry(Times(lease.duration, lease.begin_time, lease.end_time), tx.now)
    message = "An exporter has been acquired for the client"
    lease.conditions = with_condition(lease.conditions, READY, True, "Ready", message, tx.now)
    tx.touch(lease_topic(lease.namespace, lease.name), exporter_topic(exporter.id))
    tx.audit("controller", "lease acquired", lease=lease.name, exporter=exporter.name, client=lease.client.name)


def _wait(tx: Transaction, lease: Lease, reason: str, message: str) -> None:
    changed = with_condition(lease.conditions, PENDING, True, reason, message, tx.now)
    if changed != lease.conditions:
        lease.conditions = changed
        tx.touch(lease_topic(lease.namespace, lease.name))


def _wish(tx: Transaction, lease: Lease, exporters: Iterable[Exporter], access: AccessRules) -> _Wish | None:
    """The lease's candidates; None when there can be none, and then the lease has ended."""
    selector = parse_selector(lease.selector)
    found = _candidates(tx, lease, selector, exporters)
    if found is None:
        return None
    approved = [
        (priority, exporter)
        for exporter in found
        if (priority := access.priority(exporter.all_labels, lease.client.labels, lease.duration)) is not None
    ]
    if approved:
        approved.sort(key=lambda pair: (-pair[0], pair[1].name))
        return _Wish(lease, approved)
    refusing = access.why_not([exporter.all_labels for exporter in found], lease.client.labels)
    message = f"While there are {len(found)} exporters matching the selector, none of them are approved by any policy"
    if not found:
        message = f'While there are 0 exporters matching the selector "{selector}", none can be leased'
    elif refusing:
        message += f" for your client: {refusing}"
    _unsatisfiable(tx, lease, "NoAccess", message)
    return None


def _candidates(
    tx: Transaction, lease: Lease, selector: Selector, exporters: Iterable[Exporter]
) -> list[Exporter] | None:
    if lease.exporter_name is not None:
        exporter = next((e for e in exporters if e.name == lease.exporter_name), None)
        if exporter is None:
            _unsatisfiable(tx, lease, "ExporterNotFound", f"there is no exporter {lease.exporter_name}")
        elif not selector.matches(exporter.all_labels):
            message = f'exporter {exporter.name} does not match the selector "{selector}"'
            _unsatisfiable(tx, lease, "SelectorMismatch", message)
        elif not exporter.enabled and not lease.allow_disabled:
            _unsatisfiable(tx, lease, "ExporterDisabled", f"exporter {exporter.name} is disabled")
        else:
            return [exporter]
        return None
    if not selector:
        message = "The selector is empty and no exporter is named"
        end_lease(tx, lease, "InvalidSelector", message, INVALID, status=True)
        return None
    matching = [e for e in exporters if selector.matches(e.all_labels)]
    enabled = [e for e in matching if e.enabled or lease.allow_disabled]
    if matching and not enabled:
        _unsatisfiable(tx, lease, "AllDisabled", f"all {len(matching)} matching exporters are disabled")
        return None
    return enabled


def _unsatisfiable(tx: Transaction, lease: Lease, reason: str, message: str) -> None:
    end_lease(tx, lease, reason, message, UNSATISFIABLE, status=True)
