# SPDX-License-Identifier: Apache-2.0
"""The database file: who can read it, how it grows up, and that a transaction is all or nothing."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import func, select, text

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_controller.state.database import Transaction, open_database
from jumpstarter_controller.state.models import Base, Client


def _add(tx: Transaction, name: str) -> None:
    tx.session.add(Client(namespace="default", name=name, created_at=tx.now))
    tx.touch("clients")


def _count(tx: Transaction) -> int:
    return tx.session.scalar(select(func.count()).select_from(Client)) or 0


def test_the_migrations_make_what_the_models_say(tmp_path: Path) -> None:
    database = open_database(tmp_path / "lab.db")
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    database.close()


def test_it_is_private_and_survives_being_closed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lab.db"
    first = open_database(path)
    first.write_now(_add, "alice")
    first.close()
    second = open_database(path)
    assert second.write_now(_count) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    second.close()


def test_a_database_of_a_newer_version_is_not_touched(tmp_path: Path) -> None:
    database = open_database(tmp_path / "lab.db")
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    with pytest.raises(ConfigurationError, match=r"lab\.db is of version 9999, which a newer"):
        open_database(tmp_path / "lab.db")


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "lab.db").write_text("x" * 5000)
    with pytest.raises(ConfigurationError, match=r"lab\.db cannot be used: file is not a database"):
        open_database(tmp_path / "lab.db")
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        open_database(Path("/dev/null/lab.db"))


def test_a_transaction_that_fails_changes_nothing_and_wakes_nobody(tmp_path: Path) -> None:
    database = open_database(tmp_path / "lab.db")

    def fail(tx: Transaction) -> None:
        _add(tx, "bob")
        tx.session.flush()
        raise RuntimeError("no")

    async def body() -> None:
        with database.bus.subscribe("clients") as subscription:
            with pytest.raises(RuntimeError, match="no"):
                await database.write(fail)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(subscription.changed(), 0.02)
            await database.write(_add, "alice")
            await asyncio.wait_for(subscription.changed(), 5)
        assert await database.read(_count) == 1

    asyncio.run(body())
    database.close()


def test_a_caller_that_is_cancelled_leaves_a_whole_transaction(tmp_path: Path) -> None:
    database = open_database(tmp_path / "lab.db")

    async def body() -> None:
        with database.bus.subscribe("clients") as subscription:
            caller = asyncio.create_task(database.write(_add, "alice"))
            await asyncio.sleep(0)
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
            await asyncio.wait_for(subscription.changed(), 5)
        assert await database.read(_count) == 1

    asyncio.run(body())
    database.close()
