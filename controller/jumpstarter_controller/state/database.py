# SPDX-License-Identifier: Apache-2.0
"""The database: transactions, run in threads, that say afterwards what they have changed.

A transaction is an ordinary function that is given a `Transaction`. It runs in a worker thread, alone among writers,
and is repeated as a whole when the database asks for that. What it changed is published after the commit, never before.
SQLite is the database now (a file in WAL mode); what depends on it is in `_sqlite_engine` and `Database.write`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.orm import Session

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_controller.state.bus import Bus, LocalBus
from jumpstarter_controller.state.models import AuditEntry

__all__ = ["Database", "Transaction", "open_database"]

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds that a writer waits for one in another process (`admin` beside `serve`).
_BUSY_SECONDS = 10.0
_THREADS = 4


class Transaction:
    """One transaction. now: its time, in seconds since 1970. Objects it returns stay readable afterwards."""

    def __init__(self, session: Session, now: float) -> None:
        self.session = session
        self.now = now
        self.topics: set[str] = set()

    def touch(self, *topics: str) -> None:
        """Say what changes, for those who wait on the bus."""
        self.topics.update(topics)

    def audit(
        self, actor: str, action: str, *, lease: str | None = None, exporter: str | None = None, **detail: Any
    ) -> None:
        """Write down who does what."""
        self.session.add(
            AuditEntry(at=self.now, actor=actor, action=action, lease=lease, exporter=exporter, detail=detail)
        )


class Database:
    """Transactions on one engine. clock: seconds since 1970, replaced by tests."""

    def __init__(self, engine: Engine, bus: Bus | None = None, clock: Callable[[], float] = time.time) -> None:
        self.engine = engine
        self.bus: Bus = bus or LocalBus()
        self.clock = clock
        self._writer = engine.execution_options(immediate=True)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="database")
        self._one_writer = asyncio.Lock()

    def write_now(self, body: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``body`` in a transaction, in this thread; nobody is woken (command line tools, migrations)."""
        return self._run(self._writer, body, args, kwargs)[0]

    async def write(self, body: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``body`` in a transaction that may change things, then wake who waits for what it touched.

        A caller that is cancelled meanwhile leaves a transaction that is complete and published.
        """
        return await asyncio.shield(self._write(body, args, kwargs))

    async def _write(self, body: Callable[..., T], args: Iterable[Any], kwargs: dict[str, Any]) -> T:
        loop = asyncio.get_running_loop()
        async with self._one_writer:
            value, topics = await loop.run_in_executor(self._threads, self._run, self._writer, body, args, kwargs)
        self.bus.publish(topics)
        return value

    async def read(self, body: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``body`` on a snapshot; it changes nothing."""
        loop = asyncio.get_running_loop()
        return (await loop.run_in_executor(self._threads, self._run, self.engine, body, args, kwargs))[0]

    def _run(
        self, engine: Engine, body: Callable[..., T], args: Iterable[Any], kwargs: dict[str, Any]
    ) -> tuple[T, set[str]]:
        with Session(engine, expire_on_commit=False) as session, session.begin():
            transaction = Transaction(session, self.clock())
            value = body(transaction, *args, **kwargs)
        return value, transaction.topics

    def close(self) -> None:
        """Wait for what runs, then close the connections."""
        self._threads.shutdown()
        self.engine.dispose()


def open_database(path: Path, bus: Bus | None = None, clock: Callable[[], float] = time.time) -> Database:
    """The database at ``path``, made or brought up to date. Raises ConfigurationError naming the file."""
    from jumpstarter_controller.state.upgrade import upgrade

    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # It holds the keys that sign tokens. SQLite gives its side files the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise ConfigurationError(f"database {path} cannot be opened: {error.strerror or error}") from error
    engine = _sqlite_engine(path)
    upgrade(engine, path)
    return Database(engine, bus, clock)


def _sqlite_engine(path: Path) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}", connect_args={"timeout": _BUSY_SECONDS}, pool_size=_THREADS, max_overflow=1
    )

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        # Python's driver would begin transactions on its own, and too late.
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        # With WAL a commit survives the death of this process; only a power cut may lose the last ones.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer locks first and reads then: nothing it has read can change under it.
        writes = connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
