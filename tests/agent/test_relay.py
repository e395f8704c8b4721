# SPDX-License-Identifier: Apache-2.0
"""Bytes between a socket and a driver's stream: what was sent last arrives, whoever is gone by then."""

from __future__ import annotations

import asyncio
import socket

import pytest

from jumpstarter_agent import relay as relay_module
from jumpstarter_agent.relay import pump, relay
from jumpstarter_agent.server import Peer


class SlowStream:
    """A driver's stream that takes its time; with ``deaf`` it takes nothing at all."""

    def __init__(self, *, deaf: bool = False) -> None:
        self.taken = b""
        self.ended = False
        self._deaf = deaf

    async def send(self, data: bytes) -> None:
        if self._deaf:
            await asyncio.Event().wait()
        for _ in range(20):
            await asyncio.sleep(0)
        self.taken += data

    async def send_eof(self) -> None:
        self.ended = True

    async def receive(self) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")


async def _pair() -> tuple[socket.socket, Peer]:
    far, near = socket.socketpair(socket.AF_UNIX)
    return far, Peer(*await asyncio.open_unix_connection(sock=near))


def test_what_a_client_sent_before_it_hung_up_reaches_the_device() -> None:
    async def body() -> None:
        client, peer = await _pair()
        stream = SlowStream()
        client.sendall(b"reset\n")
        client.close()
        async with asyncio.timeout(60):
            await relay(peer, stream)
        assert (stream.taken, stream.ended) == (b"reset\n", True)

    asyncio.run(body())


def test_what_one_socket_sent_before_it_was_closed_reaches_the_other() -> None:
    async def body() -> None:
        (left, left_peer), (right, right_peer) = await _pair(), await _pair()
        data = bytes(range(256)) * 2000
        sending = asyncio.create_task(asyncio.to_thread(_send_and_close, left, data))
        reading = asyncio.create_task(asyncio.to_thread(_read, right, len(data)))
        async with asyncio.timeout(60):
            await pump(left_peer, right_peer)
            await sending
            assert await reading == data

    asyncio.run(body())


def test_a_device_that_takes_nothing_does_not_keep_a_client_that_hung_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "LAST_BYTES_SECONDS", 0.05)

    async def body() -> None:
        client, peer = await _pair()
        client.sendall(b"reset\n")
        client.close()
        async with asyncio.timeout(60):
            await relay(peer, SlowStream(deaf=True))

    asyncio.run(body())


def _send_and_close(end: socket.socket, data: bytes) -> None:
    with end:
        end.sendall(data)


def _read(end: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := end.recv(65536)):
        data += piece
    return data
