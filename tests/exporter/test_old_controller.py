# SPDX-License-Identifier: Apache-2.0
"""An exporter whose controller is a Jumpstarter 0.9 one, or one that is unwell: only what is on the wire counts."""

from __future__ import annotations

import asyncio
import base64
import itertools
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from exporter_harness import Place, ready, run, until
from old_controller import OldController, old_controller

from jumpstarter.client.aio import connect
from jumpstarter.common.enums import ExporterStatus
from jumpstarter.common.exceptions import JumpstarterException
from jumpstarter.config.tls import TLSConfigV1Alpha1
from jumpstarter.exporter import lease, uplink
from jumpstarter.exporter.uplink import RegistrationRefused
from jumpstarter.streams.sockets import SocketStream
from jumpstarter.streams.tunnel import bridge_tunnel
from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2

READY = (ExporterStatus.LEASE_READY, "")
_NUMBERS = itertools.count()
AVAILABLE = (ExporterStatus.AVAILABLE, "")


def traced(trace: Path) -> dict[str, Any]:
    return {
        moment: {"script": f"echo {moment} $LEASE_NAME $CLIENT_NAME >> {trace}"}
        for moment in ("beforeLease", "afterLease")
    }


@asynccontextmanager
async def dialed(old: OldController, place: Place) -> AsyncIterator[Any]:
    """A client's session through the fake's router."""
    tls = TLSConfigV1Alpha1(ca=base64.b64encode(place.lab.ca).decode())
    path = place.directory / f"dial-{next(_NUMBERS)}.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.setblocking(False)
        listener.bind(str(path))
        listener.listen()

        async def accept() -> None:
            near, _ = await asyncio.get_running_loop().sock_accept(listener)
            await bridge_tunnel(SocketStream(near), old.endpoint, await old.dial(), tls=tls)

        bridge = asyncio.create_task(accept())
        try:
            async with connect(str(path)) as session:
                yield session
        finally:
            bridge.cancel()
            await asyncio.gather(bridge, return_exceptions=True)


def test_a_lease_of_an_old_controller_from_begin_to_end(place: Place) -> None:
    trace = place.directory / "trace"
    config = place.exporter(hooks=traced(trace))

    async def body() -> None:
        async with old_controller(place.lab) as old:
            async with place.serving(config):
                await until(lambda: old.statuses == [AVAILABLE])
                report = old.reports[0]
                assert report.labels == {"jumpstarter.dev/name": "board"}
                assert [r.labels["jumpstarter.dev/name"] for r in report.reports if r.parent_uuid] == ["power"]
                old.assign("l1")
                await until(lambda: READY in old.statuses)
                async with dialed(old, place) as session:
                    await ready(session)
                    await session.node("power").call("on")
                    assert {str(node.uuid) for node in session.nodes.values()} == {r.uuid for r in report.reports}
                old.assign(None)
                await until(lambda: old.statuses[-1] == AVAILABLE and len(old.statuses) > 2)
                assert [status.name for status, _ in old.statuses] == [
                    "AVAILABLE",
                    "BEFORE_LEASE_HOOK",
                    "LEASE_READY",
                    "AFTER_LEASE_HOOK",
                    "AVAILABLE",
                ]
                assert old.released == []  # it was the controller that ended it
            assert trace.read_text() == "beforeLease l1 alice\nafterLease l1 alice\n"
            assert old.statuses[-1][0] is ExporterStatus.OFFLINE
            assert old.calls[-1].endswith("/Unregister")
            # It was asked once whether it is one of ours, and nothing of ours was asked of it then.
            lab = [call for call in old.calls if "jumpstarter.lab" in call]
            assert lab == ["/jumpstarter.lab.v1.LabControllerService/GetInfo"]

    run(body)


@pytest.mark.parametrize("way", ["ReleaseLease", "ReportStatus"])
def test_the_exporter_gives_a_lease_back_in_the_way_that_the_controller_knows(place: Place, way: str) -> None:
    config = place.exporter()

    async def body() -> None:
        async with old_controller(place.lab) as old:
            if way == "ReportStatus":
                old.refuse["ReleaseLease"] = (grpc.StatusCode.PERMISSION_DENIED, "permission denied")
            async with place.serving(config):
                await until(lambda: AVAILABLE in old.statuses)
                old.assign("l1")
                await until(lambda: READY in old.statuses)
                async with dialed(old, place) as session:
                    await ready(session)
                    await session.connection.stub.EndSession(jumpstarter_pb2.EndSessionRequest())
                await until(lambda: old.released)
                assert old.released == (["l1"] if way == "ReleaseLease" else ["by status: l1"])
                await until(lambda: old.statuses[-1] == AVAILABLE)

    run(body)


def test_the_old_client_of_a_transferred_lease_is_cut_off_by_the_exporter(place: Place) -> None:
    """Because the router of an old controller does not do it."""
    trace = place.directory / "trace"
    config = place.exporter(hooks=traced(trace))

    async def body() -> None:
        async with old_controller(place.lab) as old:
            async with place.serving(config):
                old.assign("l1")
                await until(lambda: READY in old.statuses)
                async with dialed(old, place) as alices:
                    await ready(alices)
                    await alices.node("power").call("on")
                    old.assign("l1", "bob")
                    with pytest.raises(JumpstarterException):
                        while True:
                            await alices.node("power").call("status")
                    async with dialed(old, place) as bobs:
                        assert await bobs.node("power").call("status") == "on"
                old.assign(None)
                await until(lambda: old.statuses[-1] == AVAILABLE)
            assert trace.read_text() == "beforeLease l1 alice\nafterLease l1 bob\n"

    run(body)


def test_a_change_of_lease_that_was_missed_ends_the_one_and_begins_the_other(place: Place) -> None:
    trace = place.directory / "trace"
    config = place.exporter(hooks=traced(trace))

    async def body() -> None:
        async with old_controller(place.lab) as old:
            async with place.serving(config):
                old.assign("l1")
                await until(lambda: READY in old.statuses)
                async with dialed(old, place) as session:
                    await session.node("power").call("on")
                old.assign("l2", "bob", tell=False)
                old.drop_status_streams()
                async with dialed(old, place) as session:
                    assert await session.node("power").call("status") == "off"
                assert trace.read_text() == "beforeLease l1 alice\nafterLease l1 alice\nbeforeLease l2 bob\n"
                assert old.released == []

    run(body)


@pytest.mark.parametrize("stream", ["Status", "Listen"])
def test_a_stream_that_ends_again_and_again_makes_no_hot_loop(place: Place, stream: str) -> None:
    """Two 0.9 exporters of one name do this to each other with Listen."""
    config = place.exporter()

    async def body() -> None:
        async with old_controller(place.lab) as old:
            old.ending.add(stream)
            async with place.serving(config):
                old.assign("l1")
                await until(lambda: old.count(stream) >= 5)
                before = old.count(stream)
                await asyncio.sleep(2)  # how often is the question here
                assert old.count(stream) - before <= 3
                old.ending.clear()
                async with dialed(old, place) as session:
                    await session.node("power").call("on")

    run(body)


def test_an_expired_token_is_said_at_the_start(place: Place) -> None:
    config = place.exporter()

    async def body() -> None:
        async with old_controller(place.lab) as old:
            old.refuse["Register"] = (grpc.StatusCode.UNKNOWN, "oidc: verify token: oidc: token is expired")
            async with place.serving(config) as (_, task):
                await asyncio.wait([task])
                with pytest.raises(RegistrationRefused, match="token is expired"):
                    task.result()

    run(body)


def test_a_new_token_in_the_file_is_used_when_the_old_one_is_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(uplink, "_REFUSED_SECONDS", 0.2)
    config = place.exporter()
    data = yaml.safe_load(config.read_text())

    async def body() -> None:
        async with old_controller(place.lab) as old:
            async with place.serving(config):
                old.assign("l1")
                await until(lambda: READY in old.statuses)
                old.revoked.add(data["token"])
                old.drop_status_streams()
                await until(lambda: "this token has been revoked (UNAUTHENTICATED)" in caplog.text)
                config.write_text(yaml.safe_dump({**data, "token": "a-new-one"}))
                async with dialed(old, place) as session:  # the lease went on, and is listened for again
                    await session.node("power").call("on")
        assert data["token"] not in caplog.text and "a-new-one" not in caplog.text

    run(body)


def test_a_lease_that_the_exporter_cannot_serve_is_given_back_whatever_went_wrong(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> Any:
        raise RuntimeError("nobody thought of this")

    config = place.exporter(hooks=traced(place.directory / "trace"))

    async def body() -> None:
        async with old_controller(place.lab) as old:
            async with place.serving(config) as (_, task):
                await until(lambda: AVAILABLE in old.statuses)
                with monkeypatch.context() as patched:
                    patched.setattr(lease, "run_hook", broken)
                    old.assign("l1")
                    await until(lambda: old.released == ["l1"])
                    await until(lambda: old.statuses[-1] == AVAILABLE)
                failed = (ExporterStatus.BEFORE_LEASE_HOOK_FAILED, "the exporter failed: nobody thought of this")
                assert failed in old.statuses
                old.assign("l2")
                await until(lambda: READY in old.statuses)
                assert not task.done()

    run(body)
