# SPDX-License-Identifier: Apache-2.0
"""Clients and exporters: make, change, delete. Transactions for `Lab.change`; every one names its actor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from sqlalchemy import delete, exists, select

from jumpstarter.common.enums import ExporterStatus
from jumpstarter_controller.administration.names import check_labels, check_name, check_namespace, check_username
from jumpstarter_controller.errors import Refused, failed_precondition, invalid, not_found
from jumpstarter_controller.identity.callers import Kind
from jumpstarter_controller.identity.keys import IDENTITY_TOPIC
from jumpstarter_controller.identity.tokens import DELETED, SUBJECTS, issue_token, revoke_tokens
from jumpstarter_controller.leases.schedule import end_lease, exporter_topic, lease_topic
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Client, Exporter, Lease, Token

__all__ = [
    "LOCAL_ACTOR",
    "NewSubject",
    "active_leases",
    "add_subject",
    "change_subject",
    "create_subject",
    "delete_subject",
    "end_any_lease",
    "find_subject",
    "revoke",
    "tidy",
]

#: What has labels, and may have a user name at an external issuer.
Named = Client | Exporter

#: Who acts by a command on the controller's host.
LOCAL_ACTOR = "administrator"

#: Seconds that the row of a token is kept after its end.
_TOKEN_ROWS = 30 * 86400.0


@dataclass(frozen=True)
class NewSubject:
    """What a new client or exporter is. administrator: of clients; enabled: of exporters."""

    labels: Mapping[str, str]
    username: str = ""
    administrator: bool = False
    enabled: bool = True


def _find(tx: Transaction, kind: Kind, namespace: str, name: str) -> Named | None:
    model = SUBJECTS[kind]
    found: Named | None = tx.session.scalars(
        select(model).where(model.namespace == namespace, model.name == name)
    ).first()
    return found


def find_subject(tx: Transaction, kind: Kind, namespace: str, name: str) -> Any:
    """A client or exporter. Raises NOT_FOUND."""
    subject = _find(tx, kind, namespace, name)
    if subject is None:
        raise not_found(f"{kind} {namespace}/{name} does not exist")
    return subject


def add_subject(tx: Transaction, actor: str, kind: Kind, namespace: str, name: str, new: NewSubject) -> Any:
    """A new client or exporter, without a token. Raises `Refused`."""
    check_name(kind, name)
    check_namespace(namespace)
    check_labels(new.labels)
    if _find(tx, kind, namespace, name) is not None:
        raise Refused(grpc.StatusCode.ALREADY_EXISTS, f"{kind} {namespace}/{name} exists already")
    subject: Named
    if kind == "client":
        subject = Client(administrator=new.administrator)
    else:
        subject = Exporter(enabled=new.enabled)
    subject.namespace, subject.name = namespace, name
    subject.labels = dict(new.labels)
    subject.created_at = tx.now
    tx.session.add(subject)
    tx.session.flush()
    _set_username(tx, subject, new.username)
    more: dict[str, Any] = {"username": new.username} if new.username else {}
    if new.administrator:
        more["administrator"] = True
    _audit(tx, actor, f"{kind} created", subject, labels=subject.labels, **more)
    return subject


def create_subject(
    tx: Transaction, kind: Kind, namespace: str, name: str, labels: Mapping[str, str], lifetime: float
) -> str:
    """A new client or exporter, made on the controller's host. Returns its token. Raises `Refused`."""
    subject = add_subject(tx, LOCAL_ACTOR, kind, namespace, name, NewSubject(labels))
    return issue_token(tx, subject, lifetime, LOCAL_ACTOR)[0]


def revoke(tx: Transaction, kind: Kind, namespace: str, name: str, lifetime: float) -> str:
    """Revoke every token of a client or exporter, on the controller's host. Returns a new one."""
    subject = find_subject(tx, kind, namespace, name)
    revoke_tokens(tx, subject, LOCAL_ACTOR)
    return issue_token(tx, subject, lifetime, LOCAL_ACTOR)[0]


def change_subject(
    tx: Transaction,
    actor: str,
    kind: Kind,
    namespace: str,
    name: str,
    *,
    labels: Mapping[str, str] | None = None,
    username: str | None = None,
    administrator: bool | None = None,
    enabled: bool | None = None,
) -> Any:
    """Change a client or exporter; None leaves a value as it is. Raises `Refused`."""
    subject = find_subject(tx, kind, namespace, name)
    changed: dict[str, Any] = {}
    if labels is not None and dict(labels) != subject.labels:
        check_labels(labels)
        subject.labels = changed["labels"] = dict(labels)
    if username is not None and username != (subject.username or ""):
        _set_username(tx, subject, username)
        changed["username"] = username
        tx.touch(IDENTITY_TOPIC)
    if isinstance(subject, Client):
        if administrator is not None and administrator != subject.administrator:
            subject.administrator = changed["administrator"] = administrator
            tx.touch(IDENTITY_TOPIC)
    elif enabled is not None and enabled != subject.enabled:
        subject.enabled = changed["enabled"] = enabled
    if changed:
        _wake(tx, subject)
        _audit(tx, actor, f"{kind} changed", subject, **changed)
    return subject


def active_leases(tx: Transaction, subject: Named) -> list[Lease]:
    """The leases that a client waits for or holds, or the one that holds an exporter."""
    mine = Lease.client_id == subject.id if isinstance(subject, Client) else Lease.exporter_id == subject.id
    query = select(Lease).where(mine, ~Lease.ended).order_by(Lease.sequence)
    return list(tx.session.scalars(query))


def delete_subject(tx: Transaction, actor: str, kind: Kind, namespace: str, name: str, *, force: bool) -> None:
    """Delete a client or exporter; what it was issued is worth nothing from now on.

    Raises FAILED_PRECONDITION when it has active leases, unless ``force``, which ends them. The row of one that ended
    leases name stays, out of every namespace, until they are forgotten.
    """
    subject = find_subject(tx, kind, namespace, name)
    active = active_leases(tx, subject)
    if active and not force:
        names = ", ".join(lease.name for lease in active[:5]) + (", ..." if len(active) > 5 else "")
        raise failed_precondition(
            f"{kind} {namespace}/{name} has {len(active)} active leases ({names}): end them first, or delete it with "
            "force"
        )
    _audit(tx, actor, f"{kind} deleted", subject, leases=[lease.name for lease in active])
    for lease in active:
        end_lease(tx, lease, "Released", f"The lease ended because {kind} {name} was deleted", status=False)
    revoke_tokens(tx, subject, actor)
    _wake(tx, subject)
    subject.username = None
    subject.namespace = f"{DELETED}{subject.id}"
    if isinstance(subject, Client):
        subject.administrator = False  # whoever counts administrators must not count this row
    else:
        subject.enabled = subject.registered = subject.connected = subject.online = False
        subject.status, subject.status_message = ExporterStatus.OFFLINE.value, "Exporter deleted"
        subject.devices = []
    tx.session.flush()
    tidy(tx)


def tidy(tx: Transaction) -> None:
    """Forget deleted clients and exporters that no lease names any more, and tokens that ended long ago."""
    for model, column in ((Client, Lease.client_id), (Exporter, Lease.exporter_id)):
        unused = ~exists().where(column == model.id)
        tx.session.execute(delete(model).where(model.namespace.startswith(DELETED), unused))
    tx.session.execute(delete(Token).where(Token.expires_at < tx.now - _TOKEN_ROWS))


def end_any_lease(tx: Transaction, actor: str, namespace: str, name: str, reason: str) -> None:
    """End anybody's lease. One that has ended stays as it is. Raises NOT_FOUND."""
    lease = tx.session.scalars(select(Lease).where(Lease.namespace == namespace, Lease.name == name)).first()
    if lease is None:
        raise not_found(f"lease {namespace}/{name} does not exist")
    if lease.ended:
        return
    exporter = None if lease.exporter is None else lease.exporter.name
    tx.audit(
        actor,
        "lease ended by an administrator",
        namespace=namespace,
        lease=name,
        exporter=exporter,
        client=lease.client.name,
        reason=reason,
    )
    why = f": {reason}" if reason else ""
    end_lease(tx, lease, "Released", f"The lease was ended by an administrator{why}", status=False)


def _set_username(tx: Transaction, subject: Named, username: str) -> None:
    check_username(username)
    if username:
        models: tuple[Any, ...] = (Client, Exporter)
        for model in models:
            other = tx.session.scalars(select(model).where(model.username == username)).first()
            if other is not None and other is not subject:
                kind = "client" if isinstance(other, Client) else "exporter"
                raise invalid(f'username "{username}" is that of {kind} {other.namespace}/{other.name} already')
    subject.username = username or None


def _wake(tx: Transaction, subject: Named) -> None:
    """Tell who watches this exporter, or leases that are about to be judged anew."""
    if isinstance(subject, Exporter):
        tx.touch(exporter_topic(subject.id))
    for lease in active_leases(tx, subject):
        tx.touch(lease_topic(lease.namespace, lease.name))


def _audit(tx: Transaction, actor: str, action: str, subject: Named, **detail: Any) -> None:
    kind = "client" if isinstance(subject, Client) else "exporter"
    column: dict[str, Any] = {kind: subject.name}
    tx.audit(actor, action, namespace=subject.namespace, **column, **detail)
