# SPDX-License-Identifier: Apache-2.0
"""The database: who can read it, how it grows up, and that a transaction is all or nothing. On both kinds."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from postgres_harness import PostgresServer
from queue_bench import NAMESPACE, QueueBench
from sqlalchemy import func, select, text
from sqlalchemy.exc import OperationalError

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_controller.lab import Lab
from jumpstarter_controller.leases.ending import lease_topic
from jumpstarter_controller.leases.requests import LeaseRequest, create_lease
from jumpstarter_controller.state.address import PostgresAddress
from jumpstarter_controller.state.backend import Verdict
from jumpstarter_controller.state.database import Transaction, Unavailable, open_database
from jumpstarter_controller.state.models import Base, Client, Lease


def _add(tx: Transaction, name: str) -> None:
    tx.session.add(Client(namespace="default", name=name, created_at=tx.now))
    tx.touch("clients")


def _count(tx: Transaction) -> int:
    return tx.session.scalar(select(func.count()).select_from(Client)) or 0


async def _within(seconds: float, event: asyncio.Future[None] | asyncio.Task[None]) -> None:
    async with asyncio.timeout(seconds):
        await event


def test_the_migrations_make_what_the_models_say(database_url: str) -> None:
    database = open_database(database_url)
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        if not database.shared:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    database.close()


def test_what_is_written_survives_being_closed(database_url: str) -> None:
    first = open_database(database_url)
    first.write_now(_add, "alice")
    first.close()
    second = open_database(database_url)
    assert second.read_now(_count) == 1
    second.close()


def test_a_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lab.db"
    open_database(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_database_of_a_newer_version_is_not_touched(database_url: str) -> None:
    database = open_database(database_url)
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    with pytest.raises(ConfigurationError, match=r"database \S+ is of version 9999, which a newer"):
        open_database(database_url)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "lab.db").write_text("x" * 5000)
    with pytest.raises(ConfigurationError, match=r"lab\.db cannot be used: file is not a database"):
        open_database(tmp_path / "lab.db")
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        open_database(Path("/dev/null/lab.db"))


def test_a_server_that_is_not_there_and_a_wrong_password_are_one_line_without_the_password(
    postgres_url: str, tmp_path: Path
) -> None:
    wrong = postgres_url.replace("not%3Aeasy", "sesame")
    for url, why in [
        (f"postgresql://lab:sesame@/lab?host={tmp_path}", "No such file or directory"),
        (wrong, "password authentication failed"),
    ]:
        with pytest.raises(Unavailable) as refused:
            open_database(url)
        assert why in str(refused.value)
        assert "sesame" not in str(refused.value)
        assert "\n" not in str(refused.value)
    with pytest.raises(ConfigurationError) as invalid:
        open_database("postgresql://lab:sesame@host/lab?nonsense=1")
    assert str(invalid.value).startswith("database postgresql://lab@host/lab: the URL is not valid; expected")


def test_a_password_comes_from_a_file_that_may_be_replaced(
    postgres_url: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    secret = tmp_path / "password"
    secret.write_text("not:easy/to?guess\n")
    address = PostgresAddress(postgres_url.replace(":not%3Aeasy%2Fto%3Fguess", ""), secret)
    assert "guess" not in f"{address!r} {address}"
    database = open_database(address)
    assert database.write_now(_count) == 0
    database.engine.dispose()
    secret.unlink()
    with pytest.raises(ConfigurationError, match="password file .*: No such file"):
        database.write_now(_count)
    secret.write_text("not:easy/to?guess")
    assert database.write_now(_count) == 0
    database.close()


def test_a_transaction_that_fails_changes_nothing_and_wakes_nobody(database_url: str) -> None:
    database = open_database(database_url)

    def fail(tx: Transaction) -> None:
        _add(tx, "bob")
        tx.session.flush()
        raise RuntimeError("no")

    async def body() -> None:
        async with database.running():
            with database.bus.subscribe("clients") as subscription:
                with pytest.raises(RuntimeError, match="no"):
                    await database.write(fail)
                assert not subscription.take()
                await database.write(_add, "alice")
                await _within(60, asyncio.ensure_future(subscription.changed()))
        assert await database.read(_count) == 1

    asyncio.run(body())
    database.close()


def test_a_caller_that_is_cancelled_leaves_a_whole_transaction(database_url: str) -> None:
    database = open_database(database_url)

    async def body() -> None:
        with database.bus.subscribe("clients") as subscription:
            caller = asyncio.create_task(database.write(_add, "alice"))
            await asyncio.sleep(0)
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
            await _within(60, asyncio.ensure_future(subscription.changed()))
        assert await database.read(_count) == 1

    asyncio.run(body())
    database.close()


def test_a_lease_ends_in_time_whose_caller_was_cancelled(bench: QueueBench, database_url: str) -> None:
    alice = bench.client("alice")
    database = open_database(database_url)

    def create(tx: Transaction) -> Lease:
        # With its begin the lease has an end, though it never gets an exporter.
        return create_lease(
            tx, alice, LeaseRequest(name="l", selector="a=b", begin=tx.now, duration=1.0, wait_for_match=True)
        )

    def has_ended(tx: Transaction) -> bool:
        return bool(tx.session.scalar(select(Lease.ended).where(Lease.name == "l")))

    async def ended() -> None:
        with database.bus.subscribe(lease_topic(NAMESPACE, "l")) as subscription:
            while not await database.read(has_ended):
                await subscription.changed()

    async def body() -> None:
        lab = Lab(database)
        async with lab.running():
            caller = asyncio.create_task(lab.change(create))
            await asyncio.sleep(0)  # it has begun
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
            await _within(60, asyncio.create_task(ended()))

    asyncio.run(body())
    database.close()


def test_a_server_that_answers_and_takes_no_changes_is_not_asked_for_ever(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = open_database(database_url)
    monkeypatch.setattr("jumpstarter_controller.state.database._PATIENCE", 0.2)
    monkeypatch.setattr(database.backend, "verdict", lambda _: Verdict.LOST)

    def refused(_: Transaction) -> None:
        raise OperationalError("INSERT", None, Exception("cannot execute INSERT in a read-only transaction"))

    async def body() -> None:
        async with asyncio.timeout(60):
            with pytest.raises(Unavailable, match="^the controller's database is not available; try again later$"):
                await database.write(refused)
            await database.outage.over(60)

    asyncio.run(body())
    database.close()


def test_writers_in_two_processes_follow_one_another(database_url: str) -> None:
    """Each reads, waits and writes; with a lock that comes too late one of them would write over the other."""
    databases = [open_database(database_url) for _ in range(2)]

    def grow(tx: Transaction) -> None:
        _add(tx, f"client-{_count(tx)}")

    async def body() -> None:
        await asyncio.gather(*(database.write(grow) for database in databases * 20))
        assert await databases[0].read(_count) == 40

    asyncio.run(body())
    for database in databases:
        database.close()


def test_a_reader_sees_one_moment(database_url: str) -> None:
    database = open_database(database_url)

    def look_twice(tx: Transaction) -> tuple[int, int]:
        before = _count(tx)
        database.write_now(_add, "alice")
        return before, _count(tx)

    assert database.read_now(look_twice) == (0, 0)
    assert database.read_now(_count) == 1
    database.close()
