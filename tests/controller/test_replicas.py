# SPDX-License-Identifier: Apache-2.0
"""Several controllers on one PostgreSQL database are one lab."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from controller_harness import LabFiles
from grpc.aio import EOF
from peers import HOME, ExporterPeer, Peer, controller, refusal, short
from sqlalchemy import select, text

from jumpstarter.common.enums import ExporterStatus
from jumpstarter_controller import handover, replicas
from jumpstarter_controller import lab as lab_module
from jumpstarter_controller.server import RunningController
from jumpstarter_controller.services import dialing
from jumpstarter_controller.services.listeners import Listeners
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Dial, Exporter, Lease, Replica
from jumpstarter_protocol.jumpstarter.v1.jumpstarter_pb2 import StatusRequest


@pytest.fixture
def lab(tmp_path: Path, postgres_url: str) -> LabFiles:
    return LabFiles.make(tmp_path / "lab", database=postgres_url)


@asynccontextmanager
async def _two(lab: LabFiles) -> AsyncIterator[tuple[LabFiles, LabFiles, list[RunningController]]]:
    """Two controllers: the files of the lab as those see them who use the first, or the second."""
    one, two = dataclasses.replace(lab), dataclasses.replace(lab)
    async with controller(one) as first, controller(two) as second:
        yield one, two, [first, second]


@asynccontextmanager
async def _closing(*peers: Peer) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for peer in peers:
            await peer.close()


async def _until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not await true():
            await asyncio.sleep(0.02)


async def _next(listen: Any) -> Any:
    async with asyncio.timeout(60):
        return await listen.read()


async def _echo(near: Any, far: Any) -> None:
    """A byte each way."""
    async with asyncio.timeout(60):
        for a, b in ((near, far), (far, near)):
            await a.write(b"\x0a\x01x")
            assert await b.read() == b"\x0a\x01x"


def test_a_client_on_one_reaches_an_exporter_that_listens_on_the_other(lab: LabFiles) -> None:
    async def body() -> None:
        async with _two(lab) as (one, two, running):
            exporter = ExporterPeer(two, two.exporter("e0", "-l", "board=x"))
            alice = Peer(one, one.client("alice"), "Client")
            async with _closing(exporter, alice):
                await exporter.start()
                name = short((await alice.lease()).name)
                assert (await exporter.next()).lease_name == name
                await exporter.status(ExporterStatus.LEASE_READY)
                listen = exporter.listen(name)
                for _ in range(3):
                    near = await alice.call("Dial", lease_name=name)
                    far = await _next(listen)
                    assert near.router_endpoint == far.router_endpoint == one.endpoint
                    async with (
                        alice.tunnel(near.router_token, near.router_endpoint) as mine,
                        exporter.tunnel(far.router_token, far.router_endpoint) as theirs,
                    ):
                        await _echo(mine, theirs)
                        assert running[0].router and running[0].router.open_tunnels == 1
                assert running[0].database.read_now(_dials) == 0
                # The end of the lease, said at one, ends the stream at the other.
                await alice.ask("DeleteLease", name=f"{HOME}/leases/{name}")
                assert not (await exporter.next()).leased
                assert await _next(listen) is EOF

    asyncio.run(body())


def _dials(tx: Transaction) -> int:
    return len(tx.session.scalars(select(Dial)).all())


def test_a_dial_before_the_exporter_listens_waits_for_it_wherever_it_comes(lab: LabFiles) -> None:
    async def body() -> None:
        async with _two(lab) as (one, two, _):
            exporter = ExporterPeer(two, two.exporter("e0", "-l", "board=x"))
            alice = Peer(one, one.client("alice"), "Client")
            async with _closing(exporter, alice):
                await exporter.start()
                name = short((await alice.lease()).name)
                await exporter.next()
                dial = asyncio.create_task(alice.call("Dial", lease_name=name))
                await exporter.status(ExporterStatus.LEASE_READY)
                listen = exporter.listen(name)
                async with asyncio.timeout(60):
                    near = await dial
                    assert near.router_token
                    assert (await listen.read()).router_endpoint == near.router_endpoint
                # It goes to the other controller: the old stream there ends, the new one gets the dials.
                moved = ExporterPeer(one, one.folder / "exporter-e0.yaml")
                async with _closing(moved):
                    again = moved.listen(name)
                    assert await _next(listen) is EOF
                    near = await alice.call("Dial", lease_name=name)
                    assert (await _next(again)).router_endpoint == near.router_endpoint

    asyncio.run(body())


def test_a_dial_that_is_taken_while_the_next_stream_begins_is_told(
    lab: LabFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old stream has taken it in the database: then it has to tell it, before it ends."""
    taking, go_on, begun = threading.Event(), threading.Event(), threading.Event()
    take, listening = handover.take, Listeners.listening

    def slow(*args: Any) -> Any:
        taking.set()
        assert go_on.wait(60)
        return take(*args)

    @contextmanager
    def noticed(self: Listeners, *lease: str) -> Iterator[Any]:
        with listening(self, *lease) as listener:
            begun.set()
            yield listener

    async def body() -> None:
        async with _two(lab) as (one, two, running):
            exporter = ExporterPeer(two, two.exporter("e0", "-l", "board=x"))
            alice = Peer(one, one.client("alice"), "Client")
            async with _closing(exporter, alice):
                await exporter.start()
                name = short((await alice.lease()).name)
                await exporter.next()
                await exporter.status(ExporterStatus.LEASE_READY)
                old = exporter.listen(name)
                await _until(lambda: running[1].database.read(_listener))
                monkeypatch.setattr(handover, "take", slow)
                monkeypatch.setattr(Listeners, "listening", noticed)
                dial = asyncio.create_task(alice.call("Dial", lease_name=name))
                assert await asyncio.to_thread(taking.wait, 60)
                new = exporter.listen(name)
                assert await asyncio.to_thread(begun.wait, 60)
                await asyncio.wait({asyncio.ensure_future(new.initial_metadata())})
                go_on.set()
                assert (await _next(old)).router_endpoint == (await dial).router_endpoint
                assert await _next(old) is EOF

    try:
        asyncio.run(body())
    finally:
        go_on.set()


def test_dials_at_another_controller_are_limited_too(lab: LabFiles) -> None:
    async def body() -> None:
        async with _two(lab) as (one, two, running):
            exporter = ExporterPeer(two, two.exporter("e0", "-l", "board=x"))
            alice = Peer(one, one.client("alice"), "Client")
            async with _closing(exporter, alice):
                await exporter.start()
                name = short((await alice.lease()).name)
                await exporter.next()
                await exporter.status(ExporterStatus.LEASE_READY)
                stream = exporter.listen(name)  # kept: one that nobody refers to is cancelled
                await _until(lambda: running[1].database.read(_listener))
                session = await running[1].database.read(_listener)
                # Nobody reads the stream; its transport takes some, the rest waits until there is no room.
                refused = ""
                for i in range(500):
                    await running[0].database.write(_post, f"dial-{i}", session)
                for i in range(500):
                    await _until(lambda i=i: running[0].database.read(_decided, f"dial-{i}"))
                    refused = (await running[0].database.read(_outcome, f"dial-{i}"))[1] or refused
                assert "8 dials to answer" in refused
                stream.cancel()

    asyncio.run(body())


def _listener(tx: Transaction) -> str | None:
    return tx.session.scalar(select(Lease.listener))


def _post(tx: Transaction, dial: str, session: str) -> None:
    from jumpstarter_controller.handover import post

    post(tx, dial, session, "router:1", "x" * 20_000)  # more than any window of HTTP/2 takes


def _outcome(tx: Transaction, dial: str) -> tuple[bool, str]:
    from jumpstarter_controller.handover import outcome

    return outcome(tx, dial)


def _decided(tx: Transaction, dial: str) -> bool:
    return any(_outcome(tx, dial))


def test_an_exporter_whose_controller_has_died_cannot_be_dialed_until_it_is_back(
    lab: LabFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 of one of two controllers: leases stay, its exporter comes back to the other one."""
    monkeypatch.setattr(dialing, "_DIAL_WAIT", 1.0)

    async def body(process: Any) -> None:
        exporter = ExporterPeer(lab, lab.exporter("e0", "-l", "board=x"))
        one = dataclasses.replace(lab)
        async with controller(one) as running:
            alice = Peer(one, one.client("alice"), "Client")
            async with _closing(exporter, alice):
                await exporter.start()
                name = short((await alice.lease()).name)
                await exporter.next()
                await exporter.status(ExporterStatus.LEASE_READY)
                listen = exporter.listen(name)
                near = await alice.call("Dial", lease_name=name)
                assert (await _next(listen)).router_token
                process.kill()
                process.wait()
                code, text = await refusal(alice.call("Dial", lease_name=name))
                assert (code, text) == ("UNAVAILABLE", f"exporter is not listening on lease {name}")
                assert running.database.read_now(_dials) == 0
                back = ExporterPeer(one, one.folder / "exporter-e0.yaml")
                async with _closing(back):
                    told = await _first(back.controller.Status(StatusRequest(), metadata=back.metadata))
                    assert told.lease_name == name
                    again = back.listen(name)
                    monkeypatch.setattr(dialing, "_DIAL_WAIT", 30.0)
                    near = await alice.call("Dial", lease_name=name)
                    far = await _next(again)
                    assert near.router_endpoint == far.router_endpoint == one.endpoint
                    async with (
                        alice.tunnel(near.router_token) as mine,
                        back.tunnel(far.router_token) as theirs,
                    ):
                        await _echo(mine, theirs)

    with lab.serving(killed=True) as process:
        asyncio.run(body(process))


async def _first(stream: Any) -> Any:
    async with asyncio.timeout(60):
        async for message in stream:
            return message
    raise AssertionError("the stream ended")


def test_who_was_connected_to_a_dead_controller_counts_as_disconnected_after_a_time(
    lab: LabFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "BEAT", 0.1)
    monkeypatch.setattr(replicas, "LOST", 1000.0)
    later = _Later()
    monkeypatch.setattr(lab_module, "time", later)

    def pretend(tx: Transaction) -> None:
        """Another controller, which has not said anything for a while, has the exporter's stream."""
        tx.session.add(Replica(id="dead", started_at=tx.now, last_seen=tx.now - 500))
        exporter = tx.session.scalars(select(Exporter).where(Exporter.name == "away")).one()
        exporter.registered = exporter.connected = exporter.online = True
        exporter.replica = "dead"

    def wait_in_vain(tx: Transaction) -> None:
        """The time that it has is over, for those who were there all the while."""
        later.by = 1001.0
        tx.session.get_one(Replica, "dead").last_seen -= 501

    def seen(tx: Transaction) -> tuple[bool, bool, set[str]]:
        exporters = {e.name: e for e in tx.session.scalars(select(Exporter))}
        living = set(tx.session.scalars(select(Replica.id)))
        return exporters["away"].connected, exporters["here"].connected, living

    async def body() -> None:
        lab.exporter("away", "-l", "board=x")
        async with controller(lab) as first:
            here = ExporterPeer(lab, lab.exporter("here", "-l", "board=y"))
            async with _closing(here):
                await here.start()
                await first.database.write(pretend)
                # One that starts now leaves alone what belongs to others that may live.
                async with controller(dataclasses.replace(lab)) as second:
                    connected = await first.database.read(seen)
                    assert connected == (True, True, {"dead", first.lab.replica, second.lab.replica})
                    await first.database.write(wait_in_vain)
                    await _until(lambda: _gone(first))
                    assert (await first.database.read(seen))[1]  # the living ones keep theirs
                assert (await first.database.read(seen))[2] == {first.lab.replica}

    async def _gone(running: RunningController) -> bool:
        away, _, living = await running.database.read(seen)
        return not away and "dead" not in living

    asyncio.run(body())
    assert any(entry["action"] == "replica lost" for entry in lab.audit())


class _Later:
    """The module `time`, some seconds later."""

    by = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.by


def test_one_that_was_taken_for_dead_says_that_it_is_not(lab: LabFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "BEAT", 0.1)

    def bury(tx: Transaction) -> None:
        for replica in tx.session.scalars(select(Replica)).all():
            replica.last_seen -= 1000
        tx.session.flush()
        replicas.bury(tx)

    def connected(tx: Transaction) -> bool:
        return tx.session.scalars(select(Exporter)).one().connected

    async def body() -> None:
        async with controller(lab) as running:
            exporter = ExporterPeer(lab, lab.exporter("e0", "-l", "board=x"))
            async with _closing(exporter):
                await exporter.start()
                await running.database.write(bury)
                await _until(lambda: running.database.read(connected))

    asyncio.run(body())


def test_signs_of_life_cost_one_row_whatever_the_number_of_exporters(
    lab: LabFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "BEAT", 0.05)

    def rows(tx: Transaction) -> tuple[list[Any], Any]:
        """The versions of all exporters' rows, and that of the controller's."""
        versions = tx.session.execute(text("SELECT xmin, id FROM exporters ORDER BY id")).all()
        return list(versions), tx.session.execute(text("SELECT xmin FROM replicas")).scalar_one()

    async def body() -> None:
        async with controller(lab) as running:
            boards = [ExporterPeer(lab, lab.exporter(f"e{i}", "-l", "board=x")) for i in range(3)]
            async with _closing(*boards):
                for board in boards:
                    await board.start()
                before, beat = await running.database.read(rows)
                for _ in range(5):

                    async def beaten(last: Any = beat) -> bool:
                        return (await running.database.read(rows))[1] != last

                    await _until(beaten)
                    beat = (await running.database.read(rows))[1]
                assert (await running.database.read(rows))[0] == before

    asyncio.run(body())


def test_fifty_clients_at_two_controllers_never_share_an_exporter(lab: LabFiles) -> None:
    async def body() -> None:
        async with _two(lab) as (one, two, running):
            sides = [one, two]
            boards = [ExporterPeer(sides[i % 2], lab.exporter(f"e{i}", "-l", "board=x")) for i in range(5)]
            people = [Peer(sides[i % 2], lab.client(f"c{i}"), "Client") for i in range(50)]
            holders: dict[str, str] = {}
            most = 0

            async def work(person: Peer) -> None:
                nonlocal most
                lease = await person.lease()
                while not lease.exporter:
                    assert not lease.HasField("effective_end_time")
                    await asyncio.sleep(0.05)
                    lease = await person.ask("GetLease", name=lease.name)
                assert lease.exporter not in holders, f"{lease.exporter}: {holders[lease.exporter]} and {lease.name}"
                holders[lease.exporter] = lease.name
                most = max(most, len(holders))
                await asyncio.sleep(0)
                del holders[lease.exporter]
                await person.ask("DeleteLease", name=lease.name)

            async with _closing(*boards, *people):
                for board in boards:
                    await board.start()
                async with asyncio.timeout(240):
                    await asyncio.gather(*(work(person) for person in people))
            assert await running[0].database.read(_active) == []
            acquired = await running[0].database.read(_acquired)
            assert len(acquired) == 50

    asyncio.run(body())


def _active(tx: Transaction) -> list[str]:
    return list(tx.session.scalars(select(Lease.name).where(Lease.ended.is_(False))))


def _acquired(tx: Transaction) -> list[str]:
    return list(tx.session.scalars(select(Lease.name).where(Lease.exporter_id.is_not(None))))


def test_one_that_stops_sends_its_peers_to_the_other_and_takes_no_lease_with_it(lab: LabFiles) -> None:
    async def body() -> None:
        one, two = dataclasses.replace(lab), dataclasses.replace(lab)
        async with controller(two) as second:
            async with controller(one):
                exporter = ExporterPeer(one, one.exporter("e0", "-l", "board=x"))
                alice = Peer(one, one.client("alice"), "Client")
                await exporter.start()
                lease = await alice.lease(seconds=600)
                await exporter.next()
                status = exporter.controller.Status(StatusRequest(), metadata=exporter.metadata)
                assert (await _first(status)).leased
                listen = exporter.listen(short(lease.name))
                dial = asyncio.create_task(refusal(alice.call("Dial", lease_name=short(lease.name))))
                await _until(lambda: second.database.read(_somebody_listens))
                # From here on the lease has but a few seconds left for the second one, which does not look by itself.
                clock = second.database.clock
                second.database.clock = lambda: clock() + 597
            for call in (status, listen):
                assert await call.code() is grpc.StatusCode.UNAVAILABLE
                assert await call.details() == "the controller is stopping; connect again"
            # Or the other one has ended the lease by then.
            assert (await dial)[0] in ("UNAVAILABLE", "CANCELLED", "FAILED_PRECONDITION")
            async with _closing(exporter, alice):
                # What only the first one had in mind, the other one does: it ends the lease in time.
                await _until(lambda: _nothing_active(second))

    async def _nothing_active(running: RunningController) -> bool:
        return await running.database.read(_active) == []

    asyncio.run(body())


def _somebody_listens(tx: Transaction) -> bool:
    return tx.session.scalars(select(Lease)).one().listener is not None


def test_a_controller_killed_and_another_started_keep_lease_and_queue(lab: LabFiles) -> None:
    async def before() -> tuple[str, str]:
        exporter = ExporterPeer(lab, lab.exporter("e0", "-l", "board=x"))
        alice = Peer(lab, lab.client("c0"), "Client")
        async with _closing(exporter, alice):
            await exporter.start()
            return (await alice.lease()).name, (await alice.lease()).name

    async def after(active: str, waiting: str) -> None:
        exporter = ExporterPeer(lab, lab.folder / "exporter-e0.yaml")
        alice = Peer(lab, lab.folder / "client-c0.yaml", "Client")
        async with _closing(exporter, alice):
            told = await _first(exporter.controller.Status(StatusRequest(), metadata=exporter.metadata))
            assert told.lease_name == short(active)
            status = exporter.controller.Status(StatusRequest(), metadata=exporter.metadata)
            assert (await _first(status)).lease_name == short(active)
            await alice.ask("DeleteLease", name=active)
            assert not (await _first(status)).leased
            assert (await _first(status)).lease_name == short(waiting)

    with lab.serving(killed=True) as process:
        names = asyncio.run(before())
        process.send_signal(signal.SIGKILL)
        process.wait()
    with lab.serving():
        asyncio.run(after(*names))
