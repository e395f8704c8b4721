# SPDX-License-Identifier: Apache-2.0
"""What clients do with leases: create, change, give back, look up. Transactions for `Lab.change` and reads."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from uuid import uuid4

import grpc
from sqlalchemy import select

from jumpstarter.common.selectors import SelectorError, check_label, parse_selector
from jumpstarter_controller.errors import Refused, failed_precondition, invalid, not_found, permission_denied
from jumpstarter_controller.identity import Caller
from jumpstarter_controller.leases.access import AccessRules
from jumpstarter_controller.leases.conditions import READY, has_reason
from jumpstarter_controller.leases.schedule import end_lease, exporter_topic, lease_topic
from jumpstarter_controller.leases.times import Times, change_times, expiry, resolve_times
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Client, Exporter, Lease

__all__ = [
    "LeaseChange",
    "LeaseRequest",
    "create_lease",
    "find_lease",
    "find_own_lease",
    "release_lease",
    "update_lease",
]

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_TAG = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_MAX_TAGS = 10
_MAX_CONTEXT = 8


@dataclass(frozen=True)
class LeaseRequest:
    """What a client asks for. name: "" for one of our choice. Times in seconds (since 1970 UTC)."""

    name: str = ""
    selector: str = ""
    exporter_name: str | None = None
    duration: float | None = None
    begin: float | None = None
    end: float | None = None
    tags: dict[str, str] = field(default_factory=dict)
    context: dict[str, str] = field(default_factory=dict)
    allow_disabled: bool = False


@dataclass(frozen=True)
class LeaseChange:
    """What a client changes; None leaves a value as it is. client: the name of the new holder."""

    duration: float | None = None
    begin: float | None = None
    end: float | None = None
    client: str | None = None


def create_lease(tx: Transaction, caller: Caller, request: LeaseRequest) -> Lease:
    """Put a new lease into the queue. The pass that follows may already assign an exporter."""
    if not request.selector and not request.exporter_name:
        raise invalid("a lease needs a selector or an exporter_name")
    if request.name and not _NAME.fullmatch(request.name):
        raise invalid(
            f'lease id "{request.name}" must be at most 253 lower case letters, digits, "-" or ".", and begin and end '
            "with a letter or digit"
        )
    try:
        selector = str(parse_selector(request.selector).canonical())
    except SelectorError as error:
        raise invalid(str(error)) from error
    _check_tags(request.tags)
    _check_context(request.context)
    times = resolve_times(request.duration, request.begin, request.end)
    name = request.name or str(uuid4())
    if _lease(tx, caller.namespace, name) is not None:
        raise Refused(grpc.StatusCode.ALREADY_EXISTS, f"lease {name} exists already")
    lease = Lease(
        namespace=caller.namespace,
        name=name,
        client_id=caller.id,
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
        conditions=[],
        created_at=tx.now,
    )
    tx.session.add(lease)
    tx.session.flush()
    tx.session.refresh(lease)
    tx.audit(str(caller), "lease created", lease=name, selector=selector, duration=times.duration)
    return lease


def update_lease(tx: Transaction, caller: Caller, name: str, change: LeaseChange) -> Lease:
    """Change times or the holder. What the policies forbid at creation they forbid here."""
    lease = find_own_lease(tx, caller, name, "UpdateLease permission denied")
    if lease.ended:
        raise failed_precondition(f"cannot update lease {name}: lease has already ended")
    if change.begin is not None and lease.exporter_id is not None:
        raise failed_precondition("cannot update BeginTime: lease has already started")
    if change.client is not None and change.client != lease.client.name:
        _transfer(tx, lease, change.client)
    if (change.duration, change.begin, change.end) != (None, None, None):
        times = change_times(
            Times(lease.duration, lease.begin_time, lease.end_time),
            lease.effective_begin,
            duration=change.duration,
            begin=change.begin,
            end=change.end,
        )
        lease.duration, lease.begin_time, lease.end_time = times
        lease.expires_at = expiry(times, lease.effective_begin)
    if lease.exporter is not None:
        access = AccessRules.of(tx.session, lease.namespace)
        if access.priority(lease.exporter.all_labels, lease.client.labels, lease.duration) is None:
            raise permission_denied(
                f"permission denied: no policy lets client {lease.client.name} have exporter {lease.exporter.name} "
                f"for {lease.duration:g}s"
            )
    tx.touch(lease_topic(lease.namespace, lease.name))
    tx.audit(str(caller), "lease updated", lease=name, duration=lease.duration, client=lease.client.name)
    return lease


def _transfer(tx: Transaction, lease: Lease, to: str) -> None:
    if lease.exporter_id is None:
        raise failed_precondition("cannot transfer lease: lease has not started yet")
    new = tx.session.scalars(select(Client).where(Client.namespace == lease.namespace, Client.name == to)).first()
    if new is None:
        raise not_found(f"target client not found: {to}")
    lease.client_id, lease.client = new.id, new
    tx.touch(exporter_topic(lease.exporter_id))


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


def _check_tags(tags: dict[str, str]) -> None:
    if len(tags) > _MAX_TAGS:
        raise invalid(f"a lease can have at most {_MAX_TAGS} tags, got {len(tags)}")
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
        if not 1 <= len(key) <= 32 or len(value) > 64:
            raise invalid(f'context "{key}": keys have 1 to 32 characters, values at most 64')


def find_exporter(tx: Transaction, namespace: str, name: str) -> Exporter:
    """An exporter of the namespace. Raises NOT_FOUND."""
    exporter = tx.session.scalars(
        select(Exporter).where(Exporter.namespace == namespace, Exporter.name == name)
    ).first()
    if exporter is None:
        raise not_found(f"exporter {name} does not exist")
    return exporter
