# SPDX-License-Identifier: Apache-2.0
"""Protects port forwards and what is built on them: data intact, many at once, ends and breaks passed on."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from jumpstarter.client.adapters import PortforwardAdapter
from jumpstarter.common.utils import serve
from jumpstarter_driver_composite.driver import Composite
from jumpstarter_driver_network.adapters import (
    FabricAdapter,
    PexpectAdapter,
    TcpPortforwardAdapter,
    UnixPortforwardAdapter,
)
from jumpstarter_driver_network.driver import EchoNetwork, TcpNetwork

HUNDRED_MB = 100_000_000


def echo(peer: socket.socket) -> None:
    while data := peer.recv(1 << 16):
        peer.sendall(data)


def pieces(seed: int, size: int) -> Iterator[bytes]:
    """Reproducible data in pieces of uneven size."""
    rng = random.Random(seed)
    block = rng.randbytes(1 << 20)
    while size > 0:
        piece = block[: min(size, rng.randrange(1, 1 << 20))]
        yield piece
        size -= len(piece)


def digest_of(seed: int, size: int) -> str:
    sha = hashlib.sha256()
    for piece in pieces(seed, size):
        sha.update(piece)
    return sha.hexdigest()


def read_digest(sock: socket.socket) -> tuple[str, int]:
    sha, size = hashlib.sha256(), 0
    while data := sock.recv(1 << 20):
        sha.update(data)
        size += len(data)
    return sha.hexdigest(), size


def test_100_mb_both_ways_at_once_arrive_intact(service) -> None:
    results: list[tuple[str, int]] = []

    def both(peer: socket.socket) -> None:
        reader = threading.Thread(target=lambda: results.append(read_digest(peer)))
        reader.start()
        for piece in pieces(2, HUNDRED_MB):
            peer.sendall(piece)
        peer.shutdown(socket.SHUT_WR)
        reader.join()

    server = service(both)
    with serve(TcpNetwork(host="127.0.0.1", port=server.port)) as client, TcpPortforwardAdapter(client) as address:
        with socket.create_connection(address) as local:

            def send() -> None:
                for piece in pieces(1, HUNDRED_MB):
                    local.sendall(piece)
                local.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            assert read_digest(local) == (digest_of(2, HUNDRED_MB), HUNDRED_MB)
            sender.join(30)
    for thread in server._threads:
        thread.join(30)
    assert results == [(digest_of(1, HUNDRED_MB), HUNDRED_MB)]


def test_50_connections_at_once(service) -> None:
    server = service(echo)
    barrier = threading.Barrier(50)
    good: list[int] = []

    def one(number: int, address: tuple[str, int]) -> None:
        data = random.Random(number).randbytes(100_000 + number)
        with socket.create_connection(address) as local:
            local.settimeout(30)
            barrier.wait(30)  # all are connected before the first one sends
            writer = threading.Thread(target=lambda: (local.sendall(data), local.shutdown(socket.SHUT_WR)))
            writer.start()
            back = b""
            while piece := local.recv(1 << 16):
                back += piece
            writer.join(10)
            if back == data:
                good.append(number)

    with serve(TcpNetwork(host="127.0.0.1", port=server.port)) as client, TcpPortforwardAdapter(client) as address:
        threads = [threading.Thread(target=one, args=(n, address)) for n in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert sorted(good) == list(range(50))


def test_half_close_passes_through_a_forward(service) -> None:
    def count(peer: socket.socket) -> None:
        total = 0
        while data := peer.recv(1 << 16):
            total += len(data)
        peer.sendall(b"%d" % total)

    with serve(TcpNetwork(host="127.0.0.1", port=service(count).port)) as client:
        with UnixPortforwardAdapter(client) as path, socket.socket(socket.AF_UNIX) as local:
            local.connect(path)
            local.sendall(b"x" * 12345)
            local.shutdown(socket.SHUT_WR)
            assert local.recv(100) == b"12345"
            assert local.recv(100) == b""


def test_a_service_that_breaks_off_breaks_the_local_end(service) -> None:
    def break_off(peer: socket.socket) -> None:
        peer.sendall(b"begin")
        peer.recv(1)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with serve(TcpNetwork(host="127.0.0.1", port=service(break_off).port)) as client:
        with TcpPortforwardAdapter(client) as address, socket.create_connection(address) as local:
            local.settimeout(10)
            assert local.recv(100) == b"begin"
            local.sendall(b"x")
            with pytest.raises(ConnectionResetError):
                local.recv(100)


def test_a_local_program_that_breaks_off_breaks_the_connection_to_the_service(service) -> None:
    seen: list[object] = []
    done = threading.Event()

    def watch(peer: socket.socket) -> None:
        peer.sendall(b"ready")
        try:
            seen.append(peer.recv(100))
        except OSError as error:
            seen.append(type(error))
        done.set()

    with serve(TcpNetwork(host="127.0.0.1", port=service(watch).port)) as client:
        with TcpPortforwardAdapter(client) as address:
            local = socket.create_connection(address)
            assert local.recv(100) == b"ready"
            local.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            local.close()
            assert done.wait(10)
    assert seen == [ConnectionResetError]


def test_a_service_that_is_not_there_closes_the_local_end_and_the_log_says_why(caplog) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with serve(Composite(children={"web": TcpNetwork(host="127.0.0.1", port=port)})) as client:
        with caplog.at_level(logging.WARNING), TcpPortforwardAdapter(client.web) as address:
            with socket.create_connection(address) as local, pytest.raises(ConnectionResetError):
                local.settimeout(10)
                while local.recv(100):
                    pass
    assert f'forward of driver "web" at {address[0]}:{address[1]}: ' in caplog.text
    assert f"tcp 127.0.0.1:{port}: connection refused" in caplog.text


def test_leaving_the_context_closes_listener_and_connections(service) -> None:
    with serve(TcpNetwork(host="127.0.0.1", port=service(echo).port)) as client:
        with TcpPortforwardAdapter(client) as address:
            local = socket.create_connection(address)
            local.sendall(b"x")
            assert local.recv(1) == b"x"
        local.settimeout(10)
        try:
            assert local.recv(1) == b""
        except ConnectionResetError:
            pass  # closed just as well
        local.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)


def test_the_port_is_ours_alone_and_one_in_use_is_named(service) -> None:
    with serve(EchoNetwork()) as client, TcpPortforwardAdapter(client) as (host, port):
        assert host == "127.0.0.1"
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind((host, port))
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {port}: address already in use"):
            TcpPortforwardAdapter(client, local_port=port).__enter__()
        with PortforwardAdapter(client=client, local_host="::1") as (six, port):
            assert six == "::1"
            with socket.create_connection((six, port)) as local:
                local.sendall(b"x")
                assert local.recv(1) == b"x"


def test_an_adapter_can_be_used_again_but_not_twice_at_once() -> None:
    with serve(EchoNetwork()) as client:
        adapter = TcpPortforwardAdapter(client)
        for _ in range(2):
            with adapter as address, socket.create_connection(address) as local:
                local.sendall(b"x")
                assert local.recv(1) == b"x"
                with pytest.raises(RuntimeError, match="already open"):
                    adapter.__enter__()


def test_a_slow_reader_stops_the_sender(service) -> None:
    """Back-pressure reaches from one end to the other: memory does not grow with what is not read."""
    sent = 0
    stalled, go_on = threading.Event(), threading.Event()

    def pour(peer: socket.socket) -> None:
        nonlocal sent
        peer.settimeout(0.5)
        block = b"x" * (1 << 20)
        try:
            while sent < 1 << 30:
                sent += peer.send(block)
        except TimeoutError:
            stalled.set()
            go_on.wait(30)

    with serve(TcpNetwork(host="127.0.0.1", port=service(pour).port)) as client:
        with TcpPortforwardAdapter(client) as address, socket.create_connection(address) as local:
            assert stalled.wait(60), "the sender was never stopped"
            assert sent < 64 << 20
            left = sent
            while left:
                left -= len(local.recv(min(left, 1 << 20)))
            go_on.set()


@pytest.mark.parametrize(
    ("arguments", "family"),
    [(["forward-tcp", "--address", "127.0.0.1", "0"], socket.AF_INET), (["forward-unix"], socket.AF_UNIX)],
)
def test_forward_commands_print_the_address_and_end_with_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], family: socket.AddressFamily
) -> None:
    answers: list[bytes] = []

    def use_it() -> None:
        """Stands in for the user: reads the address, uses it, presses Ctrl-C."""
        sys.stdout.flush()
        printed = sys.stdout.buffer.getvalue().decode().strip()
        host, _, port = printed.rpartition(":")
        with socket.socket(family) as local:
            local.connect((host, int(port)) if family == socket.AF_INET else printed)
            local.sendall(b"x")
            answers.append(local.recv(1))
        raise KeyboardInterrupt

    monkeypatch.setattr("jumpstarter_driver_network.client._wait_for_interrupt", use_it)
    with serve(EchoNetwork()) as client:
        result = CliRunner().invoke(client.cli(), arguments)
        assert (result.exit_code, answers) == (1, [b"x"]), result.exception


def test_pexpect_on_a_network_service(service) -> None:
    def greet(peer: socket.socket) -> None:
        peer.sendall(b"name: ")
        name = peer.recv(100).strip()
        peer.sendall(b"hello " + name + b"\n")

    with serve(TcpNetwork(host="127.0.0.1", port=service(greet).port)) as client, PexpectAdapter(client) as session:
        session.expect("name: ", timeout=10)
        session.sendline("lab")
        session.expect("hello lab", timeout=10)


def test_fabric_through_a_real_sshd(sshd, tmp_path: Path) -> None:
    import fabric

    with serve(TcpNetwork(host="127.0.0.1", port=sshd.port)) as client:
        with FabricAdapter(
            client,
            user=sshd.user,
            connect_kwargs={"key_filename": str(sshd.key), "allow_agent": False, "look_for_keys": False},
            # Whoever runs the tests may have an ssh configuration; it must not change them.
            config=fabric.Config(lazy=True, overrides={"load_ssh_configs": False}),
        ) as connection:
            result = connection.run("echo $((6 * 7)); exit 3", hide=True, warn=True, in_stream=False)
            assert (result.stdout, result.return_code) == ("42\n", 3)
            (tmp_path / "up").write_bytes(os.urandom(300_000))
            connection.put(str(tmp_path / "up"), str(tmp_path / "there"))
            assert (tmp_path / "there").read_bytes() == (tmp_path / "up").read_bytes()
