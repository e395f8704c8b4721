# SPDX-License-Identifier: Apache-2.0
"""Tokens: who somebody is (clients, exporters), and which tunnel somebody may join.

All are JWTs signed with ES256 by random keys that live in the database; ``kid`` names the key, the newest signs. A
token of a client or exporter counts only while its row in the database says so, which makes it revocable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal
from uuid import uuid4

import grpc
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import select

from jumpstarter_controller.errors import Refused
from jumpstarter_controller.state.database import Database, Transaction
from jumpstarter_controller.state.models import Client, Exporter, SigningKey, Token

__all__ = [
    "Caller",
    "Identity",
    "Kind",
    "Role",
    "Ticket",
    "ensure_key",
    "issue_token",
    "retire_keys",
    "revoke_tokens",
    "rotate_keys",
]

Kind = Literal["client", "exporter"]
Role = Literal["client", "exporter"]

ISSUER = "https://jumpstarter.lab/controller"
AUDIENCE = "jumpstarter"
# What a dial token of Jumpstarter says of itself.
DIAL_ISSUER = "https://jumpstarter.dev/stream"
DIAL_AUDIENCE = "https://jumpstarter.dev/router"
_ALGORITHM = "ES256"

#: Seconds that both ends have to join the tunnel they were told of.
DIAL_SECONDS = 60.0


@dataclass(frozen=True)
class Caller:
    """Who calls, and the jti of the token that says so."""

    kind: Kind
    id: str
    namespace: str
    name: str
    jti: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


@dataclass(frozen=True)
class Ticket:
    """What a dial token permits: one end (`role`) of one tunnel (`stream`), while `client_id` holds the lease."""

    stream: str
    role: Role
    namespace: str
    lease: str
    client_id: str
    jti: str
    expires_at: float


def _unauthenticated(message: str) -> Refused:
    return Refused(grpc.StatusCode.UNAUTHENTICATED, message)


def rotate_keys(tx: Transaction) -> SigningKey:
    """Make a new key, which signs from now on. Tokens of the others stay valid until they are retired."""
    private = ec.generate_private_key(ec.SECP256R1())
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key = SigningKey(kid=uuid4().hex, private_pem=pem.decode(), created_at=tx.now)
    tx.session.add(key)
    tx.session.flush()
    tx.audit("controller", "signing key made", kid=key.kid)
    return key


def retire_keys(tx: Transaction) -> int:
    """Retire every key but the newest: what they signed is refused. Returns how many."""
    kept = _newest_key(tx)
    old = tx.session.scalars(select(SigningKey).where(SigningKey.retired_at.is_(None), SigningKey.kid != kept.kid))
    count = 0
    for key in old:
        key.retired_at = tx.now
        count += 1
    tx.audit("controller", "signing keys retired", count=count)
    return count


def _newest_key(tx: Transaction) -> SigningKey:
    keys = select(SigningKey).where(SigningKey.retired_at.is_(None)).order_by(SigningKey.created_at.desc()).limit(1)
    return tx.session.scalars(keys).first() or rotate_keys(tx)


def _sign(key: SigningKey, claims: dict[str, Any]) -> str:
    return jwt.encode(claims, key.private_pem, algorithm=_ALGORITHM, headers={"kid": key.kid})


def issue_token(tx: Transaction, subject: Client | Exporter, lifetime: float) -> tuple[str, float]:
    """A new token for a client or exporter, good for ``lifetime`` seconds. Returns it and when it expires."""
    kind = "client" if isinstance(subject, Client) else "exporter"
    key = _newest_key(tx)
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
    tx.audit("controller", "token issued", subject=f"{kind} {subject.namespace}/{subject.name}", jti=row.jti)
    return _sign(key, claims), row.expires_at


def revoke_tokens(tx: Transaction, subject_id: str, but: str | None = None) -> int:
    """Revoke every token of a client or exporter (but the one with this jti). Returns how many."""
    tokens = select(Token).where(Token.subject_id == subject_id, Token.revoked_at.is_(None), Token.jti != (but or ""))
    found = tx.session.scalars(tokens).all()
    for token in found:
        token.revoked_at = tx.now
    tx.audit("controller", "tokens revoked", subject_id=subject_id, count=len(found))
    return len(found)


class Identity:
    """Verifies tokens, and makes those for tunnels."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._public: dict[str, Any] = {}

    async def authenticate(self, token: str) -> Caller:
        """Who this token belongs to. Raises UNAUTHENTICATED saying why it is refused."""
        return await self._database.read(self._authenticate, token)

    def _authenticate(self, tx: Transaction, token: str) -> Caller:
        claims = self._verify(tx, token, AUDIENCE, ISSUER)
        row = tx.session.get(Token, claims["jti"])
        if row is None or not str(claims["sub"]).endswith(f":{row.subject_id}"):
            raise _unauthenticated("token is unknown to this controller")
        if row.revoked_at is not None:
            raise _unauthenticated("token has been revoked")
        subject: Client | Exporter | None
        if row.kind == "client":
            subject = tx.session.get(Client, row.subject_id)
        else:
            subject = tx.session.get(Exporter, row.subject_id)
        if subject is None:
            raise _unauthenticated(f"the {row.kind} of this token does not exist any more")
        kind: Kind = "client" if row.kind == "client" else "exporter"
        return Caller(kind, subject.id, subject.namespace, subject.name, row.jti)

    def _verify(self, tx: Transaction, token: str, audience: str, issuer: str) -> dict[str, Any]:
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            claims: dict[str, Any] = jwt.decode(
                token,
                self._key(tx, kid),
                algorithms=[_ALGORITHM],
                audience=audience,
                issuer=issuer,
                # The times are compared with the database's clock, below.
                options={"require": ["exp", "jti", "sub"], "verify_exp": False, "verify_iat": False},
            )
        except jwt.InvalidTokenError as error:
            raise _unauthenticated(f"token is not valid: {error}") from error
        if not isinstance(claims["exp"], (int, float)) or claims["exp"] <= tx.now:
            raise _unauthenticated("token is expired")
        return claims

    def _key(self, tx: Transaction, kid: object) -> Any:
        row = tx.session.get(SigningKey, kid) if isinstance(kid, str) else None
        if row is None or row.retired_at is not None:
            raise _unauthenticated("token is signed by a key that this controller does not accept")
        if row.kid not in self._public:
            private = serialization.load_pem_private_key(row.private_pem.encode(), None)
            self._public[row.kid] = private.public_key()
        return self._public[row.kid]

    def dial_tokens(self, tx: Transaction, namespace: str, lease: str, client_id: str) -> dict[Role, str]:
        """The two tokens of a new tunnel, one for each role."""
        key, stream = _newest_key(tx), str(uuid4())
        common = {
            "iss": DIAL_ISSUER,
            "aud": DIAL_AUDIENCE,
            "sub": stream,
            "namespace": namespace,
            "lease": lease,
            "client": client_id,
            "iat": int(tx.now),
            "exp": tx.now + DIAL_SECONDS,
        }
        roles: tuple[Role, ...] = ("client", "exporter")
        return {role: _sign(key, {**common, "role": role, "jti": uuid4().hex}) for role in roles}

    async def ticket(self, token: str) -> Ticket:
        """What a dial token permits. Raises UNAUTHENTICATED."""
        claims = await self._database.read(self._verify, token, DIAL_AUDIENCE, DIAL_ISSUER)
        return Ticket(
            claims["sub"],
            claims["role"],
            claims["namespace"],
            claims["lease"],
            claims["client"],
            claims["jti"],
            claims["exp"],
        )


def ensure_key(tx: Transaction) -> None:
    """Make the first signing key, if there is none."""
    _newest_key(tx)
