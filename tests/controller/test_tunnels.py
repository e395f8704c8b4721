# SPDX-License-Identifier: Apache-2.0
"""Dial, listen and the router: a tunnel is for the two it was made for, once, while the lease lasts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from controller_harness import LabFiles
from google.protobuf.duration_pb2 import Duration
from grpc.aio import EOF
from peers import HOME, ExporterPeer, Peer, first, lab_of, refusal, short

from jumpstarter.common.enums import ExporterStatus
from jumpstarter.streams.frames import GOAWAY, Frame, decode_frame, encode_frame
from jumpstarter_controller.errors import Refused
from jumpstarter_controller.identity import dial
from jumpstarter_controller.services.listeners import Listener
from jumpstarter_protocol.jumpstarter.client.v1 import client_pb2


async def _leased(exporter: ExporterPeer, alice: Peer) -> tuple[str, Any]:
    """A lease that is ready to be dialed, and the exporter's Listen call."""
    name = short((await alice.lease()).name)
    assert (await exporter.next()).lease_name == name
    listen = exporter.listen(name)
    await exporter.status(ExporterStatus.LEASE_READY)
    return name, listen


async def _dial(alice: Peer, name: str, listen: Any) -> tuple[str, str]:
    """Tokens of a new tunnel: the client's, the exporter's."""
    near = await alice.call("Dial", lease_name=name)
    far = await asyncio.wait_for(listen.read(), 60)
    assert near.router_endpoint == far.router_endpoint == alice.lab.endpoint
    return near.router_token, far.router_token


@asynccontextmanager
async def _tunnel(exporter: ExporterPeer, alice: Peer) -> AsyncIterator[tuple[str, Any, Any]]:
    """A tunnel through which a byte has gone each way: (lease, the client's call, the exporter's)."""
    name, listen = await _leased(exporter, alice)
    mine, theirs = await _dial(alice, name, listen)
    async with alice.tunnel(mine) as near, exporter.tunnel(theirs) as far:
        for a, b in ((near, far), (far, near)):
            await a.write(b"\x0a\x01x")
            assert await asyncio.wait_for(b.read(), 60) == b"\x0a\x01x"
        yield name, near, far


async def _ended(call: Any) -> tuple[str, str]:
    """Code and text that a tunnel ends with."""

    try:
        async with asyncio.timeout(60):
            while await call.read() is not EOF:
                pass
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    return (await call.code()).name, await call.details()


def test_frames_pass_as_they_are_and_each_end_ends_by_itself(lab: LabFiles) -> None:
    async def body() -> None:
        async with lab_of(lab) as (running, [exporter], [alice]):
            async with _tunnel(exporter, alice) as (_, near, far):
                assert running.router.open_tunnels == 1
                # A frame type and a field of a newer peer, and bytes that are no message at all.
                for message in (b"\x10\x2a\x1a\x03new", b"\xff\xff\xff", encode_frame(Frame(os.urandom(1 << 20)))):
                    await near.write(message)
                    assert await far.read() == message
                await near.write(encode_frame(Frame(b"", GOAWAY)))
                await near.done_writing()
                assert decode_frame(await far.read()).type == GOAWAY
                await far.write(b"\x0a\x04late")  # the other direction goes on
                assert await near.read() == b"\x0a\x04late"
                await far.done_writing()
                assert await _ended(near) == ("OK", "")
                assert await _ended(far) == ("OK", "")
            await _until(lambda: running.router.open_tunnels == 0)

    asyncio.run(body())


@pytest.mark.parametrize("how", ["release", "expiry", "transfer"])
def test_a_tunnel_ends_with_its_lease(lab: LabFiles, how: str) -> None:
    async def body() -> None:
        async with lab_of(lab, clients=2) as (_, [exporter], [alice, bob]):
            async with _tunnel(exporter, alice) as (name, near, far):
                full = f"{HOME}/leases/{name}"
                want = ("ABORTED", f"lease {name} has ended")
                if how == "release":
                    await alice.ask("DeleteLease", name=full)
                elif how == "expiry":
                    short_one = client_pb2.Lease(name=full, duration=Duration(nanos=1000))
                    await alice.ask("UpdateLease", lease=short_one)
                else:
                    given = client_pb2.Lease(name=full, client=f"{HOME}/clients/c1")
                    await alice.ask("UpdateLease", lease=given)
                    want = ("PERMISSION_DENIED", f"permission denied: lease {name} has another holder now")
                assert await _ended(near) == want
                assert await _ended(far) == want
                code, text = await refusal(alice.call("Dial", lease_name=name))
                if how == "transfer":
                    assert (code, text) == ("PERMISSION_DENIED", "permission denied")
                    assert (await bob.call("Dial", lease_name=name)).router_token
                else:
                    assert (code, text) == ("FAILED_PRECONDITION", f"lease {name} has ended")

    asyncio.run(body())


def test_one_end_that_goes_takes_the_other_with_it(lab: LabFiles) -> None:
    async def body() -> None:
        async with lab_of(lab) as (_, [exporter], [alice]):
            async with _tunnel(exporter, alice) as (_, near, far):
                near.cancel()
                assert await _ended(far) == ("UNAVAILABLE", "the client has gone")

    asyncio.run(body())


def test_an_end_that_comes_after_the_other_has_gone_is_told_at_once(lab: LabFiles) -> None:
    async def body() -> None:
        async with lab_of(lab) as (running, [exporter], [alice]):
            name, listen = await _leased(exporter, alice)
            mine, theirs = await _dial(alice, name, listen)
            async with alice.tunnel(mine):
                await _until(lambda: running.router.waiting_ends == 1)
            await _until(lambda: running.router.waiting_ends == 0)
            async with exporter.tunnel(theirs) as far:
                assert await _ended(far) == ("UNAVAILABLE", "the client has gone")

    asyncio.run(body())


async def _until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.005)


def test_dial_tokens_are_good_once_for_one_role(lab: LabFiles) -> None:
    async def body() -> None:
        async with lab_of(lab) as (running, [exporter], [alice]):
            name, listen = await _leased(exporter, alice)
            mine, theirs = await _dial(alice, name, listen)
            async with alice.tunnel(mine) as near:
                await near.write(b"\x0a\x01x")
                # A write does not wait for the router: without this, sometimes the other call is there first.
                await _until(lambda: running.router.waiting_ends == 1)
                async with alice.tunnel(mine) as again:
                    assert await _ended(again) == ("UNAUTHENTICATED", "this dial token has been used already")
                async with exporter.tunnel(theirs) as far:
                    assert await far.read() == b"\x0a\x01x"
                    for token, why in ((theirs, "used already"), (alice.token, "not valid"), ("no", "not valid")):
                        async with alice.tunnel(token) as replay:
                            code, text = await _ended(replay)
                            assert code == "UNAUTHENTICATED"
                            assert why in text
            # After the tunnel, too.
            async with exporter.tunnel(theirs) as late:
                assert (await _ended(late))[0] == "UNAUTHENTICATED"

    asyncio.run(body())


def test_an_end_whose_peer_does_not_come_is_not_kept(lab: LabFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    expired = ("UNAUTHENTICATED", "token is expired")

    async def body() -> None:
        async with lab_of(lab) as (_, [exporter], [alice]):
            name, listen = await _leased(exporter, alice)
            for seconds in (0.5, 4.0, 32.0):
                monkeypatch.setattr(dial, "DIAL_SECONDS", seconds)
                mine, theirs = await _dial(alice, name, listen)
                async with alice.tunnel(mine) as near:
                    if (found := await _ended(near)) != expired:
                        break  # else this machine was too slow to show it in time
            assert found == ("DEADLINE_EXCEEDED", f"the other end of the tunnel of lease {name} did not come")
            async with exporter.tunnel(theirs) as far:
                assert await _ended(far) == expired

    asyncio.run(body())


def test_a_slow_reader_stops_the_sender(lab: LabFiles) -> None:
    async def body() -> None:
        async with lab_of(lab) as (_, [exporter], [alice]):
            async with _tunnel(exporter, alice) as (_, near, far):
                message, sent = encode_frame(Frame(bytes(1 << 20))), 0

                async def send() -> None:
                    nonlocal sent
                    while sent < 200:
                        await near.write(message)
                        sent += 1

                sender = asyncio.create_task(send())
                await _until(lambda: sent)
                before = -1
                while before != sent:  # until nothing moves any more
                    before = sent
                    await asyncio.sleep(0.3)
                assert 0 < sent < 100, f"{sent} MiB went to a reader that reads nothing"
                for _ in range(200):
                    assert len(await far.read()) == len(message)
                await asyncio.wait_for(sender, 60)

    asyncio.run(body())


def test_a_dial_waits_for_the_exporter_instead_of_failing(lab: LabFiles) -> None:
    async def body() -> None:
        async with lab_of(lab) as (_, [exporter], [alice]):
            name = short((await alice.lease()).name)
            dial = asyncio.create_task(alice.call("Dial", lease_name=name))
            listen = exporter.listen(name)
            done, _ = await asyncio.wait({dial}, timeout=0.3)
            assert not done  # it listens, but says that it is only available
            await exporter.status(ExporterStatus.LEASE_READY)
            assert (await asyncio.wait_for(dial, 60)).router_token
            assert (await listen.read()).router_token
            await exporter.status(ExporterStatus.BEFORE_LEASE_HOOK_FAILED, message="boom")
            code, text = await refusal(alice.call("Dial", lease_name=name))
            assert (code, text) == (
                "FAILED_PRECONDITION",
                "exporter cannot be used (status: BeforeLeaseHookFailed): boom",
            )

    asyncio.run(body())


def test_a_dial_says_what_is_missing_when_it_has_waited(lab: LabFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jumpstarter_controller.services.dialing._DIAL_WAIT", 0.1)

    async def body() -> None:
        async with lab_of(lab) as (_, [exporter], [alice]):
            name = short((await alice.lease()).name)
            refused = await refusal(alice.call("Dial", lease_name=name))
            assert refused == ("FAILED_PRECONDITION", "exporter is not ready (status: Available)")
            await exporter.status(ExporterStatus.LEASE_READY)
            refused = await refusal(alice.call("Dial", lease_name=name))
            assert refused == ("UNAVAILABLE", f"exporter is not listening on lease {name}")
            waiting = short((await alice.lease()).name)
            refused = await refusal(alice.call("Dial", lease_name=waiting))
            assert refused == ("FAILED_PRECONDITION", f"lease not active: {waiting} waits for an exporter")

    asyncio.run(body())


def test_a_new_listener_takes_over_and_all_end_with_the_lease(lab: LabFiles) -> None:
    async def body() -> None:
        async with lab_of(lab) as (_, [exporter], [alice]):
            name, old = await _leased(exporter, alice)
            await _dial(alice, name, old)
            new = exporter.listen(name)
            assert await asyncio.wait_for(old.read(), 60) is EOF
            await _dial(alice, name, new)
            await alice.ask("DeleteLease", name=f"{HOME}/leases/{name}")
            assert await asyncio.wait_for(new.read(), 60) is EOF
            assert (await refusal(first(exporter.listen(name))))[0] == "FAILED_PRECONDITION"

    asyncio.run(body())


def test_dials_that_nobody_takes_are_limited() -> None:
    listener = Listener()
    for _ in range(8):
        listener.dial("token")
    with pytest.raises(Refused, match="8 dials to answer") as refused:
        listener.dial("token")
    assert refused.value.code.name == "RESOURCE_EXHAUSTED"
