# SPDX-License-Identifier: Apache-2.0
"""A stream ends for its caller with the status that it has, whatever was being written when it ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc.aio import EOF

from jumpstarter_controller.errors import Refused, failed_precondition
from jumpstarter_controller.identity import Caller
from jumpstarter_controller.identity.calls import OpenCalls
from jumpstarter_controller.services.binding import Calls

Behavior = Callable[[Any, Any], Awaitable[None]]
Opener = Callable[[], Any]

#: More than the windows of a connection take while nobody reads.
_MUCH = bytes(4 << 20)


@asynccontextmanager
async def _served(behavior: Behavior) -> AsyncIterator[Opener]:
    """A server with one streaming method; yields what begins a call of it."""
    handler = grpc.stream_stream_rpc_method_handler(behavior)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Service", {"Stream": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    options = [("grpc.max_receive_message_length", -1)]
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            yield channel.stream_stream("/Service/Stream")
    finally:
        await server.stop(0)


def _guarded(behavior: Behavior) -> Behavior:
    return Calls().guarded(behavior, "Service.Stream")


async def _outcome(call: Any) -> tuple[int, str, str]:
    """Messages that came, code and text."""
    got = 0
    try:
        async with asyncio.timeout(60):
            while await call.read() is not EOF:
                got += 1
            return got, (await call.code()).name, await call.details()
    except grpc.aio.AioRpcError as error:
        return got, error.code().name, error.details() or ""


async def _write_midway(context: Any, message: bytes) -> None:
    """Begin to write a message, and give up after the first step."""
    write = asyncio.create_task(context.write(message))
    await asyncio.sleep(0)  # it has handed the message to core, which does not answer before this loop runs on
    assert not write.done()
    write.cancel()
    await asyncio.gather(write, return_exceptions=True)


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("message", [b"x", _MUCH], ids=["small", "blocked"])
def test_a_write_that_was_cancelled_midway_keeps_no_status_back(before: int, message: bytes) -> None:
    async def behavior(_: Any, context: Any) -> None:
        for _ in range(before):
            await context.write(b"before")
        await _write_midway(context, message)
        raise failed_precondition("because")

    async def body() -> None:
        async with _served(_guarded(behavior)) as begin:
            for _ in range(20):
                assert await _outcome(begin()) == (before + 1, "FAILED_PRECONDITION", "because")

    asyncio.run(body())


def test_nor_does_it_keep_back_a_good_end() -> None:
    async def behavior(_: Any, context: Any) -> None:
        await _write_midway(context, b"x")

    async def body() -> None:
        async with _served(_guarded(behavior)) as begin:
            assert await _outcome(begin()) == (1, "OK", "")

    asyncio.run(body())


@pytest.mark.parametrize("steps", range(6))
def test_callers_who_lose_their_rights_are_told_at_any_moment(steps: int) -> None:
    """However far the call has come when it is ended: its headers are on their way, or its first message is."""
    opened = OpenCalls()
    alice = Caller("client", "id", "default", "alice")

    async def behavior(_: Any, context: Any) -> None:
        while True:
            await context.write(b"x" * 1000)

    async def ending(requests: Any, context: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        opened.add(task, alice)
        after(steps)
        await guarded(requests, context)

    def after(left: int) -> None:
        """End the calls, that many turns of the event loop from now."""
        if left:
            asyncio.get_running_loop().call_soon(after, left - 1)
        else:
            opened.end({alice: Refused(grpc.StatusCode.UNAUTHENTICATED, "revoked")})

    guarded = _guarded(behavior)

    async def body() -> None:
        async with _served(ending) as begin:
            for _ in range(20):
                _, code, text = await _outcome(begin())
                assert (code, text) == ("UNAUTHENTICATED", "revoked")

    asyncio.run(body())


def test_a_server_that_ends_waits_until_every_stream_was_told() -> None:
    """Its grace for calls that go on is short; a stream that has something to write down first may need longer."""
    calls = Calls()

    async def body() -> None:
        began, written = asyncio.Event(), asyncio.Event()

        async def behavior(_: Any, context: Any) -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                await written.wait()

        async with _served(calls.guarded(behavior, "Service.Stream")) as begin:
            call = begin()
            outcome = asyncio.create_task(_outcome(call))
            await began.wait()
            stopping = asyncio.create_task(calls.stop())
            done, _ = await asyncio.wait({stopping}, timeout=0.1)
            assert not done
            written.set()
            await stopping
            assert await outcome == (0, "UNAVAILABLE", "the controller is stopping; connect again")

    asyncio.run(body())
