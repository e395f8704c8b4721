# SPDX-License-Identifier: Apache-2.0
"""jumpstarter_host of a direct reach: a unix socket whose calls go to the remote exporter over our own channel.

`j`, pytest and clients of the original can then use the leased device without knowing its address, certificate or
passphrase. Messages are passed on as bytes, so every method and every later addition to the protocol works.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

__all__ = ["serve_host_socket"]

_HOP_HEADERS = ("user-agent", "grpc-", ":", "te", "content-type")


@contextlib.asynccontextmanager
async def serve_host_socket(connection: Any, path: Path) -> AsyncIterator[None]:
    """Serve `path` for the block. connection: `jumpstarter.client.rpc.Connection` to pass everything to."""
    import grpc

    from jumpstarter.common.grpc import server_options, stop_server

    server = grpc.aio.server(options=server_options())
    server.add_generic_rpc_handlers((_passthrough(connection),))
    mask = os.umask(0o077)
    try:
        server.add_insecure_port(f"unix:{path}")
    finally:
        os.umask(mask)
    await server.start()
    try:
        yield
    finally:
        await stop_server(server, 0)
        path.unlink(missing_ok=True)


def _passthrough(connection: Any) -> Any:
    import grpc

    class Passthrough(grpc.GenericRpcHandler):
        """Handles every method as a stream of bytes both ways: what it is on the wire anyway."""

        def service(self, details: Any) -> Any:
            method = details.method

            async def handle(requests: AsyncIterator[bytes], context: Any) -> None:
                await _pass_on(connection, method, requests, context)

            return grpc.stream_stream_rpc_method_handler(handle)

    return Passthrough()


async def _pass_on(connection: Any, method: str, requests: AsyncIterator[bytes], context: Any) -> None:
    import grpc

    own = dict(connection.metadata)
    theirs = [(key, value) for key, value in context.invocation_metadata() or () if not key.startswith(_HOP_HEADERS)]
    # What the caller says wins, except for the passphrase, which only we know.
    metadata = theirs + [(key, value) for key, value in own.items() if _is_secret(key)]
    call = connection.channel.stream_stream(method)(metadata=metadata)
    upward = asyncio.create_task(_send(call, requests))
    try:
        await context.send_initial_metadata(tuple(await call.initial_metadata() or ()))
        while (message := await call.read()) is not grpc.aio.EOF:
            await context.write(message)
        code, trailing = await call.code(), tuple(await call.trailing_metadata() or ())
        if code is not grpc.StatusCode.OK:
            await context.abort(code, await call.details() or "", trailing)
        context.set_trailing_metadata(trailing)
    except grpc.aio.AioRpcError as error:
        await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
    finally:
        upward.cancel()
        call.cancel()
        await asyncio.wait([upward])


async def _send(call: Any, requests: AsyncIterator[bytes]) -> None:
    import grpc

    # The far end may finish first: then its status, read by the other direction, is what counts.
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        async for message in requests:
            await call.write(message)
        await call.done_writing()


def _is_secret(key: str) -> bool:
    from jumpstarter.common.grpc import PASSPHRASE_HEADER

    return key == PASSPHRASE_HEADER
