# SPDX-License-Identifier: Apache-2.0
"""Serve a driver in this process, for tests and interactive use."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from jumpstarter.common.enums import ExporterStatus

if TYPE_CHECKING:
    from jumpstarter.driver import Driver

__all__ = ["serve", "serve_async"]


@asynccontextmanager
async def serve_async(root_device: Driver, portal: BlockingPortal, stack: ExitStack) -> AsyncIterator[Any]:
    """Serve ``root_device`` on a private unix socket; yields the client of the root. Runs in the loop of ``portal``."""
    from jumpstarter.client.client import client_from_path
    from jumpstarter.exporter.server import UnixListener, serve_session
    from jumpstarter.exporter.session import Session

    with tempfile.TemporaryDirectory(prefix="jumpstarter-") as folder, Session(root_device=root_device) as session:
        async with serve_session(session, UnixListener(f"{folder}/socket"), grace=0) as (path,):
            session.update_status(ExporterStatus.LEASE_READY)
            async with client_from_path(path, portal, stack, allow=[], unsafe=True) as client:
                yield client


@contextmanager
def serve(root_device: Driver) -> Iterator[Any]:
    """Serve a driver in this process and yield its client.

    Everything is real: a gRPC server on a unix socket, a client over it. The session ends with the context.
    """
    with start_blocking_portal() as portal, ExitStack() as stack:
        with portal.wrap_async_context_manager(serve_async(root_device, portal, stack)) as client:
            try:
                yield client
            finally:
                stack.close()
