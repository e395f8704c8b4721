# SPDX-License-Identifier: Apache-2.0
"""Who calls, by the metadata of a call."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from jumpstarter_controller.errors import Refused, invalid, permission_denied
from jumpstarter_controller.identity import Caller, Identity, Kind

__all__ = ["authenticate", "bearer_token"]

#: What messages call the proof of an identity.
_PROOFS = {"token": "token", "oidc": "token", "certificate": "certificate"}


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
    """The caller, who must be of this kind. The token or certificate decides; headers that contradict it are refused.

    The call ends when the caller loses access while it runs.
    """
    caller = await _proven(identity, context)
    stated = _values(context, "jumpstarter-kind")
    if (kind is not None and caller.kind != kind) or any(value.lower() != caller.kind for value in stated):
        raise invalid(f"object kind mismatch: the {_PROOFS[caller.method]} belongs to a {caller.kind}")
    for header, value in (("jumpstarter-namespace", caller.namespace), ("jumpstarter-name", caller.name)):
        if any(given != value for given in _values(context, header)):
            raise permission_denied(
                f"permission denied for {caller}: the {_PROOFS[caller.method]} does not belong to the {header} given"
            )
    task = asyncio.current_task()
    if task is not None:
        identity.serves(task, caller)
    return caller


async def _proven(identity: Identity, context: Any) -> Caller:
    holder = None
    if identity.certificates and (shown := (context.auth_context() or {}).get("x509_pem_cert")):
        holder = await identity.of_certificate(shown[0])
    if holder is not None and not _values(context, "authorization"):
        return holder
    caller = await identity.authenticate(bearer_token(context))
    if holder is not None and holder.id != caller.id:
        raise permission_denied(f"permission denied for {caller}: the connection's certificate is that of {holder}")
    return caller
