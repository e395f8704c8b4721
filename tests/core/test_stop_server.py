# SPDX-License-Identifier: Apache-2.0
"""Who is cancelled while its server stops is cancelled, and the server is stopped all the same."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from jumpstarter.common.grpc import stop_server


@pytest.mark.parametrize("turns", range(4))
def test_a_cancellation_at_the_moment_the_server_has_stopped_is_not_lost(turns: int) -> None:
    async def body() -> None:
        server = grpc.aio.server()
        server.add_insecure_port("127.0.0.1:0")
        await server.start()
        went_on = False

        async def stop() -> None:
            nonlocal went_on
            await stop_server(server, 10)
            went_on = True

        stopping = asyncio.create_task(stop())
        await server.wait_for_termination()  # woken by what wakes the other one, too
        for _ in range(turns):
            await asyncio.sleep(0)
        stopping.cancel()
        async with asyncio.timeout(10):
            await asyncio.wait({stopping})
        assert stopping.cancelled() or (went_on and not stopping.cancelling())

    asyncio.run(body())


def test_a_cancelled_stop_still_stops_the_server() -> None:
    """A call runs when the stop is cancelled: it gets its grace, then it is ended."""
    entered, over = asyncio.Event(), asyncio.Event()

    async def forever(_: bytes, __: object) -> bytes:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            over.set()
        raise AssertionError("unreachable")

    async def body() -> None:
        server = grpc.aio.server()
        handlers = {"Call": grpc.unary_unary_rpc_method_handler(forever)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Service", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/Service/Call")(b"")
            await entered.wait()
            stopping = asyncio.create_task(stop_server(server, 0.1))
            await asyncio.sleep(0)
            stopping.cancel()
            async with asyncio.timeout(10):
                with pytest.raises(asyncio.CancelledError):
                    await stopping
                await over.wait()
                with pytest.raises(grpc.aio.AioRpcError):
                    await call

    asyncio.run(body())
