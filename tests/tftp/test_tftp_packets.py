# SPDX-License-Identifier: Apache-2.0
"""Protects what each packet of the TFTP server says, option by option, and that it serves nothing but its root."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from tftp_helpers import Client, ack, data, request

from jumpstarter.common.exceptions import ConfigurationError, DriverError
from jumpstarter.common.utils import serve
from jumpstarter_driver_tftp.client import TftpServerClient
from jumpstarter_driver_tftp.driver import Tftp
from jumpstarter_driver_tftp.netascii import NetasciiDecoder, NetasciiReader


def oack(**options: object) -> bytes:
    return b"\0\6" + b"".join(f"{name}\0{value}\0".encode() for name, value in options.items())


def error_code(packet: bytes) -> int:
    assert packet[:2] == b"\0\5", packet
    return int(struct.unpack("!H", packet[2:4])[0])


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ((), None),
        (("blksize", "512"), oack(blksize=512)),  # the original: KeyError, and a client that waits for ever
        (("timeout", "3"), oack(timeout=3)),
        (("TSIZE", "0"), oack(tsize=2000)),
        (("blksize", "1428", "tsize", "0", "timeout", "2"), oack(blksize=1428, tsize=2000, timeout=2)),
        (("windowsize", "4"), oack(windowsize=4)),
        (("windowsize", "1"), oack(windowsize=1)),
        (("windowsize", "65535", "blksize", "512"), oack(blksize=512, windowsize=64)),
        (("windowsize", "16", "blksize", "8192"), oack(blksize=8192, windowsize=8)),  # more overruns the client
        (("blksize", "65465"), None),
        (("blksize", "7"), None),
        (("blksize", "many"), None),
        (("timeout", "0"), None),
        (("windowsize", "0"), None),
        (("multicast", ""), None),
        (("rollover", "0", "blksize", "1024"), oack(blksize=1024)),
        (("blksize",), None),
    ],
)
def test_options_are_answered_one_by_one(
    boot: TftpServerClient, root: Path, options: tuple[str, ...], answer: bytes | None
) -> None:
    content = os.urandom(2000)
    (root / "file").write_bytes(content)
    with Client(boot.get_port()) as client:
        assert client.ask(request("file", *options)) == (answer or data(1, content[:512]))
        client.send(b"\0\5\0\0\0")


def test_the_size_of_text_is_not_told(boot: TftpServerClient, root: Path) -> None:
    """It is another one on the way."""
    (root / "file").write_bytes(b"a\nb")
    with Client(boot.get_port()) as client:
        assert client.ask(request("file", "tsize", "0", mode="NetASCII")) == data(1, b"a\r\nb")
        client.send(ack(1))


@pytest.mark.parametrize(
    ("packet", "code"),
    [
        (b"", 4),
        (b"\0", 4),
        (b"\0\1", 4),
        (b"\0\1file\0", 4),
        (b"\0\1file\0octet", 4),
        (b"\0\1\0octet\0", 4),
        (b"\0\1file\0mail\0", 4),
        (b"\0\1\xff\xfe\0octet\0", 4),
        (b"\0\3\0\1data", 4),
        (b"\0\x09rubbish", 4),
        (request("nope"), 1),
        (request("folder"), 2),
        (request("folder/file/x"), 2),
        (request("/"), 2),
        (request("../secret"), 2),
        (request("/../../etc/passwd"), 2),
        (request(r"..\secret"), 2),
        (request("link"), 2),
        (request("pipe"), 2),
        (request(".jumpstarter-0123456789abcdef.part"), 1),
        (request("new", write=True), 2),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    boot: TftpServerClient, root: Path, tmp_path: Path, packet: bytes, code: int
) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "folder").mkdir()
    (root / "folder" / "file").write_bytes(b"x")
    (root / ".jumpstarter-0123456789abcdef.part").write_bytes(b"half")
    os.mkfifo(root / "pipe")
    with Client(boot.get_port()) as client:
        answer = client.ask(packet)
        assert error_code(answer) == code
        assert answer.endswith(b"\0")
        assert b"secret" not in answer


def test_a_window_is_sent_again_from_where_it_broke(boot: TftpServerClient, root: Path) -> None:
    blocks = [bytes([number]) * 512 for number in range(1, 9)]
    (root / "file").write_bytes(b"".join(blocks) + b"end")
    with Client(boot.get_port()) as client:
        assert client.ask(request("file", "windowsize", "4")) == oack(windowsize=4)
        client.send(ack(0))
        assert [client.receive() for _ in range(4)] == [data(n, blocks[n - 1]) for n in range(1, 5)]
        client.send(ack(2))  # the third was lost
        assert [client.receive() for _ in range(4)] == [data(n, blocks[n - 1]) for n in range(3, 7)]
        client.send(ack(2))  # the first of this window was lost: once more, and only once
        client.send(ack(2))
        client.send(ack(2))
        assert [client.receive() for _ in range(4)] == [data(n, blocks[n - 1]) for n in range(3, 7)]
        client.send(ack(6))
        assert [client.receive() for _ in range(3)] == [data(7, blocks[6]), data(8, blocks[7]), data(9, b"end")]
        client.send(ack(9))
        assert client.silent(0.3)


def test_in_lockstep_an_old_acknowledgement_is_not_answered(boot: TftpServerClient, root: Path) -> None:
    (root / "file").write_bytes(bytes(2000))
    with Client(boot.get_port()) as client:
        client.ask(request("file"))
        client.send(ack(1))
        assert client.receive() == data(2, bytes(512))
        for _ in range(5):
            client.send(ack(1))
        client.send(ack(65000))
        client.send(ack(2))
        assert client.receive() == data(3, bytes(512))
        client.send(b"\0\5\0\0\0")


def test_packets_are_repeated_until_they_are_answered(root: Path) -> None:
    (root / "file").write_bytes(b"short")
    driver = Tftp(root_dir=str(root), host="127.0.0.1", port=0, timeout=0.2, retries=50)
    with serve(driver) as server, started_client(server) as client:
        first = client.ask(request("file", "blksize", "1024"))
        assert client.receive() == first == oack(blksize=1024)
        client.send(ack(0))
        assert client.receive() == client.receive() == data(1, b"short")
        client.send(ack(1))


def test_a_repeated_request_starts_no_second_transfer(boot: TftpServerClient, root: Path) -> None:
    (root / "file").write_bytes(b"short")
    with Client(boot.get_port()) as client:
        client.ask(request("file"))
        peer = client.peer
        for _ in range(3):
            client.socket.sendto(request("file"), client.server)
        with Client(boot.get_port()) as another:  # requests are taken in turn: ours were looked at before its answer
            assert error_code(another.ask(request("nope"))) == 1
        client.send(ack(1))
        assert client.silent(0.3)
        assert client.peer == peer


def test_a_client_that_is_silent_is_given_up(root: Path) -> None:
    (root / "file").write_bytes(b"short")
    driver = Tftp(root_dir=str(root), host="127.0.0.1", port=0, timeout=0.1, retries=3)
    with serve(driver) as server, started_client(server) as client:
        client.ask(request("file"))
        deadline = time.monotonic() + 10
        while driver._server is not None and driver._server._transfers:
            assert time.monotonic() < deadline, "the transfer goes on for ever"
            client.receive() if not client.silent(0.05) else None


def started_client(server: TftpServerClient) -> Client:
    server.start()
    return Client(server.get_port())


def test_strangers_cannot_disturb_a_transfer(boot: TftpServerClient, root: Path) -> None:
    (root / "file").write_bytes(bytes(1000))
    with Client(boot.get_port()) as client, Client(boot.get_port()) as stranger:
        client.ask(request("file"))
        assert client.peer is not None
        for packet in (b"\0\5\0\0\0", ack(1)):
            stranger.socket.sendto(packet, client.peer)
        assert client.silent(0.2)
        client.send(ack(1))
        assert client.receive() == data(2, bytes(488))
        client.send(ack(2))


def test_an_upload_that_ends_early_or_differs_from_its_size_is_not_stored(
    writable: TftpServerClient, root: Path
) -> None:
    (root / "log").write_bytes(b"old")
    with Client(writable.get_port()) as client:
        assert client.ask(request("log", "tsize", "600", write=True)) == oack(tsize=600)
        client.send(data(1, bytes(512)))
        assert client.receive() == ack(1)
        client.send(data(2, b"not 88 bytes"))
        assert error_code(client.receive()) == 0
    with Client(writable.get_port()) as client:
        assert client.ask(request("log", write=True)) == ack(0)
        client.send(data(1, bytes(512)))
        assert client.receive() == ack(1)
        client.send(b"\0\5\0\0changed my mind\0")
        assert client.silent(0.2)
    assert (root / "log").read_bytes() == b"old"
    assert [path.name for path in root.iterdir()] == ["log"]


def test_an_upload_goes_with_the_session(root: Path) -> None:
    with serve(Tftp(root_dir=str(root), host="127.0.0.1", port=0, allow_write=True)) as server:
        with started_client(server) as client:
            client.ask(request("up/file", write=True))
            client.send(data(1, b"x"))
            assert client.receive() == ack(1)
        assert server.storage.get_created_resources() == {"up/file"}
    assert list(root.iterdir()) == []


def test_answers_and_logs_give_nothing_away_and_let_nothing_in(
    boot: TftpServerClient, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Client(boot.get_port()) as client:
        assert str(root).encode() not in client.ask(request("a" * 300))
        caplog.set_level("INFO")
        assert error_code(client.ask(request("x\nforged\x1b[2J"))) == 1
    assert not any(line.startswith("forged") or "\x1b" in line for line in caplog.text.splitlines())


def test_one_device_leaves_room_for_others(boot: TftpServerClient, root: Path) -> None:
    (root / "file").write_bytes(b"x" * 1000)
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            client = stack.enter_context(Client(boot.get_port()))
            assert client.ask(request("file", "timeout", "255"))[:2] == b"\0\6"
        client = stack.enter_context(Client(boot.get_port()))
        assert b"busy" in client.ask(request("file"))
        client.socket.close()
        client.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.socket.bind(("127.0.0.2", 0))
        client.socket.settimeout(10)
        assert client.ask(request("file"))[:4] == data(1, b"")


def test_an_upload_leads_out_of_the_root_neither(writable: TftpServerClient, root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (root / "link").symlink_to(tmp_path / "outside")
    for path in ("../new", "link/new"):
        with Client(writable.get_port()) as client:
            assert error_code(client.ask(request(path, write=True))) == 2
    assert not (tmp_path / "new").exists() and list((tmp_path / "outside").iterdir()) == []


def test_answers_come_from_the_address_that_was_asked(root: Path) -> None:
    """Bound to all addresses, a server that answers from another one is not understood."""
    (root / "file").write_bytes(b"x")
    with serve(Tftp(root_dir=str(root), host="127.0.0.1", bind="0.0.0.0", port=0)) as server:
        server.start()
        with Client(server.get_port()) as client:
            client.server = ("127.0.0.9", server.get_port())
            client.ask(request("file"))
            assert client.peer is not None and client.peer[0] == "127.0.0.9"
            client.send(ack(1))


def test_ipv6(root: Path) -> None:
    (root / "file").write_bytes(b"x")
    with serve(Tftp(root_dir=str(root), host="::1", port=0)) as server:
        server.start()
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            sock.sendto(request("file"), ("::1", server.get_port()))
            packet, peer = sock.recvfrom(1000)
            assert packet == data(1, b"x")
            sock.sendto(ack(1), peer)


def link_local() -> list[str]:
    """Addresses of this host that are good on one interface only."""
    found = []
    for line in Path("/proc/net/if_inet6").read_text().splitlines():
        address, _, _, scope, _, interface = line.split()
        if scope == "20":
            found.append(f"{ipaddress.IPv6Address(bytes.fromhex(address))}%{interface}")
    return found


def test_all_addresses_are_those_of_both_families(root: Path) -> None:
    (root / "file").write_bytes(b"x")
    with serve(Tftp(root_dir=str(root), host="::1", bind="::", port=0)) as server:
        server.start()
        for address in ["127.0.0.1", "127.0.0.2", "::1", *link_local()]:
            info = socket.getaddrinfo(address, server.get_port(), type=socket.SOCK_DGRAM)[0]
            with socket.socket(info[0], socket.SOCK_DGRAM) as sock:
                sock.settimeout(10)
                sock.sendto(request("file"), info[4])
                packet, peer = sock.recvfrom(1000)
                assert (packet, peer[0]) == (data(1, b"x"), info[4][0])
                sock.sendto(ack(1), peer)


def test_start_and_stop(root: Path) -> None:
    (root / "file").write_bytes(bytes(2000))
    threads = threading.active_count()
    with serve(Tftp(root_dir=str(root), host="lab.example.org", bind="127.0.0.1", port=0)) as server:
        assert server.status() == {"running": False, "host": "lab.example.org", "port": 0, "bind": "127.0.0.1"}
        server.start()
        port = server.get_port()
        server.start()
        assert server.get_port() == port > 0 and server.get_host() == "lab.example.org"
        with serve(Tftp(root_dir=str(root), host="127.0.0.1", port=port)) as second:
            with pytest.raises(
                DriverError, match=f"cannot listen on 127.0.0.1 UDP port {port}: address already in use"
            ):
                second.start()
            assert second.status()["running"] is False
        with Client(port) as client:
            client.ask(request("file"))
            server.stop()
            assert error_code(client.receive()) == 0  # the device learns that it was cut off
        server.stop()
        server.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", port))
    assert threading.active_count() <= threads + 1
    with serve(Tftp(root_dir=str(root), host="192.0.2.1", port=0)) as server:
        with pytest.raises(DriverError, match="field bind: names the address"):
            server.start()


@pytest.mark.parametrize(
    "fields",
    [{"port": -1}, {"timeout": 0}, {"retries": 0}, {"max_blksize": 4}, {"max_blksize": 70000}, {"max_windowsize": 0}],
)
def test_mistakes_in_the_configuration_are_found_at_construction(fields: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=f"field {next(iter(fields))}: "):
        Tftp(**fields)  # type: ignore[arg-type]


def test_limits_of_the_configuration_are_kept(root: Path) -> None:
    (root / "file").write_bytes(bytes(5000))
    with serve(Tftp(root_dir=str(root), host="127.0.0.1", port=0, max_blksize=1468, max_windowsize=2)) as server:
        server.start()
        with Client(server.get_port()) as client:
            assert client.ask(request("file", "blksize", "8192", "windowsize", "16")) == oack(
                blksize=1468, windowsize=2
            )
            client.send(b"\0\5\0\0\0")


@pytest.mark.parametrize("text", [b"", b"\n", b"\r", b"a\r\nb\rc\n\r\r\0", b"x" * 100_000 + b"\r"])
def test_netascii_there_and_back(text: bytes) -> None:
    class Plain:
        def __init__(self) -> None:
            self.left = text

        def read(self, size: int) -> bytes:
            data, self.left = self.left[:size], self.left[size:]
            return data

    reader, decoder = NetasciiReader(Plain()), NetasciiDecoder()
    wire = b"".join(iter(lambda: reader.read(7), b""))
    assert b"\r" not in wire.replace(b"\r\n", b"").replace(b"\r\0", b"")
    back = b"".join(decoder.feed(wire[at : at + 1]) for at in range(len(wire))) + decoder.finish()
    assert back == text


def test_commands_do_what_they_say(root: Path, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"image")
    with serve(Tftp(root_dir=str(root), host="127.0.0.1", port=0)) as client:
        run = CliRunner()

        def cli(*argv: str) -> str:
            return run.invoke(client.cli(), argv, catch_exceptions=False).output.strip()

        assert "Serve files to the device by TFTP" in cli("--help")
        assert cli("status") == "stopped"
        assert cli("start") == f"127.0.0.1 port {client.get_port()}"
        assert cli("status") == f"serving at 127.0.0.1 port {client.get_port()}"
        assert cli("put", "/a/image", str(tmp_path / "image")) == "a/image"
        assert cli("storage", "list", "a/").split() == ["a/", "a/image"]
        cli("stop")
        assert cli("status") == "stopped"
