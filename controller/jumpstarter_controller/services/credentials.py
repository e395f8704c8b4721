# SPDX-License-Identifier: Apache-2.0
"""Who calls, by the metadata of a call."""

from __future__ import annotations

from typing import Any

import grpc

from jumpstarter_controller.errors import Refused, invalid, permission_denied
from jumpstarter_controller.identity import Caller, Identity, Kind

__all__ = ["authenticate", "bearer_token"]


def _values(context: Any, key: str) -> list[str]:
    return [value for name, value in context.invocation_metadata() or () if name == key]


def bearer_token(context: Any) -> str:
    """The call's token. Raises UNAUTHENTICATED or INVALID_ARGUMENT."""
    found = _values(context, "authorization")
    if not found:
        raise Refused(grpc.StatusCode.UNAUTHENTICATED, "the call carries no token: authorization is missing")
    if len(found) > 1 or not found[0].startswith("Bearer "):
        raise invalid('authorization must be given once, as "Bearer <token>"')
    return found[0].removeprefix("Bearer ")


async def authenticate(identity: Identity, context: Any, kind: Kind | None = None) -> Caller:
    """The caller, who must be of this kind. The token decides; headers that contradict it are refused."""
    caller = await identity.authenticate(bearer_token(context))
    stated = _values(context, "jumpstarter-kind")
    if (kind is not None and caller.kind != kind) or any(value.lower() != caller.kind for value in stated):
        raise invalid(f"object kind mismatch: the token belongs to a {caller.kind}")
    for header, value in (("jumpstarter-namespace", caller.namespace), ("jumpstarter-name", caller.name)):
        if any(given != value for given in _values(context, header)):
            raise permission_denied(f"permission denied for {caller}: the token does not belong to the {header} given")
    return caller
