# SPDX-License-Identifier: Apache-2.0
"""Protects byte streams over WebSockets, against the library websockets at the other end of each."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import BrokenResourceError, EndOfStream

sys.path.insert(0, str(Path(__file__).parents[1] / "video"))

from self_signed_certificate import self_signed

from jumpstarter.common.exceptions import ConfigurationError, DriverError
from jumpstarter.common.utils import serve
from jumpstarter.streams.sockets import SocketStream
from jumpstarter_driver_network.driver import WebsocketNetwork
from jumpstarter_driver_network.streams import WebsocketServerStream

Handler = Callable[[Any], Awaitable[None]]


@contextmanager
def websocket_server(handler: Handler, **options: Any) -> Iterator[int]:
    """A server of the library websockets in a thread, on a free port."""
    from websockets.asyncio.server import serve as serve_websocket

    started: list[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = []
    ready = threading.Event()

    async def run() -> None:
        stop = asyncio.Event()
        async with serve_websocket(handler, "127.0.0.1", 0, **options) as server:
            started.append((asyncio.get_running_loop(), stop, server.sockets[0].getsockname()[1]))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert ready.wait(10)
        yield started[0][2]
    finally:
        started[0][0].call_soon_threadsafe(started[0][1].set)
        thread.join(20)


async def echo(connection: Any) -> None:
    async for message in connection:
        await connection.send(message)


def network(port: int, **config: Any) -> WebsocketNetwork:
    return WebsocketNetwork(url=f"ws://127.0.0.1:{port}/console?x=1", **config)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


# --- the driver -------------------------------------------------------------------------------------------------


def test_a_service_cannot_lead_its_lessee_to_another_one() -> None:
    from websockets.datastructures import Headers
    from websockets.http11 import Response

    reached: list[Any] = []

    async def internal(connection: Any) -> None:
        reached.append(connection)

    with websocket_server(internal) as hidden:

        def redirect(connection: Any, request: Any) -> Response:
            return Response(302, "Found", Headers({"Location": f"ws://127.0.0.1:{hidden}/"}))

        with websocket_server(echo, process_request=redirect) as port, serve(network(port)) as client:
            with pytest.raises(DriverError, match=r"HTTP 302 \(redirects are not followed\)"), client.stream():
                pass
    assert reached == []


def test_bytes_go_out_as_binary_messages_and_all_messages_come_in() -> None:
    kinds: list[type] = []

    async def handler(connection: Any) -> None:
        kinds.append(type(await connection.recv()))
        await connection.send("text äöü")
        await connection.send(b"")  # nothing in a stream of bytes
        await connection.send(b"\0\xff" * 700_000)  # more than a frame of ours holds

    with websocket_server(handler, max_size=None) as port, serve(network(port)) as client, client.stream() as stream:
        stream.send(b"hello")
        received = b"".join(stream)
    assert received == "text äöü".encode() + b"\0\xff" * 700_000
    assert kinds == [bytes]


def test_10_mb_come_back_intact() -> None:
    data = b"".join(i.to_bytes(4) for i in range(2_500_000))
    with websocket_server(echo) as port, serve(network(port)) as client, client.stream() as stream:
        writer = threading.Thread(target=lambda: stream.send(data))
        writer.start()
        back = bytearray()
        while len(back) < len(data):
            back += stream.receive()
        writer.join(10)
    assert back == data


def test_what_the_service_sent_before_we_ended_still_comes() -> None:
    async def handler(connection: Any) -> None:
        await connection.send(b"answer")
        async for _ in connection:
            pass

    with websocket_server(handler) as port, serve(network(port)) as client, client.stream() as stream:
        assert stream.receive() == b"answer"
        stream.send_eof()
        with pytest.raises(EndOfStream):
            stream.receive()


def test_a_connection_that_breaks_is_no_end_of_data() -> None:
    async def handler(connection: Any) -> None:
        await connection.send(b"half of the")
        await connection.recv()
        connection.transport.abort()

    with websocket_server(handler) as port, serve(network(port)) as client, client.stream() as stream:
        assert stream.receive() == b"half of the"
        stream.send(b"x")
        with pytest.raises(BrokenResourceError):
            stream.receive()


def test_a_service_that_closes_with_an_error_breaks_the_stream() -> None:
    async def handler(connection: Any) -> None:
        await connection.close(1011, "out of order")

    with websocket_server(handler) as port, serve(network(port)) as client, client.stream() as stream:
        with pytest.raises(BrokenResourceError):
            stream.receive()


def test_the_address_is_the_url_without_its_password() -> None:
    driver = WebsocketNetwork(url="wss://admin:s3cret@kvm.lab:8443/ws")
    assert "s3cret" not in repr(driver)
    with serve(driver) as client:
        assert client.address() == "wss://kvm.lab:8443/ws"
    with serve(WebsocketNetwork(url="ws://kvm.lab", enable_address=False)) as client:
        with pytest.raises(DriverError, match='"enable_address" is off'):
            client.address()


def test_user_and_password_of_the_url_are_sent() -> None:
    from websockets.asyncio.server import basic_auth

    async def handler(connection: Any) -> None:
        await connection.send(connection.username.encode())

    authorized = basic_auth(realm="lab", credentials=("admin", "s3cret"))
    with websocket_server(handler, process_request=authorized) as port:
        with serve(WebsocketNetwork(url=f"ws://admin:s3cret@127.0.0.1:{port}/")) as client, client.stream() as stream:
            assert stream.receive() == b"admin"
        with serve(WebsocketNetwork(url=f"ws://admin:wrong@127.0.0.1:{port}/")) as client:
            with pytest.raises(DriverError, match=f"websocket ws://127.0.0.1:{port}/: .*401") as caught:
                with client.stream():
                    pass
            assert "wrong" not in str(caught.value)


def test_services_that_are_no_websocket_or_not_there_are_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with serve(WebsocketNetwork(url=f"ws://me:s3cret@127.0.0.1:{port}/x", connect_timeout=0.3)) as client:
            with pytest.raises(DriverError, match=f"websocket ws://127.0.0.1:{port}/x: no answer within 0.3 s"):
                with client.stream():
                    pass
    with serve(network(port)) as client:
        with pytest.raises(DriverError, match=f"ws://127.0.0.1:{port}/.*: connection refused") as caught:
            with client.stream():
                pass
        assert caught.value.code == "UNAVAILABLE"


def test_a_certificate_that_nobody_signed_is_named(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))
    with websocket_server(echo, ssl=context) as port, serve(WebsocketNetwork(url=f"wss://127.0.0.1:{port}/")) as client:
        with pytest.raises(DriverError, match=f"websocket wss://127.0.0.1:{port}/: .*certificate verify failed"):
            with client.stream():
                pass


@pytest.mark.parametrize("url", ["http://a/", "ws://", "ws://a:b/", "wss://a:0", "ws:///x", "a", "ws://a/#b"])
def test_wrong_urls_show_when_the_exporter_starts(url: str) -> None:
    with pytest.raises(ConfigurationError, match="websocket network: url"):
        WebsocketNetwork(url=url)


# --- the server's side ------------------------------------------------------------------------------------------


async def with_server(use: Handler, client: Callable[[int], Awaitable[Any]], **options: Any) -> Any:
    """Run `use` with a WebsocketServerStream for the one connection that `client` makes to a port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)

        async def accept() -> None:
            sock, _ = await asyncio.get_running_loop().sock_accept(listener)
            async with WebsocketServerStream(stream=SocketStream(sock), **options) as stream:
                await use(stream)

        async with asyncio.timeout(20):
            task = asyncio.create_task(accept())
            try:
                return await client(listener.getsockname()[1])
            finally:
                await task


def test_server_side_carries_bytes_answers_pings_and_closes() -> None:
    from websockets.asyncio.client import connect

    received = bytearray()

    async def use(stream: Any) -> None:
        async with anyio.create_task_group() as tg:
            tg.start_soon(stream.send, b"speaks first")  # as VNC servers do: it waits for the handshake
            try:
                while True:
                    received.extend(await stream.receive())
            except EndOfStream:
                pass

    async def client(port: int) -> Any:
        async with connect(f"ws://127.0.0.1:{port}/", subprotocols=["binary"], proxy=None) as ws:  # type: ignore[list-item]
            assert ws.subprotocol == "binary"
            assert await ws.recv() == b"speaks first"
            await (await ws.ping())
            await ws.send(b"x" * 3_000_000)
            await ws.send("text")
            await ws.close()
            return ws.close_code

    assert asyncio.run(with_server(use, client)) == 1000
    assert bytes(received) == b"x" * 3_000_000 + b"text"


def test_server_side_refuses_who_is_not_authorized() -> None:
    from websockets.asyncio.client import connect
    from websockets.exceptions import InvalidStatus

    async def use(stream: Any) -> None:
        with pytest.raises(BrokenResourceError, match="refused"):
            await stream.receive()

    async def client(port: int) -> Any:
        with pytest.raises(InvalidStatus, match="403"):
            await connect(f"ws://127.0.0.1:{port}/", origin="http://evil.test", proxy=None)  # type: ignore[arg-type]

    def same_site(request: Any) -> bool:
        return b"http://evil.test" not in [value for name, value in request.extra_headers if name == b"origin"]

    asyncio.run(with_server(use, client, authorize=same_site))


def test_server_side_says_what_is_no_websocket() -> None:
    async def use(stream: Any) -> None:
        with pytest.raises(BrokenResourceError, match="not a WebSocket"):
            await stream.receive()

    async def client(port: int) -> Any:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return answer

    assert asyncio.run(with_server(use, client)).startswith(b"HTTP/1.1 400")
