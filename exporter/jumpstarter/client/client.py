# SPDX-License-Identifier: Apache-2.0
"""From an address to a tree of driver clients."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack, asynccontextmanager
from typing import Any
from uuid import UUID

from anyio.from_thread import BlockingPortal

from jumpstarter.client.aio import AsyncNode, RemoteSession, fetch_report, open_connection
from jumpstarter.client.base import DriverClient, StubDriverClient
from jumpstarter.client.rpc import Connection
from jumpstarter.common.exceptions import MissingDriverError
from jumpstarter.common.grpc import TLS
from jumpstarter.common.importlib import import_class

__all__ = ["client_from_channel", "client_from_path"]

logger = logging.getLogger(__name__)


async def _tree(
    connection: Connection, portal: BlockingPortal, stack: ExitStack, allow: Iterable[str], unsafe: bool
) -> DriverClient:
    session = RemoteSession(connection, await fetch_report(connection))
    await session.describe()
    return build_tree(session, portal, stack, allow, unsafe)


def build_tree(
    session: RemoteSession, portal: BlockingPortal, stack: ExitStack, allow: Iterable[str], unsafe: bool
) -> DriverClient:
    """The driver clients of a connected exporter; returns the root's. See `client_from_path` for the arguments."""
    connection = session.connection
    allow = list(allow)
    quiet = bool(os.environ.get("_JMP_SUPPRESS_DRIVER_WARNINGS"))

    def build(node: AsyncNode) -> DriverClient:
        children = {name: build(child) for name, child in node.children.items()}
        fields: dict[str, Any] = {
            "uuid": UUID(node.uuid),
            "labels": node.labels,
            "stub": connection.stub,
            "connection": connection,
            "path": node.path,
            "children": children,
            "portal": portal,
            "stack": stack,
            "description": node.description or None,
            "methods_description": node.methods_description,
            "methods": node.methods,
        }
        try:
            client_class = import_class(node.client_class, allow, unsafe, base=DriverClient)
        except (MissingDriverError, ImportError) as error:
            if not quiet:
                logger.warning('driver "%s" cannot be used here: %s', node.path, error)
            return StubDriverClient(**fields, problem=str(error))
        client: DriverClient = client_class(**fields)
        return client

    return build(session.root)


async def client_from_channel(
    channel: Any, portal: BlockingPortal, stack: ExitStack, allow: Iterable[str] = (), unsafe: bool = False
) -> DriverClient:
    """The client of the root driver behind a grpc.aio channel. Blocking calls go through the portal's loop."""
    return await _tree(Connection(channel), portal, stack, allow, unsafe)


@asynccontextmanager
async def client_from_path(
    path: str,
    portal: BlockingPortal,
    stack: ExitStack,
    allow: Iterable[str] = (),
    unsafe: bool = False,
    *,
    tls: TLS | None = None,
    tls_config: Any = None,
    grpc_options: dict[str, str | int] | None = None,
    insecure: bool = False,
    passphrase: str | None = None,
) -> AsyncIterator[DriverClient]:
    """The client of the root driver at a unix socket's path or ``host:port``.

    portal: the loop this runs in, for blocking calls from other threads. stack: closed by the caller before the
    connection. allow: globs of client classes that may be imported, unsafe: all of them. tls_config: the ``tls:`` block
    of a configuration file, an alternative to ``tls``.
    """
    if tls is None and tls_config is not None:
        insecure = insecure or bool(getattr(tls_config, "insecure", False))
        tls = TLS(ca=tls_config.ca_pem())
    connection = open_connection(path, tls=tls, insecure=insecure, passphrase=passphrase, grpc_options=grpc_options)
    try:
        yield await _tree(connection, portal, stack, allow, unsafe)
    finally:
        await connection.aclose()
