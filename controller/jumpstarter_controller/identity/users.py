# SPDX-License-Identifier: Apache-2.0
"""Users of external issuers: who they are here. Transactions."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from sqlalchemy import select

from jumpstarter_controller.errors import Refused, permission_denied
from jumpstarter_controller.identity.callers import Caller
from jumpstarter_controller.identity.keys import IDENTITY_TOPIC, unauthenticated
from jumpstarter_controller.identity.oidc import Proven
from jumpstarter_controller.identity.tokens import DELETED, SUBJECTS, kind_of
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Client, Exporter, Token

__all__ = ["find_user", "lost_access", "provision_user"]

_MAX_NAME = 63
_BATCH = 500


def find_user(tx: Transaction, proven: Proven) -> Caller | None:
    """The client or exporter that this user is; None for nobody."""
    models: tuple[Any, ...] = (Client, Exporter)
    for model in models:
        subject = tx.session.scalars(select(model).where(model.username == proven.username)).first()
        if subject is not None:
            return Caller(
                kind=kind_of(subject),
                id=subject.id,
                namespace=subject.namespace,
                name=subject.name,
                administrator=isinstance(subject, Client) and subject.administrator,
                method="oidc",
                expires_at=proven.expires_at,
                username=proven.username,
            )
    return None


def provision_user(tx: Transaction, namespace: str, proven: Proven, prefix: str) -> None:
    """Make a client for this user, named after it. Raises PERMISSION_DENIED when the name is another's."""
    if find_user(tx, proven) is not None:
        return  # somebody else was faster
    name = re.sub(r"[^a-z0-9]+", "-", proven.username.removeprefix(prefix).lower()).strip("-")[:_MAX_NAME].strip("-")
    taken = tx.session.scalars(select(Client).where(Client.namespace == namespace, Client.name == name)).first()
    if not name or taken is not None:
        why = f'another client is called "{name}"' if name else "no name can be made of it"
        raise permission_denied(
            f'permission denied: no client can be made for the username "{proven.username}": {why}; an administrator '
            "gives it to one (jmp admin)"
        )
    tx.session.add(Client(namespace=namespace, name=name, username=proven.username, created_at=tx.now))
    tx.touch(IDENTITY_TOPIC)
    tx.audit("controller", "client provisioned", namespace=namespace, client=name, username=proven.username)


def lost_access(tx: Transaction, callers: Collection[Caller]) -> dict[Caller, Refused]:
    """Those who were let in and would not be again, with the reason. That a token has expired is none."""
    subjects: dict[str, Any] = {}
    for kind, model in SUBJECTS.items():
        for ids in _batches({caller.id for caller in callers if caller.kind == kind}):
            subjects.update((row.id, row) for row in tx.session.scalars(select(model).where(model.id.in_(ids))))
    proofs: set[str] = set()
    for ids in _batches({caller.jti for caller in callers if caller.method != "oidc"}):
        proofs.update(tx.session.scalars(select(Token.jti).where(Token.jti.in_(ids), Token.revoked_at.is_(None))))
    found = {caller: _why_lost(caller, subjects.get(caller.id), proofs) for caller in callers}
    return {caller: reason for caller, reason in found.items() if reason is not None}


def _why_lost(caller: Caller, subject: Any, proofs: Collection[str]) -> Refused | None:
    if subject is None or subject.namespace.startswith(DELETED):
        return unauthenticated(f"{caller} does not exist any more")
    if caller.method == "oidc":
        if subject.username == caller.username:
            return None
        return permission_denied(f'permission denied: {caller} is not the user "{caller.username}" any more')
    return None if caller.jti in proofs else unauthenticated(f"{caller.method} has been revoked")


def _batches(ids: Collection[str]) -> Iterator[list[str]]:
    """Few enough at a time for one statement."""
    whole = sorted(ids)
    return (whole[start : start + _BATCH] for start in range(0, len(whole), _BATCH))
