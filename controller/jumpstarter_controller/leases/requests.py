# SPDX-License-Identifier: Apache-2.0
"""What clients do with leases: create, change, give back, look up. Transactions for `Lab.change` and reads."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from uuid import uuid4

import grpc
from sqlalchemy import select

from jumpstarter.common.selectors import SelectorError, check_label
from jumpstarter_controller.errors import Refused, failed_precondition, invalid, not_found, permission_denied
from jumpstarter_controller.identity import Caller
from jumpstarter_controller.leases.access import AccessRules
from jumpstarter_controller.leases.calendar import check_extension, find_slot, holds_of, no_slot
from jumpstarter_controller.leases.catalogue import Candidates, Catalogue, Wanted
from jumpstarter_controller.leases.conditions import READY, has_reason
from jumpstarter_controller.leases.ending import end_lease, queue_topic, touch_lease
from jumpstarter_controller.leases.heartbeats import silent_time
from jumpstarter_controller.leases.times import Times, change_times, expiry, resolve_times
from jumpstarter_controller.selectors import read_selector
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Client, Exporter, Lease

__all__ = [
    "LeaseChange",
    "LeaseRequest",
    "Limits",
    "create_lease",
    "find_lease",
    "find_own_lease",
    "release_lease",
    "update_lease",
]

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_TAG = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_MAX_CONTEXT = 8


@dataclass(frozen=True)
class Limits:
    """max_tags: of a lease."""

    max_tags: int = 10


@dataclass(frozen=True)
class LeaseRequest:
    """What a client asks for. name: "" for one of our choice. Times in seconds (since 1970 UTC).

    heartbeat, wait_for_match, minimum: as in `Lease`.
    """

    name: str = ""
    selector: str = ""
    exporter_name: str | None = None
    duration: float | None = None
    begin: float | None = None
    end: float | None = None
    tags: dict[str, str] = field(default_factory=dict)
    context: dict[str, str] = field(default_factory=dict)
    allow_disabled: bool = False
    heartbeat: float | None = None
    wait_for_match: bool = False
    minimum: float | None = None


@dataclass(frozen=True)
class LeaseChange:
    """What a client changes; None leaves a value as it is. client: the name of the new holder.

    clear: "begin" and "end", to let the lease begin as soon as it can and run for its duration from then.
    """

    duration: float | None = None
    begin: float | None = None
    end: float | None = None
    client: str | None = None
    clear: frozenset[str] = frozenset()

    @property
    def changes_times(self) -> bool:
        """Whether it is about times."""
        return bool(self.clear) or (self.duration, self.begin, self.end) != (None, None, None)


def create_lease(
    tx: Transaction,
    caller: Caller,
    request: LeaseRequest,
    limits: Limits | None = None,
    catalogue: Catalogue | None = None,
) -> Lease:
    """Put a new lease into the queue. The pass that follows may already assign an exporter.

    One that begins later has an exporter reserved. Raises FAILED_PRECONDITION when none is free at that time.
    """
    if not request.selector and not request.exporter_name:
        raise invalid("a lease needs a selector or an exporter_name")
    if request.name and not _NAME.fullmatch(request.name):
        raise invalid(
            f'lease id "{request.name}" must be at most 253 lower case letters, digits, "-" or ".", and begin and end '
            "with a letter or digit"
        )
    if request.exporter_name and not _NAME.fullmatch(request.exporter_name):
        raise invalid(f'exporter_name "{request.exporter_name}" is not a name that an exporter can have')
    try:
        selector = str(read_selector(request.selector).canonical())
    except SelectorError as error:
        raise invalid(str(error)) from error
    _check_tags(request.tags, (limits or Limits()).max_tags)
    _check_context(request.context)
    times = resolve_times(request.duration, request.begin, request.end)
    minimum = request.minimum
    if minimum is not None and not 0 < minimum <= times.duration:
        raise invalid(f"minimum_duration must be positive and at most the duration, got {minimum:g}s")
    name = request.name or str(uuid4())
    if request.name and _lease(tx, caller.namespace, name) is not None:
        raise Refused(grpc.StatusCode.ALREADY_EXISTS, f"lease {name} exists already")
    client = tx.session.get(Client, caller.id)
    if client is None or client.namespace != caller.namespace:  # a deleted one may keep its row, in no namespace
        raise not_found(f"client {caller.namespace}/{caller.name} does not exist any more")
    lease = Lease(
        namespace=caller.namespace,
        name=name,
        client_id=client.id,
        client=client,
        exporter=None,
        selector=selector,
        exporter_name=request.exporter_name or None,
        allow_disabled=request.allow_disabled,
        tags=request.tags,
        context=request.context,
        duration=times.duration,
        begin_time=times.begin,
        end_time=times.end,
        expires_at=expiry(times, None),
        ended=False,
        heartbeat=request.heartbeat,
        heartbeat_at=None if request.heartbeat is None else tx.now,
        silent_at=None if request.heartbeat is None else silent_time(tx.now, request.heartbeat),
        wait_for_match=request.wait_for_match,
        minimum=minimum,
        conditions=[],
        created_at=tx.now,
    )
    tx.session.add(lease)
    tx.session.flush()
    _reserve(tx, lease, catalogue)
    tx.touch(queue_topic(caller.namespace))
    tx.audit(str(caller), "lease created", lease=name, selector=selector, duration=times.duration)
    return lease


def update_lease(
    tx: Transaction, caller: Caller, name: str, change: LeaseChange, catalogue: Catalogue | None = None
) -> Lease:
    """Change times or the holder. What policies and reservations forbid at creation they forbid here."""
    lease = find_own_lease(tx, caller, name, "UpdateLease permission denied")
    if lease.ended:
        raise failed_precondition(f"cannot update lease {name}: lease has already ended")
    if lease.exporter_id is not None and (change.begin is not None or "begin" in change.clear):
        raise failed_precondition("cannot update BeginTime: lease has already started")
    ended = lease.expires_at
    if change.client is not None and change.client != lease.client.name:
        _transfer(tx, lease, change.client)
    if change.changes_times:
        _change_times(lease, change)
    if lease.exporter is not None:
        _check_holding(tx, lease, ended)
    else:
        _check_waiting(tx, lease, change, catalogue)
    touch_lease(tx, lease)
    tx.touch(queue_topic(lease.namespace))
    tx.audit(str(caller), "lease updated", lease=name, duration=lease.duration, client=lease.client.name)
    return lease


def _change_times(lease: Lease, change: LeaseChange) -> None:
    times = change_times(
        Times(lease.duration, lease.begin_time, lease.end_time),
        lease.effective_begin,
        duration=change.duration,
        begin=change.begin,
        end=change.end,
        clear=change.clear,
    )
    lease.duration, lease.begin_time, lease.end_time = times
    lease.expires_at = expiry(times, lease.effective_begin)
    if lease.minimum is not None:
        lease.minimum = min(lease.minimum, lease.duration)


def _check_holding(tx: Transaction, lease: Lease, ended: float | None) -> None:
    """What the policies say to the times and the holder that a running lease gets, and whose its exporter is then.

    ended: when it would have ended before the change.
    """
    assert lease.exporter is not None
    access = AccessRules.of(tx.session, lease.namespace)
    grant = access.grant(lease.exporter.all_labels, lease.client.labels, lease.duration)
    if grant is None:
        raise permission_denied(
            f"permission denied: no policy lets client {lease.client.name} have exporter {lease.exporter.name} "
            f"for {lease.duration:g}s"
        )
    stays = lease.spot and not grant.spot  # it would not give way to a reservation any more
    lease.priority, lease.spot = grant.priority, grant.spot
    if lease.expires_at is not None and (stays or lease.expires_at > (ended or lease.expires_at)):
        check_extension(tx, lease, lease.expires_at)


def _check_waiting(tx: Transaction, lease: Lease, change: LeaseChange, catalogue: Catalogue | None) -> None:
    if not change.changes_times:
        return
    tx.session.flush()
    candidates = _candidates(tx, lease, catalogue)
    if candidates.refusal is not None and not lease.wait_for_match:
        raise permission_denied(f"permission denied: {candidates.refusal.message}")
    lease.reserved_id, lease.spot = None, False
    _reserve(tx, lease, catalogue)


def _candidates(tx: Transaction, lease: Lease, catalogue: Catalogue | None) -> Candidates:
    wanted = Wanted(lease.selector, lease.exporter_name, lease.allow_disabled, lease.duration, lease.client.labels)
    return (catalogue or Catalogue()).of(tx, lease.namespace).candidates(wanted)


def _reserve(tx: Transaction, lease: Lease, catalogue: Catalogue | None) -> None:
    """Keep an exporter for a lease that begins later. Raises FAILED_PRECONDITION."""
    begin, end = lease.begin_time, lease.expires_at
    if begin is None or end is None or begin <= tx.now:
        return
    candidates = _candidates(tx, lease, catalogue)
    if candidates.refusal is not None:
        return  # the pass says what becomes of it
    tx.session.flush()
    holds = holds_of(tx)
    board = find_slot(candidates, holds, begin, end, lease.sequence)
    if board is None:
        raise no_slot(candidates, holds, begin, end, lease.sequence)
    lease.reserved_id, lease.spot = board.id, candidates.grants[board.id].spot


def _transfer(tx: Transaction, lease: Lease, to: str) -> None:
    if lease.exporter_id is None:
        raise failed_precondition("cannot transfer lease: lease has not started yet")
    new = tx.session.scalars(select(Client).where(Client.namespace == lease.namespace, Client.name == to)).first()
    if new is None:
        raise not_found(f"target client not found: {to}")
    lease.client_id, lease.client = new.id, new
    lease.silent_at = None  # nobody has told the new holder to send heartbeats: the first one sets the time


def release_lease(tx: Transaction, caller: Caller, name: str, *, once: bool = False) -> None:
    """Give a lease back. Doing so again is allowed unless ``once``."""
    lease = find_own_lease(tx, caller, name, "ReleaseLease permission denied")
    if lease.ended:
        if once and has_reason(lease.conditions, READY, "Released"):
            raise failed_precondition(f"lease {name} has already been released")
        return
    tx.audit(str(caller), "lease released", lease=name)
    end_lease(tx, lease, "Released", "The lease was marked for release", status=False)


def _lease(tx: Transaction, namespace: str, name: str) -> Lease | None:
    return tx.session.scalars(select(Lease).where(Lease.namespace == namespace, Lease.name == name)).first()


def find_lease(tx: Transaction, namespace: str, name: str) -> Lease:
    """Any lease of the namespace. Raises NOT_FOUND."""
    lease = _lease(tx, namespace, name)
    if lease is None:
        raise not_found(f"lease {name} does not exist")
    return lease


def find_own_lease(tx: Transaction, caller: Caller, name: str, refusal: str = "permission denied") -> Lease:
    """A lease of the caller. Raises NOT_FOUND, or PERMISSION_DENIED with the text ``refusal``."""
    lease = find_lease(tx, caller.namespace, name)
    if lease.client_id != caller.id:
        raise permission_denied(refusal)
    return lease


def _check_tags(tags: dict[str, str], most: int) -> None:
    if len(tags) > most:
        raise invalid(f"a lease can have at most {most} tags, got {len(tags)}")
    for key, value in tags.items():
        if not _TAG.fullmatch(key) or len(key) > 63:
            raise invalid(f'tag "{key}" must be a simple name of at most 63 characters')
        try:
            check_label(key, value)
        except SelectorError as error:
            raise invalid(f"tag {error}") from error


def _check_context(context: dict[str, str]) -> None:
    if len(context) > _MAX_CONTEXT:
        raise invalid(f"a lease can have at most {_MAX_CONTEXT} context entries, got {len(context)}")
    for key, value in context.items():
        if not 1 <= len(key) <= 32 or len(value) > 64 or not (key + value).isprintable():
            raise invalid(f'context "{key}": keys have 1 to 32 printable characters, values at most 64')


def find_exporter(tx: Transaction, namespace: str, name: str) -> Exporter:
    """An exporter of the namespace. Raises NOT_FOUND."""
    exporter = tx.session.scalars(
        select(Exporter).where(Exporter.namespace == namespace, Exporter.name == name)
    ).first()
    if exporter is None:
        raise not_found(f"exporter {name} does not exist")
    return exporter
