# SPDX-License-Identifier: Apache-2.0
"""Byte streams and resources: whole or an error, never silently short."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from anyio import BrokenResourceError, EndOfStream
from drivers_for_tests import EveryKind

from jumpstarter.common.exceptions import DriverError, DriverInvalidArgument, DriverMethodNotImplemented
from jumpstarter.common.utils import serve
from jumpstarter.streams.frames import DATA, GOAWAY, Frame, decode_frame, encode_frame
from jumpstarter_protocol import router_pb2


@pytest.fixture
def driver() -> EveryKind:
    return EveryKind()


@pytest.fixture
def client(driver: EveryKind) -> Iterator[Any]:
    with serve(driver) as client:
        yield client


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 1 << 20])
@pytest.mark.parametrize("kind", [DATA, GOAWAY])
def test_frames_are_the_bytes_protobuf_makes(size: int, kind: int) -> None:
    payload = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    message = router_pb2.StreamRequest(payload=payload, frame_type=kind)  # type: ignore[arg-type]
    assert encode_frame(Frame(payload, kind)) == message.SerializeToString()
    assert decode_frame(message.SerializeToString()) == Frame(payload, kind)


def test_frames_skip_fields_of_newer_peers() -> None:
    known = encode_frame(Frame(b"data", GOAWAY))
    assert decode_frame(b"\x1a\x03abc" + known + b"\x20\x05\x29" + b"8" * 8 + b"\x35" + b"4" * 4) == Frame(
        b"data", GOAWAY
    )


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\x05abc", b"\x0a" + b"\xff" * 12, b"\x0b", b"\x10", b"\x09\x01"])
def test_bytes_that_are_no_frame_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="stream frame"):
        decode_frame(data)


def test_a_stream_echoes_more_than_a_frame_and_ends(client: Any) -> None:
    with client.stream() as stream:
        data = bytes(range(256)) * 20000  # 5 MB
        client.portal.start_task_soon(lambda: stream.stream.send(data))
        got = b""
        while len(got) < len(data):
            got += stream.receive()
        assert got == data
        stream.send_eof()
        with pytest.raises(EndOfStream):
            stream.receive()


def test_open_stream_is_closed_by_close(client: Any) -> None:
    stream = client.open_stream()
    stream.send(b"x")
    assert stream.receive() == b"x"
    client.close()
    with pytest.raises(anyio.ClosedResourceError):
        stream.receive()


def test_a_stream_the_device_refuses_says_why(client: Any) -> None:
    with pytest.raises(DriverError, match=r"refuses: tcp 127.0.0.1:9: connection refused"), client.stream("refuses"):
        pass
    with pytest.raises(DriverMethodNotImplemented, match='has no byte stream "nope"; it has: connect, refuses'):
        with client.stream("nope"):
            pass


def test_a_resource_arrives_whole(client: Any) -> None:
    async def send() -> Any:
        async with client.rpc.resource_stream() as (stream, handle), anyio.create_task_group() as tg:
            tg.start_soon(self_send, stream)
            return await client.call_async("swallow", handle)

    async def self_send(stream: Any) -> None:
        for _ in range(7):
            await stream.send(b"z" * 700_000)
        await stream.send_eof()

    assert client.portal.call(send) == 4_900_000


def test_a_resource_whose_client_vanishes_is_an_error_for_the_driver(client: Any, driver: EveryKind) -> None:
    async def send() -> None:
        async with client.rpc.resource_stream() as (stream, handle), anyio.create_task_group() as tg:

            async def cut() -> None:
                await stream.send(b"z" * 100_000)
                await anyio.to_thread.run_sync(driver.started.wait, 60)
                stream._call.cancel()

            tg.start_soon(cut)
            await client.call_async("swallow", handle)

    with pytest.raises(BaseException) as caught:
        client.portal.call(send)
    error = caught.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, DriverError)
    assert "without ending it" in str(error)


def test_what_a_driver_sends_arrives_whole_or_breaks(client: Any) -> None:
    async def receive(fail: bool) -> int:
        async with client.rpc.resource_stream() as (stream, handle):
            got = 0
            async with anyio.create_task_group() as tg:

                async def call() -> None:
                    try:
                        await client.call_async("pour", handle, 3_000_000, fail)
                    except DriverError as error:
                        assert fail and "device gone" in str(error)

                tg.start_soon(call)
                try:
                    while True:
                        got += len(await stream.receive())
                except EndOfStream:
                    assert not fail
                except BrokenResourceError:
                    assert fail
            return got

    assert client.portal.call(receive, False) == 3_000_000
    client.portal.call(receive, True)


def test_a_handle_is_good_for_one_call_and_only_if_somebody_opened_it(client: Any) -> None:
    for handle in ({"kind": "client_stream", "uuid": "0b8a2c1e-36a8-4b1c-a6a4-5c5d3f8fbd10"}, "x", None, {"kind": "y"}):
        with pytest.raises(DriverInvalidArgument, match="is not open|not a resource handle"):
            client.call("swallow", handle)


def test_the_exporter_fetches_no_url_that_its_configuration_does_not_allow(client: Any) -> None:
    handle = {"kind": "presigned_request", "url": "http://127.0.0.1:1/x?sig=secret", "headers": {}, "method": "GET"}
    with pytest.raises(DriverError, match="does not list it under allowPresignedUrls") as caught:
        client.call("swallow", handle)
    assert "secret" not in str(caught.value)
