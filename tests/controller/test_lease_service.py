# SPDX-License-Identifier: Apache-2.0
"""LabControllerService over TLS: what our clients use beyond 0.9."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from controller_harness import LabFiles
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from peers import HOME, ExporterPeer, Peer, controller, first, lab_of, refusal, short
from sqlalchemy import select

from jumpstarter.common.enums import ExporterStatus
from jumpstarter_controller.server import RunningController
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Lease
from jumpstarter_protocol.jumpstarter.client.v1 import client_pb2
from jumpstarter_protocol.jumpstarter.lab.v1 import controller_pb2, controller_pb2_grpc
from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2


def lab_service(peer: Peer) -> Any:
    return controller_pb2_grpc.LabControllerServiceStub(peer.channel)


async def create(peer: Peer, selector: str = "board=x", seconds: int = 600, **options: Any) -> client_pb2.Lease:
    wanted = client_pb2.Lease(selector=selector, duration=Duration(seconds=seconds))
    request = controller_pb2.CreateLeaseRequest(parent=HOME, lease=wanted, **options)
    lease: client_pb2.Lease = await lab_service(peer).CreateLease(request, metadata=peer.metadata, timeout=60)
    return lease


class Watch:
    """A WatchLease call whose states are taken one by one."""

    def __init__(self, peer: Peer, name: str) -> None:
        request = controller_pb2.WatchLeaseRequest(name=name)
        self._call = lab_service(peer).WatchLease(request, metadata=peer.metadata, timeout=60)

    async def next(self) -> controller_pb2.LeaseState:
        async with asyncio.timeout(60):
            state = await self._call.read()
        assert state is not grpc.aio.EOF
        return state

    async def until(self, matches: Any) -> controller_pb2.LeaseState:
        while not matches(state := await self.next()):
            pass
        return state

    async def ended(self) -> None:
        async with asyncio.timeout(60):
            assert await self._call.read() is grpc.aio.EOF
        assert await self._call.code() is grpc.StatusCode.OK


def test_anybody_may_ask_what_the_controller_can_do(lab: LabFiles) -> None:
    async def body() -> None:
        async with controller(lab):
            credentials = grpc.ssl_channel_credentials(lab.ca)
            async with grpc.aio.secure_channel(lab.endpoint, credentials) as channel:
                stub = controller_pb2_grpc.LabControllerServiceStub(channel)
                info = await stub.GetInfo(controller_pb2.GetInfoRequest(), timeout=60)
                assert info.version
                assert {"heartbeat", "no-match-wait", "watch", "reservations", "spot"} <= set(info.features)
                code, _ = await refusal(
                    stub.ListExporters(controller_pb2.ListExportersRequest(parent=HOME), timeout=60)
                )
                assert code == "UNAUTHENTICATED"

    asyncio.run(body())


def test_a_watch_tells_the_place_in_the_queue_and_the_end(lab: LabFiles) -> None:
    async def body() -> None:
        async with lab_of(lab, clients=3) as (_, _boards, [alice, bob, carol]):
            held, second, third = [await peer.lease() for peer in (alice, bob, carol)]
            watch = Watch(carol, third.name)
            state = await watch.next()
            assert (state.position, state.waiting, state.ended) == (2, 2, False)
            assert "all 1 matching exporters are leased: e0" in state.message
            await bob.ask("DeleteLease", name=second.name)
            state = await watch.until(lambda state: state.position == 1)
            assert state.waiting == 1
            await alice.ask("DeleteLease", name=held.name)
            state = await watch.until(lambda state: state.lease.exporter)
            assert (state.position, state.waiting) == (0, 0)
            await carol.ask("DeleteLease", name=third.name)
            state = await watch.until(lambda state: state.ended)
            assert state.lease.conditions[-1].reason == "Released"
            await watch.ended()
            again = Watch(alice, third.name)  # any client of the namespace, and a lease that has ended
            assert (await again.next()).ended
            await again.ended()
            code, _ = await refusal(_first(Watch(alice, f"{HOME}/leases/nothing")))
            assert code == "NOT_FOUND"

    asyncio.run(body())


async def _first(watch: Watch) -> None:
    await watch.next()


def test_a_holder_that_is_silent_loses_its_lease_and_one_that_waits_its_place(lab: LabFiles) -> None:
    async def body() -> None:
        async with lab_of(lab, clients=2) as (running, _boards, [alice, bob]):
            held = await create(alice, heartbeat=Duration(seconds=60))
            silent = await create(bob, heartbeat=Duration(seconds=60))
            patient = await bob.lease()
            watch, other = Watch(alice, held.name), Watch(bob, silent.name)
            beat = controller_pb2.HeartbeatRequest(name=held.name)
            # The test sets the clock: it is not the machine's speed that decides who was silent for too long.
            await _set_clock(running, running.database.clock() + 50)
            answer = await lab_service(alice).Heartbeat(beat, metadata=alice.metadata, timeout=60)
            assert 0 < answer.within.ToMilliseconds() <= 30_000
            await _set_clock(running, await running.database.read(_silent_at, silent.name))
            state = await other.until(lambda state: state.ended)
            assert state.lease.conditions[-1].reason == "HeartbeatLost"
            assert not (await alice.ask("GetLease", name=held.name)).HasField("effective_end_time")
            await _set_clock(running, await running.database.read(_silent_at, held.name))
            state = await watch.until(lambda state: state.ended)
            assert "Nothing was heard of the client for 60 seconds" in state.message
            assert (await bob.ask("GetLease", name=patient.name)).exporter
            code, text = await refusal(lab_service(alice).Heartbeat(beat, metadata=alice.metadata, timeout=60))
            assert (code, "has ended: Nothing was heard" in text) == ("FAILED_PRECONDITION", True)
            code, _ = await refusal(lab_service(bob).Heartbeat(beat, metadata=bob.metadata, timeout=60))
            assert code == "PERMISSION_DENIED"
            with pytest.raises(grpc.aio.AioRpcError, match="heartbeat must be 1s to 86400s, got 0.5s"):
                await create(bob, heartbeat=Duration(nanos=500_000_000))

    asyncio.run(body())


async def _set_clock(running: RunningController, now: float) -> None:
    """Set the controller's clock, which stands still from then on, and let it look at the queue."""
    running.database.clock = lambda: now
    await running.lab.change(lambda tx: None)


def _silent_at(tx: Transaction, name: str) -> float:
    """When the lease ends if nothing is heard of its client."""
    return tx.session.scalars(select(Lease.silent_at).where(Lease.name == short(name))).one() or 0.0


def test_a_lease_waits_for_an_exporter_that_comes_later(lab: LabFiles) -> None:
    async def body() -> None:
        async with lab_of(lab) as (_, _boards, [alice]):
            failed = await create(alice, "n=late")
            assert failed.conditions[-1].type == "Unsatisfiable"
            waiting = await create(alice, "n=late", no_match=controller_pb2.CreateLeaseRequest.NO_MATCH_WAIT)
            assert (waiting.conditions[-1].type, waiting.conditions[-1].reason) == ("Pending", "NoMatch")
            watch = Watch(alice, waiting.name)
            assert (await watch.next()).position == 1
            late = ExporterPeer(lab, lab.exporter("late", "-l", "n=late"))
            try:
                await late.call("Register", labels={"jumpstarter.dev/name": "late"})
                await late.status(ExporterStatus.AVAILABLE)
                state = await watch.until(lambda state: state.lease.conditions[-1].reason == "Offline")
                stream = late.controller.Status(jumpstarter_pb2.StatusRequest(), metadata=late.metadata, timeout=60)
                assert (await first(stream)).lease_name == short(waiting.name)
                state = await watch.until(lambda state: state.lease.exporter)
                assert state.lease.exporter == f"{HOME}/exporters/late"
            finally:
                await late.close()

    asyncio.run(body())


def test_exporters_are_listed_with_their_drivers_and_holders(lab: LabFiles) -> None:
    async def body() -> None:
        async with lab_of(lab, exporters=2) as (_, [e0, _e1], [alice]):
            reports = [
                jumpstarter_pb2.DriverInstanceReport(uuid="a", labels={"jumpstarter.dev/client": "x.Composite"}),
                jumpstarter_pb2.DriverInstanceReport(
                    uuid="b",
                    parent_uuid="a",
                    labels={"jumpstarter.dev/name": "qemu", "jumpstarter.dev/client": "x.Qemu"},
                ),
                jumpstarter_pb2.DriverInstanceReport(
                    uuid="c",
                    parent_uuid="b",
                    labels={"jumpstarter.dev/name": "power", "jumpstarter.dev/client": "x.Power"},
                    description="the switch",
                ),
            ]
            await e0.call("Register", labels={"jumpstarter.dev/name": "e0"}, reports=reports)
            await e0.status(ExporterStatus.AVAILABLE)
            lease = await alice.lease("n=0")
            request = controller_pb2.ListExportersRequest(parent=HOME, page_size=1)
            page = await lab_service(alice).ListExporters(request, metadata=alice.metadata, timeout=60)
            [detail] = page.exporters
            assert [(d.path, d.client, d.description) for d in detail.drivers] == [
                ("", "x.Composite", ""),
                ("qemu", "x.Qemu", ""),
                ("qemu.power", "x.Power", "the switch"),
            ]
            assert (detail.lease, detail.client) == (short(lease.name), "c0")
            assert detail.lease_ends.seconds - lease.effective_begin_time.seconds == 600
            request = controller_pb2.ListExportersRequest(parent=HOME, page_token=page.next_page_token, filter="n=1")
            second = await lab_service(alice).ListExporters(request, metadata=alice.metadata, timeout=60)
            assert [(d.exporter.name, d.lease, d.client) for d in second.exporters] == [
                (f"{HOME}/exporters/e1", "", "")
            ]
            assert second.next_page_token == ""

    asyncio.run(body())


def test_driver_calls_become_part_of_the_audit_log(lab: LabFiles) -> None:
    async def body() -> str:
        async with lab_of(lab, exporters=2) as (_, [e0, e1], [alice]):
            lease = short((await alice.lease("n=0")).name)
            call = controller_pb2.DriverCallRecord(
                lease=lease, client="c0", driver="power", method="on", kind="call", code="OK"
            )
            for peer in (e0, e1):
                await lab_service(peer).ReportCalls(
                    controller_pb2.ReportCallsRequest(calls=[call], dropped=2), metadata=peer.metadata, timeout=60
                )
            code, _ = await refusal(
                lab_service(alice).ReportCalls(controller_pb2.ReportCallsRequest(), metadata=alice.metadata)
            )
            assert code == "INVALID_ARGUMENT"
            return lease

    lease = asyncio.run(body())
    calls = [entry for entry in lab.audit() if entry["action"] == "driver call"]
    assert [(c["actor"], c["lease"], c["exporter"]) for c in calls] == [("client default/c0", lease, "e0")]
    lost = [entry for entry in lab.audit() if entry["action"] == "driver calls lost"]
    assert [(entry["exporter"], entry["dropped"], entry["foreign"]) for entry in lost] == [
        ("e0", 2, 0),
        ("e1", 2, 1),
    ]


def test_hidden_and_deprecated_labels(lab: LabFiles) -> None:
    settings = {"hiddenLabels": {"keys": ["n"]}, "deprecatedLabels": {"keys": {"board": "use model"}}}
    with lab.config.open("a") as config:
        config.writelines(f"{key}: {value}\n" for key, value in settings.items())

    async def body() -> None:
        async with lab_of(lab) as (_, _boards, [alice]):
            seen = await alice.ask("GetExporter", name=f"{HOME}/exporters/e0")
            assert (dict(seen.labels), dict(seen.deprecated_labels)) == (
                {"jumpstarter.dev/name": "e0"},
                {"board": "use model"},
            )
            all_ = await alice.ask("ListExporters", parent=HOME, show_hidden_labels=True)
            assert {"board", "n"} <= set(all_.exporters[0].labels)
            lease = await alice.lease("n=0,board=x")  # selectors may use them
            assert lease.exporter
            assert dict(lease.deprecated_labels) == {"board": "use model"}

    asyncio.run(body())


def test_an_update_mask_clears_what_is_not_given(lab: LabFiles) -> None:
    async def body() -> None:
        async with lab_of(lab) as (running, _boards, [alice]):
            begin = Timestamp()
            begin.FromSeconds(int(running.database.clock()) + 3600)
            lease = await alice.lease(seconds=60, begin_time=begin)
            assert lease.conditions[-1].reason == "Scheduled"
            name = client_pb2.Lease(name=lease.name)
            kept = await alice.ask("UpdateLease", lease=name, update_mask=FieldMask(paths=["duration"]))
            assert kept.begin_time == begin
            now = await alice.ask("UpdateLease", lease=name, update_mask=FieldMask(paths=["begin_time", "end_time"]))
            assert not now.HasField("begin_time") and not now.HasField("end_time")
            assert now.exporter == f"{HOME}/exporters/e0"

    asyncio.run(body())
