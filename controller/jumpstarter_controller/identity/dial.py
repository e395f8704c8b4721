# SPDX-License-Identifier: Apache-2.0
"""Dial tokens: which tunnel somebody may join, at which end, through which router."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import jwt

from jumpstarter_controller.identity.callers import Role
from jumpstarter_controller.identity.keys import ALGORITHM, newest_key, sign, unauthenticated
from jumpstarter_controller.state.database import Transaction

__all__ = ["DIAL_AUDIENCE", "DIAL_ISSUER", "DIAL_SECONDS", "Ticket", "dial_tokens", "key_id", "read_ticket"]

# What a dial token of Jumpstarter says of itself.
DIAL_ISSUER = "https://jumpstarter.dev/stream"
DIAL_AUDIENCE = "https://jumpstarter.dev/router"

#: Seconds that both ends have to join the tunnel they were told of.
DIAL_SECONDS = 60.0

#: Characters of a dial token at most; ours have about 500.
_MAX_TOKEN = 4096
_CLAIMS = ["exp", "sub", "role", "namespace", "lease", "client", "jti"]


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


def _audience(instance: str) -> str:
    return f"{DIAL_AUDIENCE}/{instance}"


def dial_tokens(tx: Transaction, instance: str, namespace: str, lease: str, client_id: str) -> dict[Role, str]:
    """The two tokens of a new tunnel, one for each role.

    instance: of the router. It is another one each time the router starts, so a token that was used before a restart is
    worth nothing after it.
    """
    key, stream = newest_key(tx), str(uuid4())
    common = {
        "iss": DIAL_ISSUER,
        "aud": _audience(instance),
        "sub": stream,
        "namespace": namespace,
        "lease": lease,
        "client": client_id,
        "iat": int(tx.now),
        "exp": tx.now + DIAL_SECONDS,
    }
    roles: tuple[Role, ...] = ("client", "exporter")
    return {role: sign(key, {**common, "role": role, "jti": uuid4().hex}) for role in roles}


def key_id(token: str) -> str:
    """The key that a token says it is signed with. Raises UNAUTHENTICATED for what is no token."""
    if len(token) > _MAX_TOKEN:
        raise unauthenticated(f"token is not valid: it is longer than {_MAX_TOKEN} characters")
    try:
        kid = jwt.get_unverified_header(token).get("kid")
    except (jwt.InvalidTokenError, UnicodeError) as error:
        raise unauthenticated(f"token is not valid: {error}") from error
    if not isinstance(kid, str):
        raise unauthenticated("token is not valid: it names no key")
    return kid


def read_ticket(token: str, key: Any, instance: str, now: float) -> Ticket:
    """What a dial token permits, verified by this public key for this router. Raises UNAUTHENTICATED."""
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[ALGORITHM],
            audience=_audience(instance),
            issuer=DIAL_ISSUER,
            # The times are compared with the router's clock, below.
            options={"require": _CLAIMS, "verify_exp": False, "verify_iat": False},
        )
    except (jwt.InvalidTokenError, UnicodeError) as error:
        raise unauthenticated(f"token is not valid: {error}") from error
    if not isinstance(claims["exp"], (int, float)) or claims["exp"] <= now:
        raise unauthenticated("token is expired")
    return Ticket(
        stream=claims["sub"],
        role=claims["role"],
        namespace=claims["namespace"],
        lease=claims["lease"],
        client_id=claims["client"],
        jti=claims["jti"],
        expires_at=claims["exp"],
    )
