# SPDX-License-Identifier: Apache-2.0
"""A router under those who do not behave: readers that do not read, messages too large, callers that are no peers."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

from controller_harness import LabFiles
from router_harness import attached, dial, echo, ended, leased, people, tunnel

from jumpstarter.streams.frames import Frame, encode_frame

_MIB = 1 << 20


async def _stalled(near: object, message: bytes, limit: int) -> tuple[asyncio.Task[None], int]:
    """Send until nothing is taken any more, or ``limit`` messages: (the sender, which goes on, and how many went)."""
    sent = 0
    moved = asyncio.Event()

    async def send() -> None:
        nonlocal sent
        while sent < limit:
            await near.write(message)  # type: ignore[attr-defined]
            sent += 1
            moved.set()

    sender = asyncio.create_task(send())
    while not sender.done():
        moved.clear()
        try:
            # Silence for so long means that it is held back; the first one only has to come.
            async with asyncio.timeout(1.5 if sent else 60):
                await moved.wait()
        except TimeoutError:
            break
    return sender, sent


def test_readers_that_do_not_read_cost_the_router_no_memory(tmp_path: Path) -> None:
    async def body() -> None:
        lab = LabFiles.make(tmp_path / "lab")
        with lab.serving(), attached(lab, "r1") as router:
            async with people(lab) as (exporter, [alice]):
                name, listen = await leased(exporter, alice)
                async with tunnel(exporter, alice, name, listen) as (_, near, far):
                    message, before = encode_frame(Frame(os.urandom(_MIB))), router.memory()
                    sender, sent = await _stalled(near, message, 300)
                    assert 0 < sent < 100, f"{sent} MiB went to a reader that reads nothing"
                    assert router.memory() - before < 40 * _MIB
                    # The other direction and other tunnels are not held up by it.
                    await far.write(b"\x0a\x01y")
                    assert await near.read() == b"\x0a\x01y"
                    async with tunnel(exporter, alice, name, listen):
                        pass
                    for _ in range(300):
                        assert await far.read() == message
                    await sender

    asyncio.run(body())


def test_a_message_that_is_too_large_ends_the_tunnel_and_nothing_else(tmp_path: Path) -> None:
    async def body() -> None:
        lab = LabFiles.make(tmp_path / "lab")
        with lab.serving(), attached(lab, "r1"):
            async with people(lab) as (exporter, [alice]):
                name, listen = await leased(exporter, alice)
                async with tunnel(exporter, alice, name, listen) as (_, other_near, other_far):
                    async with tunnel(exporter, alice, name, listen) as (_, near, far):
                        await near.write(encode_frame(Frame(bytes(3 * _MIB))))
                        assert len(await far.read()) > 3 * _MIB
                        await near.write(encode_frame(Frame(bytes(5 * _MIB))))
                        assert (await ended(near))[0] == "RESOURCE_EXHAUSTED"
                        assert await ended(far) == ("UNAVAILABLE", "the client has gone")
                    await echo(other_near, other_far)

    asyncio.run(body())


def test_what_is_no_peer_is_turned_away(tmp_path: Path) -> None:
    async def body() -> None:
        lab = LabFiles.make(tmp_path / "lab")
        with lab.serving(), attached(lab, "r1") as router:
            host, _, port = router.endpoint.rpartition(":")
            with socket.create_connection((host, int(port)), timeout=60) as noise:
                noise.sendall(os.urandom(4096))
                await asyncio.to_thread(_read_to_the_end, noise)
            async with people(lab) as (exporter, [alice]):
                for token in ("", "a.b.c", "e30.e30.e30", "x" * 5000, alice.token):
                    async with alice.tunnel(token, router.endpoint) as call:
                        code, text = await ended(call)
                        assert code == "UNAUTHENTICATED", text
                        assert "x" * 100 not in text
                name, listen = await leased(exporter, alice)
                async with tunnel(exporter, alice, name, listen):
                    pass
                assert alice.token not in router.log.read_text()
                endpoint, mine, theirs = await dial(alice, name, listen)
                # A client's token does not open the exporter's end, and a tunnel has two ends, not three.
                async with alice.tunnel(mine, endpoint) as near, exporter.tunnel(theirs, endpoint) as far:
                    await echo(near, far)
                    async with alice.tunnel(mine, endpoint) as third:
                        assert await ended(third) == ("UNAUTHENTICATED", "this dial token has been used already")
                log = router.log.read_text()
                assert mine not in log
                assert theirs not in log
                assert "RouterService.Stream refused" in log

    asyncio.run(body())


def _read_to_the_end(connection: socket.socket) -> None:
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass  # that is an end, too
