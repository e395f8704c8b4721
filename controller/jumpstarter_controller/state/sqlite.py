# SPDX-License-Identifier: Apache-2.0
"""SQLite: one file, in WAL mode, for one controller (and `admin` beside it).

A writer takes the lock of the whole file before it reads: transactions that schedule follow one another.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, OperationalError

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_controller.state.backend import Verdict
from jumpstarter_controller.state.bus import Bus, LocalBus
from jumpstarter_controller.state.nudge import nudged

__all__ = ["SqliteBackend"]

#: Seconds that a writer waits for one in another process (`admin` beside `serve`).
_BUSY_SECONDS = 10.0
#: How the names of errors begin that come from the file or its disk.
_STUCK = ("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_IOERR", "SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_CANTOPEN")


class SqliteBackend:
    """The file at ``path``, made private when it is new. Raises ConfigurationError naming it. threads: that use it."""

    shared = False

    def __init__(self, path: Path, threads: int, bus: Bus | None = None) -> None:
        self.name = str(path)
        self.path = path
        self.bus: Bus = bus or LocalBus()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # It holds the keys that sign tokens. SQLite gives its side files the same mode.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise ConfigurationError(f"database {path} cannot be opened: {error.strerror or error}") from error
        self.reader = _engine(path, threads)
        self.writer = self.reader.execution_options(immediate=True)

    def lock(self, connection: Connection) -> None:
        """BEGIN IMMEDIATE has taken it."""

    def take_your_time(self, connection: Connection) -> None:
        """Nothing ends a transaction here."""

    def committed(self, connection: Connection, transaction: str) -> bool:
        """Not asked: a commit here is always answered."""
        return False

    def announce(self, connection: Connection, topics: Iterable[str], *, everywhere: bool) -> None:
        """Nobody else serves from the file; `state.nudge` is for commands."""

    def verdict(self, error: DBAPIError) -> Verdict:
        """What to do about an error."""
        if isinstance(error, OperationalError) and "database is locked" in str(error.orig):
            return Verdict.BUSY
        name = getattr(error.orig, "sqlite_errorname", "")
        return Verdict.STUCK if name.startswith(_STUCK) else Verdict.FATAL

    def server_time(self, connection: Connection) -> None:
        """This machine's."""

    @asynccontextmanager
    async def running(self, suspect: Callable[[Exception], None]) -> AsyncIterator[None]:
        """Context in which commands on this host are heard. Raises ConfigurationError when another one serves."""
        with nudged(self.path, self.bus):
            yield


def _engine(path: Path, threads: int) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}",
        connect_args={"timeout": _BUSY_SECONDS},
        pool_size=threads,
        max_overflow=1,
        hide_parameters=True,  # an error is logged with its statement, and the values may be keys
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
