# SPDX-License-Identifier: Apache-2.0
"""Copying bytes both ways between a socket peer and a driver stream, each direction closed on its own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

__all__ = ["ByteEnd", "pump", "relay"]

LAST_BYTES_SECONDS = 2.0
"""How long what a client sent before it hung up may take to be passed on."""


class ByteEnd(Protocol):
    """One end of a relay."""

    async def receive(self) -> bytes:
        """The next bytes; b"" at the end of this direction."""

    async def send(self, data: bytes) -> None:
        """Send all of `data`."""

    def send_eof(self) -> None:
        """Close the sending direction."""

    async def wait_gone(self) -> None:
        """Return when the other side has closed both directions."""


async def relay(peer: ByteEnd, stream: Any) -> None:
    """Copy until both directions have ended or the peer is gone, and what it sent; a half-close is passed on.

    `stream` is an anyio byte stream (`AsyncNode.stream`). What the driver raises is raised here.
    """
    await _both([_to_stream(peer, stream), _to_peer(stream, peer)], [peer])


async def pump(left: ByteEnd, right: ByteEnd) -> None:
    """Copy between two sockets until both directions have ended or one side is gone."""
    await _both([_copy(left, right), _copy(right, left)], [left, right])


async def _both(copies: list[Coroutine[Any, Any, None]], ends: list[ByteEnd]) -> None:
    """Run the copies until all have ended, one has failed (raised here), or one of the ends is gone.

    The copies come in the order of the ends that they read.
    """
    reading = [asyncio.create_task(copy) for copy in copies]
    watches = {asyncio.create_task(end.wait_gone()): copy for end, copy in zip(ends, reading, strict=False)}
    running = set(reading)
    tasks = running | watches.keys()
    try:
        while running:
            done, _ = await asyncio.wait(running | watches.keys(), return_when=asyncio.FIRST_COMPLETED)
            for task in done & running:
                task.result()
            if gone := done & watches.keys():
                # Nobody is left to be told how it ended.
                await asyncio.wait([watches[watch] for watch in gone], timeout=LAST_BYTES_SECONDS)
                return
            running -= done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _to_stream(peer: ByteEnd, stream: Any) -> None:
    while data := await peer.receive():
        await stream.send(data)
    await stream.send_eof()


async def _to_peer(stream: Any, peer: ByteEnd) -> None:
    import anyio

    while True:
        try:
            data = await stream.receive()
        except anyio.EndOfStream:
            peer.send_eof()
            return
        if data:
            await peer.send(bytes(data))


async def _copy(source: ByteEnd, target: ByteEnd) -> None:
    while data := await source.receive():
        await target.send(data)
    target.send_eof()
