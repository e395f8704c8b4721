# SPDX-License-Identifier: Apache-2.0
"""The keys that sign: random, in the database, named by ``kid``. The newest signs, all that are not retired verify."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import grpc
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import select

from jumpstarter_controller.errors import Refused
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import SigningKey

__all__ = [
    "ALGORITHM",
    "IDENTITY_TOPIC",
    "MAX_TOKEN",
    "KeyRing",
    "ensure_key",
    "newest_key",
    "public_keys",
    "retire_keys",
    "rotate_keys",
    "sign",
    "unauthenticated",
]

ALGORITHM = "ES256"

#: Bus topic: something that was accepted as proof of an identity may not be any more.
IDENTITY_TOPIC = "identity"

#: Characters of a token at most. gRPC does not carry more in one header by default.
MAX_TOKEN = 16384


def unauthenticated(message: str) -> Refused:
    """UNAUTHENTICATED: the caller has not proven who it is."""
    return Refused(grpc.StatusCode.UNAUTHENTICATED, message)


def rotate_keys(tx: Transaction, actor: str = "controller") -> SigningKey:
    """Make a new key, which signs from now on. Tokens of the others stay valid until they are retired."""
    private = ec.generate_private_key(ec.SECP256R1())
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key = SigningKey(kid=uuid4().hex, private_pem=pem.decode(), created_at=tx.now)
    tx.session.add(key)
    tx.session.flush()
    tx.touch(IDENTITY_TOPIC)
    tx.audit(actor, "signing key made", kid=key.kid)
    return key


def retire_keys(tx: Transaction, actor: str = "controller") -> int:
    """Retire every key but the newest: what they signed is refused. Returns how many."""
    kept = newest_key(tx)
    old = tx.session.scalars(select(SigningKey).where(SigningKey.retired_at.is_(None), SigningKey.kid != kept.kid))
    count = 0
    for key in old:
        key.retired_at = tx.now
        count += 1
    tx.touch(IDENTITY_TOPIC)
    tx.audit(actor, "signing keys retired", count=count)
    return count


def newest_key(tx: Transaction) -> SigningKey:
    """The key that signs; made when there is none."""
    keys = select(SigningKey).where(SigningKey.retired_at.is_(None)).order_by(SigningKey.created_at.desc()).limit(1)
    return tx.session.scalars(keys).first() or rotate_keys(tx)


def ensure_key(tx: Transaction) -> None:
    """Make the first signing key, if there is none."""
    newest_key(tx)


def public_keys(tx: Transaction) -> dict[str, str]:
    """The keys that verify, by kid: SubjectPublicKeyInfo, PEM."""
    rows = tx.session.scalars(select(SigningKey).where(SigningKey.retired_at.is_(None)))
    return {
        row.kid: _public(row)
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
        for row in rows
    }


def _public(row: SigningKey) -> Any:
    return serialization.load_pem_private_key(row.private_pem.encode(), None).public_key()


def sign(key: SigningKey, claims: dict[str, Any]) -> str:
    """A token that says ``claims``."""
    return jwt.encode(claims, key.private_pem, algorithm=ALGORITHM, headers={"kid": key.kid})


class KeyRing:
    """Verifies what the database's keys have signed. Public keys are parsed once."""

    def __init__(self) -> None:
        self._public: dict[str, Any] = {}

    def verify(self, tx: Transaction, token: str, audience: str, issuer: str) -> dict[str, Any]:
        """The claims of a token, which has not expired. Raises UNAUTHENTICATED."""
        if len(token) > MAX_TOKEN:
            raise unauthenticated(f"token is not valid: it is longer than {MAX_TOKEN} characters")
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._key(tx, jwt.get_unverified_header(token).get("kid")),
                algorithms=[ALGORITHM],
                audience=audience,
                issuer=issuer,
                # The times are compared with the database's clock, below.
                options={"require": ["exp", "jti", "sub"], "verify_exp": False, "verify_iat": False},
            )
        except (jwt.InvalidTokenError, UnicodeError) as error:
            raise unauthenticated(f"token is not valid: {error}") from error
        if not isinstance(claims["exp"], (int, float)) or claims["exp"] <= tx.now:
            raise unauthenticated("token is expired")
        return claims

    def _key(self, tx: Transaction, kid: object) -> Any:
        row = tx.session.get(SigningKey, kid) if isinstance(kid, str) else None
        if row is None or row.retired_at is not None:
            raise unauthenticated("token is signed by a key that this controller does not accept")
        if row.kid not in self._public:
            self._public[row.kid] = _public(row)
        return self._public[row.kid]
