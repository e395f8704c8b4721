# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL goes away and comes back: nothing is lost, nothing happens twice, callers are told what is the matter."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from controller_harness import LabFiles
from grpc.aio import EOF
from grpc_health.v1 import health_pb2, health_pb2_grpc
from peers import HOME, ExporterPeer, Peer, lab_of, refusal, short
from postgres_harness import PostgresServer
from sqlalchemy import event, func, select, text

from jumpstarter.common.enums import ExporterStatus
from jumpstarter_controller.state import database as database_module
from jumpstarter_controller.state.database import Database, Transaction, Unavailable, open_database
from jumpstarter_controller.state.models import Client, Exporter


@pytest.fixture
def lab(tmp_path: Path, postgres_url: str) -> LabFiles:
    return LabFiles.make(tmp_path / "lab", database=postgres_url)


def _add(tx: Transaction, name: str) -> Client:
    client = Client(namespace="default", name=name, created_at=tx.now)
    tx.session.add(client)
    tx.touch("clients")
    return client


def _count(tx: Transaction) -> int:
    return tx.session.scalar(select(func.count()).select_from(Client)) or 0


async def _health(lab: LabFiles, service: str) -> Any:
    credentials = grpc.ssl_channel_credentials(lab.ca)
    async with grpc.aio.secure_channel(lab.endpoint, credentials) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=60)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_a_restart_of_the_server_under_a_lease_with_a_tunnel(lab: LabFiles, postgres: PostgresServer, how: str) -> None:
    services = ["", "jumpstarter.v1.ControllerService", "jumpstarter.client.v1.ClientService"]

    async def body() -> None:
        async with lab_of(lab, clients=2) as (running, [exporter], [alice, bob]):
            lease = await alice.lease(seconds=600)
            short_one = await bob.lease(seconds=600)  # waits
            name = short(lease.name)
            assert (await exporter.next()).lease_name == name
            listen = exporter.listen(name)
            await exporter.status(ExporterStatus.LEASE_READY)
            near = await alice.call("Dial", lease_name=name)
            far = await listen.read()
            async with alice.tunnel(near.router_token) as mine, exporter.tunnel(far.router_token) as theirs:
                await mine.write(b"\x0a\x01x")
                assert await theirs.read() == b"\x0a\x01x"

                await asyncio.to_thread(postgres.stop, how)
                running.database.bus.publish_all()  # streams that look now find nothing
                assert await refusal(alice.ask("GetLease", name=lease.name)) == (
                    "UNAVAILABLE",
                    "the controller's database is not available; try again later",
                )
                assert (await refusal(bob.lease()))[0] == "UNAVAILABLE"
                for service in services:
                    assert await _health(lab, service) == "NOT_SERVING"
                assert await _health(lab, "jumpstarter.v1.RouterService") == "SERVING"
                await mine.write(b"\x0a\x01y")  # what needs no database goes on
                assert await theirs.read() == b"\x0a\x01y"
                exporter_of_bob = asyncio.create_task(exporter.next())

                postgres.start()
                await running.database.outage.over(60)
                assert await _health(lab, "") == "SERVING"
                seen = await alice.ask("GetLease", name=lease.name)
                assert seen.conditions[-1].reason == "Ready"
                await mine.write(b"\x0a\x01z")
                assert await theirs.read() == b"\x0a\x01z"
                # Listen and Status are the streams of before, and the next dial comes on it.
                near = await alice.call("Dial", lease_name=name)
                async with asyncio.timeout(60):
                    assert (await listen.read()).router_endpoint == near.router_endpoint
                await alice.ask("DeleteLease", name=lease.name)
                async with asyncio.timeout(60):
                    assert not (await exporter_of_bob).leased
                await exporter.status(ExporterStatus.AVAILABLE)
                assert (await exporter.next()).lease_name == short(short_one.name)

    asyncio.run(body())


def test_a_lease_that_was_due_during_the_outage_ends_after_it(lab: LabFiles, postgres: PostgresServer) -> None:
    async def body() -> None:
        async with lab_of(lab) as (running, [exporter], [alice]):
            lease = await alice.lease()
            assert (await exporter.next()).leased
            # Its end is moved to soon only when everybody has seen its begin.
            past = running.database.clock() - lease.effective_begin_time.ToNanoseconds() / 1e9
            changed = {"name": lease.name, "duration": {"seconds": round(past) + 5}}
            await alice.ask("UpdateLease", lease=changed, update_mask={"paths": ["duration"]})
            await asyncio.to_thread(postgres.stop)
            due = running.database.clock() + 5.5
            while running.database.clock() < due:
                code = (await refusal(alice.ask("GetLease", name=lease.name)))[0]
                assert code == "UNAVAILABLE"
            postgres.start()
            await running.database.outage.over(60)
            assert not (await exporter.next()).leased
            assert (await alice.ask("GetLease", name=lease.name)).conditions[-1].reason == "Expired"

    asyncio.run(body())


def test_an_exporter_that_leaves_during_the_outage_counts_as_disconnected_after_it(
    lab: LabFiles, postgres: PostgresServer
) -> None:
    async def body() -> None:
        async with lab_of(lab) as (running, [exporter], [alice]):
            await asyncio.to_thread(postgres.stop)
            await exporter.stop_watching()
            for _ in range(2):  # longer than anybody waits for it
                assert (await refusal(alice.ask("ListLeases", parent=HOME)))[0] == "UNAVAILABLE"
            postgres.start()
            await running.database.outage.over(60)
            async with asyncio.timeout(60):
                while await running.database.read(_connected):
                    await asyncio.sleep(0.02)
            assert not (await alice.lease()).exporter

    asyncio.run(body())


def _connected(tx: Transaction) -> bool:
    return tx.session.scalars(select(Exporter)).one().connected


def test_calls_that_meet_a_short_restart_do_not_notice(postgres_url: str, postgres: PostgresServer) -> None:
    """Sessions are all broken, the server is back at once: the transactions are run again."""
    database = open_database(postgres_url)

    async def body() -> None:
        async with database.running():
            await asyncio.gather(*(database.read(_count) for _ in range(8)))  # fill the pool
            for i in range(3):
                await asyncio.to_thread(_cut_all, postgres)
                await database.write(_add, f"client-{i}")
                await asyncio.to_thread(_cut_all, postgres)
                assert await database.read(_count) == i + 1

    asyncio.run(body())
    database.close()


def _cut_all(postgres: PostgresServer) -> None:
    postgres.run_sql(
        "postgres",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'jumpstarter-controller'",
    )


@contextlib.contextmanager
def _commit_breaks(database: Database, postgres: PostgresServer, *, after: bool) -> Iterator[list[int]]:
    """Context: the next commit of a writer is not answered; it has happened (``after``) or not."""
    left = [1]

    def commit(connection: Any) -> None:
        if left and connection.get_execution_options().get("isolation_level") != "REPEATABLE READ":
            left.pop()
            raw = connection.connection.dbapi_connection
            real, pid = raw.commit, raw.info.backend_pid

            def break_it() -> None:
                del raw.commit
                if after:
                    real()
                postgres.run_sql("postgres", f"SELECT pg_terminate_backend({pid}, 10000)")
                raw.execute("SELECT 1")

            raw.commit = break_it

    event.listen(database.engine, "commit", commit)
    try:
        yield left
    finally:
        event.remove(database.engine, "commit", commit)


@pytest.mark.parametrize("after", [True, False], ids=["committed", "not committed"])
@pytest.mark.parametrize("offline", [True, False], ids=["write_now", "write"])
def test_a_commit_that_is_not_answered_happens_once(
    postgres_url: str, postgres: PostgresServer, after: bool, offline: bool
) -> None:
    database = open_database(postgres_url)

    async def body() -> Client:
        async with database.running():
            with database.bus.subscribe("clients") as subscription:
                made = await database.write(_add, "alice")
                assert subscription.take()
                return made

    with _commit_breaks(database, postgres, after=after) as left:
        made = database.write_now(_add, "alice") if offline else asyncio.run(body())
        assert not left, "no commit was broken"
    assert made.name == "alice"  # what it returned can be read
    assert database.read_now(_count) == 1
    database.close()


def test_who_holds_the_lock_for_ever_is_not_waited_for(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another controller, frozen in a transaction: the server ends its session."""
    monkeypatch.setattr("jumpstarter_controller.state.postgres._SETTINGS", "-c lock_timeout=300")
    impatient = open_database(postgres_url)
    monkeypatch.undo()
    frozen = open_database(postgres_url)
    with frozen.engine.connect() as connection, connection.begin() as transaction:
        frozen.backend.take_your_time(connection)
        frozen.backend.lock(connection)
        with pytest.raises(Unavailable, match="held by others for too long; try again later"):
            impatient.write_now(_add, "alice")
        # Only now it can be too late for it: this machine may be slow, too.
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 300"))

        async def body() -> None:
            while True:
                try:
                    return await impatient.write(_add_only, "bob")
                except Unavailable:
                    continue

        asyncio.run(body())
        connection.invalidate()
        transaction.close()
    assert impatient.read_now(_count) == 1
    for database in (impatient, frozen):
        database.close()


def test_a_controller_that_is_told_to_end_during_the_outage_ends(lab: LabFiles, postgres: PostgresServer) -> None:
    async def connect() -> None:
        exporter = ExporterPeer(lab, lab.exporter("e0", "-l", "board=x"))
        alice = Peer(lab, lab.client("alice"), "Client")
        await exporter.start()
        lease = await alice.lease()
        listen = exporter.listen(short(lease.name))
        await exporter.status(ExporterStatus.LEASE_READY)
        await alice.call("Dial", lease_name=short(lease.name))
        await listen.read()
        await asyncio.to_thread(postgres.stop)
        process.terminate()
        async with asyncio.timeout(60):
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                while True:
                    assert await listen.read() is not EOF
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        await exporter.close()
        await alice.close()

    with lab.serving() as process:  # and it must have ended well, in time
        asyncio.run(connect())
    assert "nobody could be told that this controller ends" in (lab.folder / "controller.log").read_text()


def test_a_migration_is_waited_for(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two controllers that start, one migrates; the other one has all the time it takes."""
    monkeypatch.setattr("jumpstarter_controller.state.postgres._SETTINGS", "-c lock_timeout=200")
    first = open_database(postgres_url)
    with first.engine.connect() as connection, connection.begin():
        first.backend.lock(connection)
        with ThreadPoolExecutor(1) as threads:
            second = threads.submit(open_database, postgres_url)
            with pytest.raises(TimeoutError):
                second.result(1)
            connection.rollback()
            second.result(60).close()
    first.close()


def _add_only(tx: Transaction, name: str) -> None:
    _add(tx, name)


def test_controllers_whose_clocks_differ_agree_on_the_time(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five minutes ahead or behind: what counts is the clock of the database."""
    for skew in (300.0, -300.0):
        monkeypatch.setattr(database_module, "time", _SkewedTime(skew))
        wrong = open_database(postgres_url)
        assert abs(wrong.clock() - time.time()) < 5
        assert abs(wrong.write_now(lambda tx: tx.now) - time.time()) < 5
        wrong.close()
    monkeypatch.undo()


def test_a_slow_answer_says_what_time_it_is_until_there_is_a_better_one() -> None:
    clock = database_module._ServerClock()

    def ahead() -> float:
        return round(clock() - time.time(), 1)

    clock.compare(100.0, 400.0, 104.0)  # this machine is five minutes behind, and has much to do
    assert ahead() == 298.0
    clock.compare(100.0, 405.0, 110.0)  # worse than what is known
    assert ahead() == 298.0
    clock.compare(100.0, 400.1, 100.2)
    assert ahead() == 300.0
    clock.compare(100.0, 390.0, 102.0)
    assert ahead() == 300.0


class _SkewedTime:
    """The module `time` of a machine whose clock is wrong."""

    def __init__(self, skew: float) -> None:
        self._skew = skew

    def time(self) -> float:
        return time.time() + self._skew

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def test_conflicts_are_run_again_and_not_for_ever(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "_CONFLICT_PAUSE", 0.001)
    database = open_database(postgres_url)
    runs: list[int] = []

    def conflict(tx: Transaction, times: int) -> str:
        runs.append(1)
        if len(runs) <= times:
            tx.session.connection().exec_driver_sql("DO $$ BEGIN RAISE serialization_failure; END $$")
        return "done"

    async def body() -> None:
        assert await database.write(conflict, 3) == "done"
        assert len(runs) == 4
        runs.clear()
        with pytest.raises(Unavailable):
            await database.write(conflict, 1000)
        assert len(runs) == 9

    asyncio.run(body())
    runs.clear()
    assert database.write_now(conflict, 3) == "done"
    database.close()


def test_texts_that_cannot_be_stored_are_the_callers_mistake(lab: LabFiles) -> None:
    async def body() -> None:
        async with lab_of(lab, exporters=0) as (_, _, [alice]):
            assert await refusal(alice.ask("GetLease", name=f"{HOME}/leases/a\0b")) == (
                "INVALID_ARGUMENT",
                "the request has a value that cannot be stored",
            )

    asyncio.run(body())


def test_the_password_is_in_no_log_and_no_command_line(lab: LabFiles, postgres: PostgresServer) -> None:
    with lab.serving() as process:
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes()

        async def body() -> None:
            await asyncio.to_thread(postgres.stop)
            alice = Peer(lab, client, "Client")
            assert (await refusal(alice.ask("ListLeases", parent=HOME)))[0] == "UNAVAILABLE"
            await alice.close()
            postgres.start()

        client = lab.client("alice")
        asyncio.run(body())
    log = (lab.folder / "controller.log").read_text()
    assert "is lost" in log
    for secret in ("not:easy", "not%3Aeasy"):
        assert secret not in log
        assert secret.encode() not in command
