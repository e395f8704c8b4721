# SPDX-License-Identifier: Apache-2.0
"""The services over TLS, as peers of the wire see them."""

from __future__ import annotations

import asyncio
import base64
import ssl
import statistics
import time

import grpc
import pytest
from controller_harness import LabFiles, run_cli
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from peers import HOME, ExporterPeer, Peer, controller, first, lab_of, refusal, refused_soon, short

from jumpstarter.common.enums import ExporterStatus
from jumpstarter_controller.identity import cache
from jumpstarter_protocol.jumpstarter.client.v1 import client_pb2
from jumpstarter_protocol.jumpstarter.v1 import kubernetes_pb2
from jumpstarter_protocol.jumpstarter.v1.jumpstarter_pb2 import StatusRequest


def test_an_exporter_is_told_at_once_and_the_queue_moves_on(lab: LabFiles) -> None:
    async def body() -> None:
        async with lab_of(lab, clients=2) as (_, [exporter], [alice, bob]):
            first = await alice.lease(context={"job": "7"})
            assert first.conditions[0].reason == "Ready"
            assert first.exporter == f"{HOME}/exporters/e0"
            told = await exporter.next()
            assert (told.leased, told.lease_name, told.client_name) == (True, short(first.name), "c0")
            assert dict(told.context) == {"job": "7"}
            second = await bob.lease()
            assert [(c.type, c.status, c.reason) for c in second.conditions] == [("Pending", "True", "NotAvailable")]
            await alice.ask("DeleteLease", name=first.name)
            assert not (await exporter.next()).leased  # the end of the first is never skipped
            assert (await exporter.next()).lease_name == short(second.name)
            got = await bob.ask("GetLease", name=second.name)
            assert got.exporter == f"{HOME}/exporters/e0"
            assert got.HasField("effective_begin_time")
            code, text = await refusal(alice.ask("DeleteLease", name=first.name))
            assert (code, text) == ("FAILED_PRECONDITION", f"lease {short(first.name)} has already been released")

    asyncio.run(body())


def test_a_free_exporter_is_told_of_its_lease_at_once_and_not_at_the_next_poll(lab: LabFiles) -> None:
    async def body() -> tuple[list[float], list[float]]:
        took, calls = [], []
        async with lab_of(lab) as (_, [exporter], [alice]):
            for _ in range(20):
                begin = time.perf_counter()
                lease = await alice.lease()
                while not (await exporter.next()).leased:
                    pass
                took.append(time.perf_counter() - begin)
                begin = time.perf_counter()
                await alice.ask("GetLease", name=lease.name)
                calls.append(time.perf_counter() - begin)
                await alice.ask("DeleteLease", name=lease.name)
                assert not (await exporter.next()).leased
        return took, calls

    took, calls = asyncio.run(body())
    # `make bench-controller` says how long it takes; here it is compared with a call that only reads.
    assert statistics.median(took) < 50 * statistics.median(calls)


def test_who_may_do_what(lab: LabFiles) -> None:
    async def body() -> None:
        async with lab_of(lab, exporters=2, clients=2) as (_, [e0, e1], [alice, bob]):
            lease = await alice.lease("n=0")
            name = short(lease.name)
            for code, refused in [
                ("PERMISSION_DENIED", bob.ask("DeleteLease", name=lease.name)),
                ("PERMISSION_DENIED", bob.ask("UpdateLease", lease=client_pb2.Lease(name=lease.name))),
                ("PERMISSION_DENIED", bob.call("Dial", lease_name=name)),
                ("PERMISSION_DENIED", bob.call("GetLease", name=name)),
                ("PERMISSION_DENIED", bob.call("ReleaseLease", name=name)),
                ("FAILED_PRECONDITION", e1.call("ReleaseLease", name=name)),
                ("PERMISSION_DENIED", first(e1.listen(name))),
                ("INVALID_ARGUMENT", alice.call("Register")),
                ("INVALID_ARGUMENT", alice.call("GetServiceEndpoints")),
                ("INVALID_ARGUMENT", e0.call("Dial", lease_name=name)),
                ("INVALID_ARGUMENT", e0.ask("ListLeases", parent=HOME)),
                ("PERMISSION_DENIED", alice.ask("ListLeases", parent="namespaces/other")),
                ("INVALID_ARGUMENT", alice.ask("ListLeases", parent="default")),
                ("INVALID_ARGUMENT", alice.ask("GetLease", name=f"{HOME}/exporters/{name}")),
                ("NOT_FOUND", alice.ask("GetLease", name=f"{HOME}/leases/none")),
                ("NOT_FOUND", alice.ask("GetExporter", name=f"{HOME}/exporters/none")),
                ("INVALID_ARGUMENT", alice.lease("")),
                ("INVALID_ARGUMENT", alice.lease("a in (")),
                ("INVALID_ARGUMENT", alice.lease(seconds=-1)),
                ("INVALID_ARGUMENT", alice.ask("ListExporters", parent=HOME, page_token="*")),
            ]:
                assert (got := await refusal(refused))[0] == code, got
            # Everybody may look.
            assert (await bob.ask("GetLease", name=lease.name)).client == f"{HOME}/clients/c0"

            stranger = Peer(lab, lab.folder / "client-c1.yaml", "Client")
            stranger.metadata = [("jumpstarter-kind", "Client"), ("jumpstarter-name", "c0")]
            code, text = await refusal(stranger.ask("ListLeases", parent=HOME))
            assert code == "PERMISSION_DENIED"
            assert text.startswith("permission denied for client default/c1")
            await stranger.close()
            async with grpc.aio.secure_channel(lab.endpoint, grpc.ssl_channel_credentials(lab.ca)) as channel:
                method = "/jumpstarter.client.v1.ClientService/ListLeases"
                code, text = await refusal(channel.unary_unary(method)(b""))
                assert (code, text) == ("UNAUTHENTICATED", "the call carries no token: authorization is missing")
                refused = await refusal(channel.unary_unary(method)(b"\xff\xff"))
                assert refused == (
                    "INVALID_ARGUMENT",
                    "the request is not a jumpstarter.client.v1.ListLeasesRequest",
                )

    asyncio.run(body())


def test_a_revoked_token_is_refused_at_once(lab: LabFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_MAX_AGE", 3600.0)  # only that it is told of the revocation can help

    async def body() -> None:
        async with lab_of(lab) as (_, _, [alice]):
            await alice.ask("ListLeases", parent=HOME)
            rotated = (await alice.ask("RotateToken", parent=HOME)).token
            await alice.ask("ListLeases", parent=HOME)
            new = lab.folder / "new.yaml"
            argv = ["admin", "rotate", "client", "c0", "--config", lab.config, "--save", new, "--endpoint"]
            await asyncio.to_thread(run_cli, *argv, lab.endpoint)
            refused = await refused_soon(lambda: alice.ask("ListLeases", parent=HOME))
            assert refused == ("UNAUTHENTICATED", "token has been revoked")
            assert rotated != alice.token
            fresh = Peer(lab, new, "Client")
            await fresh.ask("ListLeases", parent=HOME)
            await fresh.close()

    asyncio.run(body())


def test_lists_have_pages_and_filters(lab: LabFiles) -> None:
    async def names(peer: Peer, method: str, field: str, **more: object) -> list[str]:
        found, token = [], ""
        while True:
            page = await peer.ask(method, parent=HOME, page_size=2, page_token=token, **more)
            found += [short(item.name) for item in getattr(page, field)]
            token = page.next_page_token
            assert len(getattr(page, field)) == 2 or not token
            if not token:
                return found

    async def body() -> None:
        async with lab_of(lab, exporters=3) as (_, _, [alice]):
            assert await names(alice, "ListExporters", "exporters") == ["e0", "e1", "e2"]
            assert await names(alice, "ListExporters", "exporters", filter="n in (0,2)") == ["e0", "e2"]
            assert await names(alice, "ListExporters", "exporters", filter="mine") == []
            one = await alice.ask("GetExporter", name=f"{HOME}/exporters/e1")
            assert dict(one.labels) == {"board": "x", "n": "1", "jumpstarter.dev/name": "e1"}
            assert (one.online, one.enabled, one.status) == (True, True, ExporterStatus.AVAILABLE)
            leases = [await alice.lease(f"n={i},board", tags={"i": str(i)}) for i in range(3)]
            made = [short(lease.name) for lease in leases]
            assert await names(alice, "ListLeases", "leases") == made
            assert await names(alice, "ListLeases", "leases", filter="n=1") == made[1:2]
            assert await names(alice, "ListLeases", "leases", tag_filter="i!=1") == [made[0], made[2]]
            await alice.ask("DeleteLease", name=leases[0].name)
            assert await names(alice, "ListLeases", "leases") == made[1:]
            assert await names(alice, "ListLeases", "leases", only_active=False) == made
            assert list((await alice.call("ListLeases")).names) == made[1:]
            for place in ("9" * 5000, "9" * 19, "-1", "x"):
                token = base64.urlsafe_b64encode(place.encode()).decode()
                wrong = await refusal(alice.ask("ListLeases", parent=HOME, page_token=token))
                assert wrong == ("INVALID_ARGUMENT", "page_token is not one of ours")

    asyncio.run(body())


def test_updates_and_the_older_calls(lab: LabFiles) -> None:
    async def body() -> None:
        async with lab_of(lab, clients=2) as (_, [exporter], [alice, bob]):
            selector = kubernetes_pb2.LabelSelector(
                match_labels={"board": "x"},
                match_expressions=[kubernetes_pb2.LabelSelectorRequirement(key="n", operator="In", values=["0"])],
            )
            name = (await alice.call("RequestLease", selector=selector, duration=Duration(seconds=600))).name
            old = await alice.call("GetLease", name=name)
            assert old.selector == selector
            assert old.conditions[0].reason == "Ready"
            assert old.exporter_uuid
            full = f"{HOME}/leases/{name}"
            longer = client_pb2.Lease(name=full, duration=Duration(seconds=1200))
            assert (await alice.ask("UpdateLease", lease=longer)).duration.seconds == 1200
            moved = client_pb2.Lease(name=full, begin_time=Timestamp(seconds=1))
            refused = await refusal(alice.ask("UpdateLease", lease=moved))
            assert refused == ("FAILED_PRECONDITION", "cannot update BeginTime: lease has already started")
            given = client_pb2.Lease(name=full, client=f"{HOME}/clients/c1")
            assert short((await alice.ask("UpdateLease", lease=given)).client) == "c1"
            assert (await exporter.next()).client_name == "c0"
            assert (await exporter.next()).client_name == "c1"
            await bob.call("ReleaseLease", name=name)
            await bob.call("ReleaseLease", name=name)
            assert not (await exporter.next()).leased
            assert [c.reason for c in (await bob.ask("GetLease", name=full)).conditions] == ["Released"]

    asyncio.run(body())


def test_an_exporter_ends_its_lease_and_leaves(lab: LabFiles) -> None:
    async def body() -> None:
        async with lab_of(lab) as (_, [exporter], [alice]):
            lease = await alice.lease()
            assert (await exporter.next()).leased
            await exporter.status(ExporterStatus.LEASE_READY)
            await exporter.status(ExporterStatus.AFTER_LEASE_HOOK, release_lease=True)
            assert not (await exporter.next()).leased
            waiting = await alice.lease()
            assert waiting.conditions[0].reason == "NotReady"
            await exporter.status(ExporterStatus.AVAILABLE)
            assert (await exporter.next()).lease_name == short(waiting.name)
            await exporter.call("Unregister", reason="bye")
            seen = await alice.ask("GetExporter", name=f"{HOME}/exporters/e0")
            assert (seen.online, seen.status, seen.status_message) == (False, ExporterStatus.OFFLINE, "bye")
            refused = await refusal(alice.call("Dial", lease_name=short(waiting.name)))
            assert refused == ("FAILED_PRECONDITION", "exporter is offline")
            assert (await alice.ask("GetLease", name=lease.name)).conditions[0].reason == "Released"

    asyncio.run(body())


def test_leases_end_by_themselves_and_not_before_their_time(lab: LabFiles) -> None:
    async def body() -> None:
        async with lab_of(lab) as (running, [exporter], [alice]):
            lease = await alice.lease()
            assert (await exporter.next()).leased
            # Only now it becomes a short one: who is slow to look would not see one that was short from its begin.
            past = running.database.clock() - lease.effective_begin_time.ToNanoseconds() / 1e9
            wanted = Duration()
            wanted.FromNanoseconds(round((past + 0.5) * 1e9))
            changed = {"name": lease.name, "duration": wanted}
            await alice.ask("UpdateLease", lease=changed, update_mask={"paths": ["duration"]})
            assert not (await exporter.next()).leased
            ended = await alice.ask("GetLease", name=lease.name)
            assert ended.conditions[-1].reason == "Expired"
            took = ended.effective_end_time.ToNanoseconds() - ended.effective_begin_time.ToNanoseconds()
            assert took >= wanted.ToNanoseconds() - 1_000_000  # never before its time

    asyncio.run(body())


def test_a_restart_loses_nothing(lab: LabFiles) -> None:
    async def body() -> None:
        async with lab_of(lab) as (_, [exporter], [alice]):
            lease = await alice.lease()
            assert (await exporter.next()).leased
            waiting = await alice.lease()
        async with controller(lab):
            alice = Peer(lab, lab.folder / "client-c0.yaml", "Client")
            exporter = ExporterPeer(lab, lab.folder / "exporter-e0.yaml")
            assert (await alice.ask("GetLease", name=lease.name)).conditions[0].reason == "Ready"
            told = await first(exporter.controller.Status(StatusRequest(), metadata=exporter.metadata))
            assert (told.leased, told.lease_name) == (True, short(lease.name))
            assert not (await alice.ask("GetLease", name=waiting.name)).HasField("exporter")
            await alice.close()
            await exporter.close()

    asyncio.run(body())


def test_a_controller_that_was_killed_comes_back_with_its_leases(lab: LabFiles) -> None:
    async def before() -> tuple[str, str]:
        exporter = ExporterPeer(lab, lab.exporter("e0", "-l", "board=x"))
        alice = Peer(lab, lab.client("c0"), "Client")
        await exporter.start()
        names = (await alice.lease()).name, (await alice.lease()).name
        await alice.close()
        await exporter.close()
        return names

    async def after(active: str, waiting: str) -> None:
        exporter = ExporterPeer(lab, lab.folder / "exporter-e0.yaml")
        alice = Peer(lab, lab.folder / "client-c0.yaml", "Client")
        told = await first(exporter.controller.Status(StatusRequest(), metadata=exporter.metadata))
        assert told.lease_name == short(active)
        await alice.ask("DeleteLease", name=active)
        told = await first(exporter.controller.Status(StatusRequest(), metadata=exporter.metadata))
        assert told.lease_name == short(waiting)
        await alice.close()
        await exporter.close()

    with lab.serving(killed=True) as process:
        names = asyncio.run(before())
        process.kill()
    with lab.serving():
        asyncio.run(after(*names))


def test_a_renewed_certificate_is_taken_up_without_a_restart(lab: LabFiles) -> None:
    async def body() -> None:
        async with controller(lab):
            before = await asyncio.to_thread(_certificate_of, lab)
            await asyncio.to_thread(run_cli, "ca", "renew", "--dir", lab.folder)
            assert await asyncio.to_thread(_certificate_of, lab) != before

    asyncio.run(body())


def _certificate_of(lab: LabFiles) -> str:
    host, _, port = lab.endpoint.rpartition(":")
    return ssl.get_server_certificate((host, int(port)), ca_certs=str(lab.folder / "ca.crt"))
