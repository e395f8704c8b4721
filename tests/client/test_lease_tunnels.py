# SPDX-License-Identifier: Apache-2.0
"""The socket of a lease: tunnels that carry everything, break alone, and are dialled again."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from base64 import b64encode
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from anyio import EndOfStream
from client_harness import Room, room, until
from controller_harness import LabFiles
from test_hold_lease import WISH, run

from jumpstarter.client.aio import connect
from jumpstarter.client.lease import hold_lease
from jumpstarter.client.records import LeaseState
from jumpstarter.common.enums import ExporterStatus
from jumpstarter.common.exceptions import (
    ConnectionError,
    ExporterOfflineError,
    ExporterUnreachableError,
    LeaseError,
)
from jumpstarter.config.tls import TLSConfigV1Alpha1
from jumpstarter.streams.sockets import SocketStream
from jumpstarter.streams.tunnel import bridge_tunnel

MEBIBYTE = 1 << 20
#: Or the connections of one process to one address would be one.
OWN: dict[str, str | int] = {"grpc.use_local_subchannel_pool": 1}


async def _send(stream: SocketStream, size: int) -> str:
    """Send random data and an end; its digest."""
    digest = hashlib.sha256()
    block = os.urandom(MEBIBYTE)
    for number in range(size // MEBIBYTE):
        data = number.to_bytes(8, "big") + block[8:]
        digest.update(data)
        await stream.send(data)
    await stream.send_eof()
    return digest.hexdigest()


async def _receive(stream: SocketStream) -> str:
    """Digest of everything up to the end."""
    digest = hashlib.sha256()
    try:
        while True:
            digest.update(await stream.receive())
    except EndOfStream:
        return digest.hexdigest()


async def _pair(place: Room, name: str) -> tuple[SocketStream, SocketStream, list[asyncio.Task[None]]]:
    """Both ends of a tunnel of this lease, and the tasks that carry it."""
    alice, board = await place.client("alice"), place.boards[0]
    tls = TLSConfigV1Alpha1(ca=b64encode(place.lab.ca).decode())
    await board.peer.status(ExporterStatus.LEASE_READY)
    listening = board.peer.listen(name)
    dialled = asyncio.create_task(alice.dial(name))
    told = await listening.read()
    near, far = [socket.socketpair() for _ in range(2)]
    bridges = [
        bridge_tunnel(SocketStream(near[1]), *await dialled, tls=tls),
        bridge_tunnel(SocketStream(far[1]), told.router_endpoint, told.router_token, tls=tls),
    ]
    listening.cancel()
    return SocketStream(near[0]), SocketStream(far[0]), [asyncio.create_task(bridge) for bridge in bridges]


def test_big_transfers_in_both_directions_end_one_after_the_other(lab: LabFiles, tmp_path: Path) -> None:
    async def body() -> None:
        async with room(lab, tmp_path, boards=0) as place:
            board = await place.add_board(serve=False)
            alice = await place.client("alice")
            async with hold_lease(alice, WISH) as held:
                assert held.info.exporter == board.name
                near, far, bridges = await _pair(place, held.name)
                there, arrived = await asyncio.gather(_send(near, 64 * MEBIBYTE), _receive(far))
                assert there == arrived
                # The other direction lives on after the end of the first one.
                back, returned = await asyncio.gather(_send(far, 96 * MEBIBYTE), _receive(near))
                assert back == returned, bridges
                async with asyncio.timeout(60):
                    await asyncio.gather(*bridges)

    run(body)


def test_a_side_that_breaks_off_is_no_end_of_data(lab: LabFiles, tmp_path: Path) -> None:
    async def body() -> None:
        async with room(lab, tmp_path, boards=0) as place:
            await place.add_board(serve=False)
            alice = await place.client("alice")
            async with hold_lease(alice, WISH) as held:
                near, far, bridges = await _pair(place, held.name)
                await near.send(b"half of it")
                assert await far.receive() == b"half of it"
                bridges[0].cancel()  # as if its process was killed
                async with asyncio.timeout(60):
                    with pytest.raises(ConnectionError, match="router"):
                        await bridges[1]
                near, far, bridges = await _pair(place, held.name)
                await near.send(b"x")
                assert await far.receive() == b"x"
                await alice.delete_lease(held.name)
                async with asyncio.timeout(60):
                    for bridge in bridges:
                        with pytest.raises(ConnectionError, match=f"lease {held.name} "):
                            await bridge

    run(body)


def test_twenty_connections_at_once(lab: LabFiles, tmp_path: Path) -> None:
    async def body() -> None:
        async with room(lab, tmp_path) as place:
            alice = await place.client("alice")
            async with hold_lease(alice, WISH) as held, held.serve_unix(tmp_path / "s") as path:

                async def use(number: int) -> None:
                    async with connect(path, grpc_options=OWN) as session:
                        async with session.node("echo").stream() as stream:
                            for _ in range(5):
                                data = bytes([number]) * 1000
                                await stream.send(data)
                                got = b""
                                while len(got) < len(data):
                                    got += await stream.receive()
                                assert got == data

                await asyncio.gather(*(use(number) for number in range(20)))
                await until(lambda: len(place.boards[0].tunnels) == 1)  # the holder's own

    run(body)


def test_a_broken_tunnel_is_dialled_again_by_the_next_connection(lab: LabFiles, tmp_path: Path) -> None:
    async def body() -> None:
        async with room(lab, tmp_path) as place:
            alice = await place.client("alice")
            async with hold_lease(alice, WISH) as held, held.serve_unix(tmp_path / "s") as path:
                async with connect(path, grpc_options=OWN) as session:
                    await session.node("power").call("on")
                    tunnels = list(place.boards[0].tunnels)
                    for tunnel in tunnels:
                        tunnel.cancel()
                    await asyncio.gather(*tunnels, return_exceptions=True)
                    async with connect(path, grpc_options=OWN) as again:
                        assert await again.node("power").call("status") == "on"
                assert not held.lost.done()

    run(body)


def test_the_socket_is_ready_when_the_hook_is_done(lab: LabFiles, tmp_path: Path) -> None:
    async def body() -> None:
        async with room(lab, tmp_path) as place:
            alice, board = await place.client("alice"), place.boards[0]
            go = asyncio.Event()
            lines: list[Any] = []

            async def hook(_: Any) -> None:
                await board.set_status(ExporterStatus.BEFORE_LEASE_HOOK)
                await go.wait()
                await board.set_status(ExporterStatus.LEASE_READY, "[HOOK_WARNING] the fan is loud")

            board.hook = hook
            async with hold_lease(alice, WISH) as held:
                served = held.serve_unix(tmp_path / "s", on_log=lines.append)
                entering = asyncio.create_task(served.__aenter__())
                await until(lambda: board.tunnels)
                assert not entering.done()
                go.set()
                async with asyncio.timeout(60):
                    await entering
                assert held.socket is not None and held.socket.warning == "the fan is loud"
                await served.__aexit__(None, None, None)

    run(body)


@pytest.mark.parametrize("released", ["not", "released", "released and noticed late"])
def test_a_hook_that_fails_is_told(lab: LabFiles, tmp_path: Path, released: str) -> None:
    async def body() -> None:
        async with room(lab, tmp_path) as place:
            alice, board = await place.client("alice"), place.boards[0]

            async def hook(_: Any) -> None:
                failed = ExporterStatus.BEFORE_LEASE_HOOK_FAILED
                await board.set_status(ExporterStatus.BEFORE_LEASE_HOOK)
                await until(lambda: board.tunnels)
                if released != "not":  # the exporter ends the lease before we have asked
                    board.linger = asyncio.Event()
                    await board.peer.status(failed, message="no power", release_lease=True)
                else:
                    await board.set_status(failed, "no power")

            async def late(name: str) -> AsyncGenerator[LeaseState, None]:
                """Those who dial learn of the end before."""
                async for state in watch(name):
                    if state.ended:
                        await asyncio.sleep(1.5)
                    yield state

            board.hook, watch = hook, alice.watch_lease
            if "late" in released:
                alice.watch_lease = late  # type: ignore[method-assign]
            async with hold_lease(alice, WISH) as held:
                with pytest.raises(ExporterOfflineError, match="e0: its beforeLease hook failed: no power") as caught:
                    async with held.serve_unix(tmp_path / "s"):
                        raise AssertionError("it is not ready")
                assert caught.value.code == "BEFORE_LEASE_HOOK_FAILED"

    run(body)


def test_an_exporter_that_does_not_come(lab: LabFiles, tmp_path: Path) -> None:
    async def body() -> None:
        async with room(lab, tmp_path, boards=0) as place:
            board = await place.add_board(serve=False)
            alice = await place.client("alice")
            async with hold_lease(alice, WISH, dial_timeout=1.0) as held:
                with pytest.raises(ExporterUnreachableError, match="exporter e0 "):
                    async with held.serve_unix(tmp_path / "s"):
                        raise AssertionError("it does not listen")
                await board.peer.status(ExporterStatus.OFFLINE)
                with pytest.raises(ExporterOfflineError, match="exporter e0 is offline"):
                    async with held.serve_unix(tmp_path / "t"):
                        raise AssertionError("it is offline")

    run(body)


def test_an_exporter_that_was_offline_is_reached_again(lab: LabFiles, tmp_path: Path) -> None:
    async def body() -> None:
        async with room(lab, tmp_path) as place:
            alice, board = await place.client("alice"), place.boards[0]
            async with hold_lease(alice, WISH) as held, held.serve_unix(tmp_path / "s") as path:
                assert held.socket is not None
                await board.peer.status(ExporterStatus.OFFLINE)
                for tunnel in list(board.tunnels):
                    tunnel.cancel()
                with pytest.raises(ExporterOfflineError, match="exporter e0 is offline"):
                    while True:  # until the connection that broke is opened again
                        await held.socket.ready()
                        await asyncio.sleep(0.01)
                await board.peer.status(ExporterStatus.LEASE_READY)
                await held.socket.ready()
                async with connect(path, grpc_options=OWN) as session:
                    assert await session.node("power").call("status") == "off"

    run(body)


def test_a_lease_that_is_lost_ends_the_wait_and_the_connections(lab: LabFiles, tmp_path: Path) -> None:
    async def body() -> None:
        async with room(lab, tmp_path) as place:
            alice, board = await place.client("alice"), place.boards[0]
            async with hold_lease(alice, WISH) as held, held.serve_unix(tmp_path / "s") as path:
                async with connect(path, grpc_options=OWN) as session:
                    await alice.delete_lease(held.name)
                    async with asyncio.timeout(60):
                        with pytest.raises(Exception, match=r"power\.status"):
                            while True:
                                await session.node("power").call("status")
            hooked = asyncio.Event()

            async def hook(_: Any) -> None:
                await board.set_status(ExporterStatus.BEFORE_LEASE_HOOK)
                hooked.set()

            board.hook = hook
            async with hold_lease(alice, WISH) as held:
                ending = asyncio.create_task(_delete_after(hooked, alice, held.name))
                with pytest.raises(LeaseError, match=f"lease {held.name} has ended"):
                    async with held.serve_unix(tmp_path / "s"):
                        raise AssertionError("it is not ready")
                await ending

    run(body)


async def _delete_after(event: asyncio.Event, alice: Any, name: str) -> None:
    await event.wait()
    await alice.delete_lease(name)
