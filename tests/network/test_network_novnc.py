# SPDX-License-Identifier: Apache-2.0
"""Protects the bridge between a browser's WebSocket and a driver's stream: data intact, ends passed on, none left."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from jumpstarter.common.utils import serve
from jumpstarter_driver_network.adapters import NovncAdapter
from jumpstarter_driver_network.driver import TcpNetwork


@pytest.fixture
def novnc(tmp_path: Path) -> Path:
    """A directory that passes for noVNC: the browser's side is not what is tested here."""
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "rfb.js").write_text("export default class RFB {}\n")
    return tmp_path


@contextmanager
def browser(url: str) -> Iterator[ClientConnection]:
    parts = urlsplit(url)
    path = parse_qs(parts.query)["path"][0]
    origin: Any = f"http://{parts.netloc}"
    with connect(f"ws://{parts.netloc}/{path}", origin=origin, proxy=None, max_size=None, compression=None) as ws:
        yield ws


def echo(peer: socket.socket) -> None:
    while data := peer.recv(1 << 16):
        peer.sendall(data)


def test_data_passes_both_ways_and_connections_are_apart(service, novnc: Path) -> None:
    server = service(echo)
    data = os.urandom(5_000_000)
    with serve(TcpNetwork(host="127.0.0.1", port=server.port)) as client:
        with NovncAdapter(client=client, folder=novnc) as url, browser(url) as one, browser(url) as two:
            two.send(b"other")
            writer = threading.Thread(target=lambda: one.send(data))
            writer.start()
            back = bytearray()
            while len(back) < len(data):
                back += one.recv(20)  # type: ignore[arg-type]
            writer.join(10)
            assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()
            assert two.recv(10) == b"other"
    assert len(server.connections) == 2


def test_a_page_that_is_closed_frees_the_device(service, novnc: Path) -> None:
    ended = threading.Event()

    def talk(peer: socket.socket) -> None:
        peer.sendall(b"RFB 003.008\n")
        while peer.recv(100):
            pass
        ended.set()

    with serve(TcpNetwork(host="127.0.0.1", port=service(talk).port)) as client:
        with NovncAdapter(client=client, folder=novnc) as url:
            with browser(url) as ws:
                assert ws.recv(10) == b"RFB 003.008\n"
            assert ended.wait(10), "the device's server still has its client"


def test_a_server_that_ends_closes_the_page_well_and_one_that_breaks_says_so(service, novnc: Path) -> None:
    def end(peer: socket.socket) -> None:
        peer.sendall(b"last words")

    def break_off(peer: socket.socket) -> None:
        peer.sendall(b"half of the")
        peer.recv(1)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")

    for handle, word, code in ((end, b"last words", 1000), (break_off, b"half of the", 1011)):
        with serve(TcpNetwork(host="127.0.0.1", port=service(handle).port)) as client:
            with NovncAdapter(client=client, folder=novnc) as url, browser(url) as ws:
                assert ws.recv(10) == word
                if code != 1000:
                    ws.send(b"x")
                with pytest.raises(ConnectionClosed):
                    ws.recv(10)
                assert ws.close_code == code


def test_closing_the_adapter_ends_pages_that_are_open(service, novnc: Path) -> None:
    ended = threading.Event()

    def wait(peer: socket.socket) -> None:
        peer.sendall(b"hello")
        try:
            peer.recv(1)
        finally:  # an end or an abort, but no client any more
            ended.set()

    with serve(TcpNetwork(host="127.0.0.1", port=service(wait).port)) as client:
        adapter = NovncAdapter(client=client, folder=novnc)
        url = adapter.__enter__()
        with browser(url) as ws:
            assert ws.recv(10) == b"hello"
            started = time.monotonic()
            adapter.__exit__(None, None, None)
            assert time.monotonic() - started < 60
            assert ended.wait(10)
            with pytest.raises(ConnectionClosed):
                ws.recv(10)


def test_our_page_is_there_when_novnc_has_none(service, novnc: Path) -> None:
    import urllib.request

    with serve(TcpNetwork(host="127.0.0.1", port=service(echo).port)) as client:
        with NovncAdapter(client=client, folder=novnc) as url:
            base = url.partition("/novnc_page.html?")[0]
            for page, words in (
                (url, b'from "./core/rfb.js"'),
                (f"{base}/core/rfb.js", b"class RFB"),
            ):
                with urllib.request.urlopen(page, timeout=10) as answer:
                    assert words in answer.read()
