# SPDX-License-Identifier: Apache-2.0
"""Protects network drivers: what goes in comes out, ends and breaks are told apart, errors say where."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import stat
import threading
from pathlib import Path

import pytest
from anyio import BrokenResourceError, EndOfStream
from click.testing import CliRunner

from jumpstarter.common.exceptions import ConfigurationError, DriverError
from jumpstarter.common.utils import serve
from jumpstarter.streams.sockets import SocketStream, connect_udp
from jumpstarter_driver_composite.driver import Composite
from jumpstarter_driver_network.driver import (
    EchoNetwork,
    TcpNetwork,
    UdpNetwork,
    UnixNetwork,
    VsockNetwork,
    WebsocketNetwork,
)


def echo(peer: socket.socket) -> None:
    while data := peer.recv(1 << 16):
        peer.sendall(data)


def receive_all(stream) -> bytes:
    return b"".join(stream)


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port on which nobody listens at the moment."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- streams ----------------------------------------------------------------------------------------------------


def test_echo() -> None:
    with serve(EchoNetwork()) as client, client.stream() as stream:
        stream.send(b"hello")
        assert stream.receive() == b"hello"
        stream.send_eof()
        with pytest.raises(EndOfStream):
            stream.receive()


def test_tcp_and_each_stream_is_a_connection_of_its_own(service) -> None:
    server = service(echo)
    with serve(TcpNetwork(host="127.0.0.1", port=server.port)) as client:
        with client.stream() as one, client.stream() as two:
            one.send(b"1")
            two.send(b"2")
            assert (one.receive(), two.receive()) == (b"1", b"2")
    assert len(server.connections) == 2


def test_half_close_passes_to_the_service_and_its_answer_still_comes(service) -> None:
    def count(peer: socket.socket) -> None:
        total = 0
        while data := peer.recv(1 << 16):
            total += len(data)
        peer.sendall(b"%d" % total)

    with serve(TcpNetwork(host="127.0.0.1", port=service(count).port)) as client, client.stream() as stream:
        stream.send(b"x" * 100_000)
        stream.send_eof()
        assert receive_all(stream) == b"100000"


def test_half_close_of_the_service_leaves_the_other_direction_open(service) -> None:
    heard: list[bytes] = []
    done = threading.Event()

    def serve_first(peer: socket.socket) -> None:
        peer.sendall(b"bye")
        peer.shutdown(socket.SHUT_WR)
        while data := peer.recv(100):
            heard.append(data)
        done.set()

    with serve(TcpNetwork(host="127.0.0.1", port=service(serve_first).port)) as client, client.stream() as stream:
        assert receive_all(stream) == b"bye"
        stream.send(b"still here")
        stream.send_eof()
        assert done.wait(10)
    assert b"".join(heard) == b"still here"


def test_a_connection_that_breaks_is_no_end_of_data(service) -> None:
    def break_off(peer: socket.socket) -> None:
        peer.sendall(b"half of the")
        peer.recv(1)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")

    with serve(TcpNetwork(host="127.0.0.1", port=service(break_off).port)) as client, client.stream() as stream:
        assert stream.receive() == b"half of the"
        stream.send(b"x")
        with pytest.raises(BrokenResourceError):
            stream.receive()


def test_ipv6(service) -> None:
    listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    server = service(echo, listener)
    for host in ("::1", "[::1]"):
        with serve(TcpNetwork(host=host, port=server.port)) as client, client.stream() as stream:
            stream.send(b"six")
            assert stream.receive() == b"six"
            assert client.address() == f"tcp://[::1]:{server.port}"


def test_a_host_with_several_addresses_is_tried_until_one_answers(service, monkeypatch: pytest.MonkeyPatch) -> None:
    server = service(echo)
    real = asyncio.BaseEventLoop.getaddrinfo

    async def two(self, host, port, **kwargs):
        if host != "board.test":
            return await real(self, host, port, **kwargs)
        dead = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", free_port()))
        return [dead, (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port))]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", two)
    with serve(TcpNetwork(host="board.test", port=server.port)) as client, client.stream() as stream:
        stream.send(b"x")
        assert stream.receive() == b"x"


def test_unix(service, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    service(echo, listener)
    with serve(UnixNetwork(path=path)) as client, client.stream() as stream:
        stream.send(b"local")
        assert stream.receive() == b"local"
        assert client.address() == f"unix://{path}"


def test_udp_keeps_the_boundaries_of_datagrams() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        with serve(UdpNetwork(host="127.0.0.1", port=server.getsockname()[1])) as client, client.stream() as stream:
            sizes = [1, 1400, 9000, 65507]
            for size in sizes:
                stream.send(b"x" * size)
            received = [server.recvfrom(65535) for _ in sizes]
            assert [len(data) for data, _ in received] == sizes
            back = received[0][1]
            for size in sizes:
                server.sendto(b"y" * size, back)
            assert [len(stream.receive()) for _ in sizes] == sizes


def test_udp_to_a_port_where_nobody_listens_yet_goes_on() -> None:
    port = free_port(socket.SOCK_DGRAM)
    with serve(UdpNetwork(host="127.0.0.1", port=port)) as client, client.stream() as stream:
        for _ in range(3):
            stream.send(b"lost")  # answered with "connection refused"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("127.0.0.1", port))
            server.settimeout(10)
            stream.send(b"found")
            data = b""
            while data != b"found":  # some of the first may have been on their way still
                data, back = server.recvfrom(100)
            server.sendto(b"answer", back)
            assert stream.receive() == b"answer"


def test_a_refused_datagram_does_not_end_the_stream() -> None:
    async def run() -> bytes:
        port = free_port(socket.SOCK_DGRAM)
        async with await connect_udp("127.0.0.1", port) as stream:
            await stream.send(b"lost")
            poll = select.poll()
            poll.register(stream.socket, 0)
            assert poll.poll(10_000), "the refusal has not arrived"
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
                server.bind(("127.0.0.1", port))
                server.settimeout(10)
                await stream.send(b"found")
                return server.recvfrom(100)[0]

    assert asyncio.run(run()) == b"found"


# --- errors -----------------------------------------------------------------------------------------------------


def test_a_refused_connection_says_what_where_and_which_driver() -> None:
    port = free_port()
    with serve(Composite(children={"ssh": TcpNetwork(host="127.0.0.1", port=port)})) as client:
        with (
            pytest.raises(DriverError, match=f"tcp 127.0.0.1:{port}: connection refused") as caught,
            client.ssh.stream(),
        ):
            pass
        assert caught.value.code == "UNAVAILABLE"
        assert caught.value.driver == "ssh"


def test_a_service_that_does_not_answer_is_given_up() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):  # fills the queue: further connections are not answered
            driver = TcpNetwork(host="127.0.0.1", port=port, connect_timeout=0.3)
            with serve(driver) as client, pytest.raises(DriverError, match="no answer within 0.3 s"), client.stream():
                pass


def test_unreachable_unix_sockets_say_why(tmp_path: Path) -> None:
    with serve(UnixNetwork(path=str(tmp_path / "none"))) as client:
        with pytest.raises(DriverError, match="none: no such file or directory"), client.stream():
            pass


def test_a_host_that_cannot_be_resolved_is_named() -> None:
    with serve(TcpNetwork(host="does-not-exist.invalid", port=1)) as client:
        with pytest.raises(DriverError, match='cannot resolve host "does-not-exist.invalid"'), client.stream():
            pass
        with pytest.raises(DriverError, match="cannot resolve"):
            client.address()


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_wrong_ports_are_refused(port: int) -> None:
    with pytest.raises(ConfigurationError, match=f"port is {port}"):
        TcpNetwork(host="h", port=port)
    with pytest.raises(ConfigurationError, match=f"port is {port}"):
        UdpNetwork(host="h", port=port)


def test_empty_fields_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="host is empty"):
        TcpNetwork(host="", port=1)
    with pytest.raises(ConfigurationError, match="path is empty"):
        UnixNetwork(path="")


# --- address ----------------------------------------------------------------------------------------------------


def test_address_of_a_name_is_resolved_by_the_exporter() -> None:
    with serve(UdpNetwork(host="localhost", port=69)) as client:
        assert client.address() in ("udp://127.0.0.1:69", "udp://[::1]:69")


def test_address_command() -> None:
    run = CliRunner()
    with serve(TcpNetwork(host="::1", port=22)) as client:
        assert run.invoke(client.cli(), ["address"], catch_exceptions=False).output == "tcp://[::1]:22\n"
        assert run.invoke(client.cli(), ["address", "--host"], catch_exceptions=False).output == "::1\n"
        assert run.invoke(client.cli(), ["address", "--port"], catch_exceptions=False).output == "22\n"
    for url, host, port in (
        ("ws://127.0.0.1:81/a?b=c:d", "127.0.0.1", "81"),
        ("wss://kvm.lab/console", "kvm.lab", "443"),
        ("vsock://3:22", "3", "22"),
    ):
        driver = VsockNetwork(cid=3, port=22) if url.startswith("vsock") else WebsocketNetwork(url=url)
        with serve(driver) as client:
            for option, wanted in ([], url), (["--host"], host), (["--port"], port):
                assert run.invoke(client.cli(), ["address", *option], catch_exceptions=False).output == f"{wanted}\n"
    with serve(UnixNetwork(path="/run/a:b")) as client:
        result = run.invoke(client.cli(), ["address", "--host"])
        assert result.exit_code == 1 and "unix:///run/a:b has no host and port" in result.output
    with serve(VsockNetwork(cid=3, port=2863311530)) as client:  # more than any TCP port
        assert run.invoke(client.cli(), ["address"], catch_exceptions=False).output == "vsock://3:2863311530\n"
        assert run.invoke(client.cli(), ["address", "--port"], catch_exceptions=False).output == "2863311530\n"
    with serve(TcpNetwork(host="::1", port=22, enable_address=False)) as client:
        result = run.invoke(client.cli(), ["address"])
        assert result.exit_code == 1 and '"enable_address" is off' in result.output
    with serve(EchoNetwork()) as client:
        result = run.invoke(client.cli(), ["address"])
        assert result.exit_code == 1 and "no address to tell, or the exporter is older" in result.output


# --- the socket stream itself -----------------------------------------------------------------------------------


def test_a_reader_gets_what_the_kernel_has_in_one_piece_of_up_to_a_frame() -> None:
    async def run() -> list[int]:
        a, b = socket.socketpair()
        a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        with a:
            a.setblocking(False)
            sent = 0
            try:
                while True:
                    sent += a.send(b"x" * 65536)
            except BlockingIOError:
                pass
            a.shutdown(socket.SHUT_WR)
            sizes = []
            async with SocketStream(b) as stream:
                try:
                    while True:
                        sizes.append(len(await stream.receive()))
                except EndOfStream:
                    pass
            assert sum(sizes) == sent
            return sizes

    sizes = asyncio.run(run())
    assert len(sizes) <= -(-sum(sizes) // (1 << 20)) and max(sizes) > 65536


def test_closing_wakes_who_waits_and_leaks_nothing() -> None:
    async def run() -> None:
        from anyio import ClosedResourceError

        a, b = socket.socketpair()
        with a:
            stream = SocketStream(b)
            waiting = asyncio.create_task(stream.receive())
            while stream._reading is None:
                await asyncio.sleep(0)
            await stream.aclose()
            with pytest.raises(ClosedResourceError):
                await waiting
            with pytest.raises(ClosedResourceError):
                await stream.send(b"x")
            assert b.fileno() == -1

    asyncio.run(run())


def test_unix_sockets_we_make_are_private(tmp_path: Path) -> None:
    from jumpstarter_driver_network.adapters import UnixPortforwardAdapter

    with serve(EchoNetwork()) as client:
        with UnixPortforwardAdapter(client) as path:
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
            assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
        assert not os.path.exists(os.path.dirname(path))
        with UnixPortforwardAdapter(client, path=tmp_path / "mine") as path:
            assert path == str(tmp_path / "mine")
            with socket.socket(socket.AF_UNIX) as local:
                local.connect(path)
                local.sendall(b"x")
                assert local.recv(1) == b"x"
        assert not (tmp_path / "mine").exists()
        (tmp_path / "taken").write_text("")
        with pytest.raises(OSError, match="cannot listen on .*taken: address already in use"):
            UnixPortforwardAdapter(client, path=tmp_path / "taken").__enter__()
        assert (tmp_path / "taken").exists()
