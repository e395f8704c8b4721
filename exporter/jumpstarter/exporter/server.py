# SPDX-License-Identifier: Apache-2.0
"""Serve a session on a unix socket or on TCP."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc.aio import ServerInterceptor

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.common.grpc import PASSPHRASE_HEADER, server_options, stop_server
from jumpstarter.exporter.session import Session
from jumpstarter.streams.router import stream_handler
from jumpstarter_protocol.jumpstarter.lab.v1 import lab_pb2_grpc
from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2_grpc

__all__ = ["TcpListener", "UnixListener", "serve_on", "serve_session"]

logger = logging.getLogger(__name__)

#: Seconds a wrong passphrase has to wait for its answer: guessing online is hopeless, a typo is bearable.
_WRONG_PASSPHRASE_DELAY = 1.0


@dataclass(frozen=True)
class UnixListener:
    """A unix socket, reachable for whoever may enter its folder. The socket file gets mode 0600."""

    path: str


@dataclass(frozen=True)
class TcpListener:
    """A TCP port (0: any free one).

    certificate, key: PEM; without them ``insecure`` must be True. client_ca: PEM of the authority that clients'
    certificates must come from. passphrase: what clients must send with every call.
    """

    host: str = "127.0.0.1"
    port: int = 0
    certificate: bytes | None = None
    key: bytes | None = None
    client_ca: bytes | None = None
    insecure: bool = False
    passphrase: str | None = None


class _Passphrase(ServerInterceptor):
    """Refuse calls that do not bring the passphrase."""

    def __init__(self, passphrase: str) -> None:
        self._expected = passphrase.encode()

    async def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        given = next((v for k, v in details.invocation_metadata or () if k == PASSPHRASE_HEADER), "")
        given = given if isinstance(given, bytes) else given.encode()
        handler = await continuation(details)
        if hmac.compare_digest(given, self._expected) or handler is None:
            return handler

        async def refuse(_: Any, context: Any) -> None:
            await asyncio.sleep(_WRONG_PASSPHRASE_DELAY)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "missing or wrong passphrase")

        async def refuse_stream(_: Any, context: Any) -> AsyncIterator[None]:
            await refuse(_, context)
            yield

        if handler.request_streaming:
            make = grpc.stream_stream_rpc_method_handler if handler.response_streaming else None
        else:
            make = grpc.unary_stream_rpc_method_handler if handler.response_streaming else None
        if make is None:
            return grpc.unary_unary_rpc_method_handler(refuse)
        return make(refuse_stream)


def _register(servicer: Any, server: Any) -> None:
    jumpstarter_pb2_grpc.add_ExporterServiceServicer_to_server(servicer, server)
    lab_pb2_grpc.add_LabServiceServicer_to_server(servicer, server)
    server.add_generic_rpc_handlers((stream_handler(servicer.Stream),))


def _bind(server: Any, listener: UnixListener | TcpListener) -> str:
    """Bind and return the address clients use."""
    if isinstance(listener, UnixListener):
        if len(os.fsencode(listener.path)) > 107:
            raise ConfigurationError(f"the socket path {listener.path} is longer than the 107 bytes a system allows")
        old = os.umask(0o077)
        try:
            server.add_insecure_port(f"unix:{listener.path}")
        except RuntimeError as error:
            reason = _bind_reason(error)
            raise ConfigurationError(f"cannot listen on the unix socket {listener.path}: {reason}") from error
        finally:
            os.umask(old)
        return listener.path
    host = f"[{listener.host}]" if ":" in listener.host and not listener.host.startswith("[") else listener.host
    where = f"{host}:{listener.port}"
    if listener.certificate and listener.key:
        credentials = grpc.ssl_server_credentials(
            [(listener.key, listener.certificate)], listener.client_ca, require_client_auth=bool(listener.client_ca)
        )

        def add() -> int:
            port: int = server.add_secure_port(where, credentials)
            return port
    elif listener.insecure:

        def add() -> int:
            port: int = server.add_insecure_port(where)
            return port
    else:
        raise ConfigurationError(
            f"refusing to serve {where} without TLS: give a certificate and its key, or say that it shall be insecure"
        )
    try:
        port = add()
    except RuntimeError as error:
        raise ConfigurationError(f"cannot listen on {where}: {_bind_reason(error)}") from error
    if not port:
        raise ConfigurationError(
            f"cannot listen on {where}: the address is in use or the certificate and key do not fit"
        )
    return f"{host}:{port}"


def _bind_reason(error: RuntimeError) -> str:
    text = str(error)
    for reason in ("Address already in use", "Permission denied", "No such file or directory"):
        if reason.lower() in text.lower():
            return reason.lower()
    return "the address is in use, not local, or not permitted"


@asynccontextmanager
async def serve_session(
    session: Session, *listeners: UnixListener | TcpListener, grace: float = 0.5
) -> AsyncIterator[list[str]]:
    """Serve ``session`` until the context ends; yields the addresses, one per listener.

    Every listener has a server of its own, so that a passphrase guards TCP and not the unix socket beside it. On exit
    running calls get ``grace`` seconds, then the session is ended: what it switched on is switched off.

    Raises ConfigurationError for an address that cannot be bound.
    """
    async with AsyncExitStack() as stack:
        stack.push_async_callback(session.end)
        addresses = []
        for listener in listeners:
            addresses.append(await stack.enter_async_context(serve_on(session, listener, grace=grace)))
        yield addresses


@asynccontextmanager
async def serve_on(servicer: Any, listener: UnixListener | TcpListener, *, grace: float = 0.5) -> AsyncIterator[str]:
    """Serve a session, or something in front of one, on one listener; yields its address.

    On exit running calls get ``grace`` seconds. Raises ConfigurationError for an address that cannot be bound.
    """
    interceptors = []
    if isinstance(listener, TcpListener) and listener.passphrase:
        interceptors.append(_Passphrase(listener.passphrase))
    server = grpc.aio.server(interceptors=interceptors, options=server_options())
    _register(servicer, server)
    try:
        address = _bind(server, listener)
    except BaseException:
        # grpc.aio crashes the process when it frees a server that was never started and stopped.
        await server.start()
        await stop_server(server, None)
        raise
    await server.start()
    try:
        yield address
    finally:
        await stop_server(server, grace)
        if isinstance(listener, UnixListener):
            Path(listener.path).unlink(missing_ok=True)
