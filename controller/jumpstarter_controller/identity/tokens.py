# SPDX-License-Identifier: Apache-2.0
"""Credentials of clients and exporters. Each has a row in the database, and is worth what the row says."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from uuid import uuid4

from sqlalchemy import select

from jumpstarter_controller.identity.callers import Caller, Kind
from jumpstarter_controller.identity.keys import IDENTITY_TOPIC, KeyRing, newest_key, sign, unauthenticated
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Client, Exporter, Router, Token

__all__ = [
    "AUDIENCE",
    "DELETED",
    "ISSUER",
    "SUBJECTS",
    "Subject",
    "caller_of",
    "certificate_id",
    "issue_token",
    "kind_of",
    "list_tokens",
    "revoke_tokens",
    "token_caller",
]

ISSUER = "https://jumpstarter.lab/controller"
AUDIENCE = "jumpstarter"

#: What the namespace of a deleted client or exporter begins with; its row stays while ended leases name it.
DELETED = "deleted/"

Subject = Client | Exporter | Router
SUBJECTS: dict[str, Any] = {"client": Client, "exporter": Exporter, "router": Router}


def kind_of(subject: Subject) -> Kind:
    """What a row is."""
    if isinstance(subject, Router):
        return "router"
    return "client" if isinstance(subject, Client) else "exporter"


def certificate_id(serial: int) -> str:
    """The id of a certificate among the tokens."""
    return f"certificate:{serial:x}"


def issue_token(tx: Transaction, subject: Subject, lifetime: float, actor: str = "controller") -> tuple[str, float]:
    """A new token for a client or exporter, good for ``lifetime`` seconds. Returns it and when it expires."""
    kind = kind_of(subject)
    key = newest_key(tx)
    row = Token(jti=uuid4().hex, kind=kind, subject_id=subject.id, issued_at=tx.now, expires_at=tx.now + lifetime)
    tx.session.add(row)
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": f"{kind}:{subject.namespace}:{subject.name}:{subject.id}",
        "jti": row.jti,
        "iat": int(row.issued_at),
        "exp": int(row.expires_at),
    }
    names = {kind: subject.name}
    tx.audit(actor, "token issued", namespace=subject.namespace, jti=row.jti, **names)
    return sign(key, claims), row.expires_at


def list_tokens(tx: Transaction, subject_id: str) -> list[Token]:
    """Every token and certificate of a client or exporter, the oldest first."""
    query = select(Token).where(Token.subject_id == subject_id).order_by(Token.issued_at, Token.jti)
    return list(tx.session.scalars(query))


def revoke_tokens(
    tx: Transaction,
    subject: Subject,
    actor: str = "controller",
    *,
    ids: Collection[str] | None = None,
    but: str | None = None,
) -> int:
    """Revoke the tokens and certificates of a client or exporter: all, or those with these ids; never ``but``.

    Returns how many. Streams that stand on them end.
    """
    tokens = select(Token).where(Token.subject_id == subject.id, Token.revoked_at.is_(None), Token.jti != (but or ""))
    found = [token for token in tx.session.scalars(tokens) if ids is None or token.jti in ids]
    for token in found:
        token.revoked_at = tx.now
    tx.touch(IDENTITY_TOPIC)
    names = {kind_of(subject): subject.name}
    tx.audit(actor, "tokens revoked", namespace=subject.namespace, jti=[token.jti for token in found], **names)
    return len(found)


def token_caller(tx: Transaction, ring: KeyRing, token: str) -> Caller:
    """Who this token belongs to. Raises UNAUTHENTICATED saying why it is refused."""
    claims = ring.verify(tx, token, AUDIENCE, ISSUER)
    row = tx.session.get(Token, claims["jti"]) if isinstance(claims["jti"], str) else None
    if row is None or not str(claims["sub"]).endswith(f":{row.subject_id}"):
        raise unauthenticated("token is unknown to this controller")
    return caller_of(tx, row, "token")


def caller_of(tx: Transaction, row: Token, what: str) -> Caller:
    """Who a token or certificate (``what``) belongs to. Raises UNAUTHENTICATED."""
    if row.revoked_at is not None:
        raise unauthenticated(f"{what} has been revoked")
    if row.expires_at <= tx.now:
        raise unauthenticated(f"{what} is expired")
    model = SUBJECTS.get(row.kind)
    subject: Subject | None = None if model is None else tx.session.get(model, row.subject_id)
    if subject is None or subject.namespace.startswith(DELETED):
        raise unauthenticated(f"the {row.kind} of this {what} does not exist any more")
    return Caller(
        kind=kind_of(subject),
        id=subject.id,
        namespace=subject.namespace,
        name=subject.name,
        jti=row.jti,
        administrator=isinstance(subject, Client) and subject.administrator,
        method="token" if what == "token" else "certificate",
        expires_at=row.expires_at if what == "token" else None,
    )
