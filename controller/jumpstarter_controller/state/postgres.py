# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL: one database for several controllers.

Every transaction that writes takes one advisory lock first (released with the transaction), and reads only then, at
READ COMMITTED. So what it reads includes all that was committed before, nothing that it has read changes under it, and
transactions that schedule follow one another over all controllers, as they do on SQLite. The unique index over active
leases has the last word. Readers see one snapshot (REPEATABLE READ, read only) and wait for nobody.

A connection that breaks during COMMIT leaves open whether the transaction has happened; the server is asked for the
fate of its id before anything is run again. LISTEN needs a session: no pooler in transaction mode may be in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from uuid import uuid4

import psycopg
from psycopg import errors
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from jumpstarter_controller.state.address import PostgresAddress
from jumpstarter_controller.state.backend import Verdict
from jumpstarter_controller.state.bus import Bus, LocalBus
from jumpstarter_controller.state.notifications import CHANNEL, listen, payloads
from jumpstarter_controller.state.outage import Unavailable

__all__ = ["PostgresBackend"]

#: Of the lock that writers take: "jmpstart" in a database of its own clashes with nobody.
_LOCK = 0x6A6D70_73746172
#: A controller that is frozen in the middle of a transaction loses it, or it would hold up all the others.
#: Small queries gain nothing from being compiled.
_SETTINGS = (
    "-c idle_in_transaction_session_timeout=10000 -c lock_timeout=10000 -c statement_timeout=30000 "
    "-c client_connection_check_interval=2000 -c jit=off"
)
#: Seconds to wait at the start until other controllers are heard.
_LISTEN_WAIT = 5.0


class PostgresBackend:
    """The database at ``address``. threads: that use it."""

    shared = True

    def __init__(self, address: PostgresAddress, threads: int, bus: Bus | None = None) -> None:
        self.name = str(address)
        self._address = address
        self.bus: Bus = bus or LocalBus()
        #: Names this process in notifications, so that it does not hear itself.
        self._origin = uuid4().hex
        address.parameters()  # a bad URL is a bad configuration, now rather than at the first query
        engine = self._engine(threads)
        self.writer = engine
        self.reader = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def _engine(self, threads: int) -> Engine:
        def connect() -> psycopg.Connection:
            parameters = self._address.parameters()  # read anew: a password file may have been replaced
            parameters["options"] = f"{_SETTINGS} {parameters.get('options', '')}"
            return psycopg.connect(**parameters)  # type: ignore[arg-type]

        return create_engine(
            "postgresql+psycopg://",
            creator=connect,
            pool_size=threads,
            max_overflow=2,
            hide_parameters=True,  # an error is logged with its statement, and the values may be keys
        )

    def lock(self, connection: Connection) -> str:
        """Take the writers' lock."""
        taken = text("SELECT pg_advisory_xact_lock(:key), pg_current_xact_id()::text")
        return str(connection.execute(taken, {"key": _LOCK}).one()[1])

    def take_your_time(self, connection: Connection) -> None:
        """Lift the limits for this transaction."""
        for setting in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
            connection.execute(text(f"SET LOCAL {setting} = 0"))

    def committed(self, connection: Connection, transaction: str) -> bool:
        """Whether the transaction has happened."""
        # The lock is free when the old session has really ended, either way.
        self.lock(connection)
        status = connection.execute(text("SELECT pg_xact_status(CAST(:id AS xid8))"), {"id": transaction}).scalar_one()
        return bool(status == "committed")

    def announce(self, connection: Connection, topics: Iterable[str], *, everywhere: bool) -> None:
        """NOTIFY; PostgreSQL delivers it with the commit."""
        for payload in payloads("" if everywhere else self._origin, topics):
            connection.execute(text("SELECT pg_notify(:channel, :payload)"), {"channel": CHANNEL, "payload": payload})

    def verdict(self, error: DBAPIError) -> Verdict:
        """What to do about an error."""
        cause = error.orig
        if isinstance(cause, (errors.SerializationFailure, errors.DeadlockDetected)):
            return Verdict.CONFLICT
        if isinstance(cause, (errors.LockNotAvailable, errors.QueryCanceled)):
            return Verdict.BUSY
        state = getattr(cause, "sqlstate", None) or ""
        # 08: connection; 57P: the server stops, starts or has crashed; 53300: no connection left; 25P03: this
        # session was too slow and has been ended; 25006: a standby. None: libpq could not reach the server at all.
        gone = state.startswith(("08", "57P")) or state in ("53300", "25P03", "25006")
        if error.connection_invalidated or gone or (isinstance(cause, psycopg.OperationalError) and not state):
            return Verdict.LOST
        # 53: no disk, no memory; 58: input and output; XX001, XX002: damaged.
        return Verdict.STUCK if state.startswith(("53", "58", "XX00")) and state != "XX000" else Verdict.FATAL

    def server_time(self, connection: Connection) -> float:
        """The server's clock."""
        return float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())

    @asynccontextmanager
    async def running(self, suspect: Callable[[Exception], None]) -> AsyncIterator[None]:
        """Context in which other controllers are heard."""
        ready = asyncio.Event()
        listener = asyncio.create_task(
            listen(self._address, self._origin, self.bus, suspect, ready), name="database notifications"
        )
        try:
            try:
                async with asyncio.timeout(_LISTEN_WAIT):
                    await ready.wait()
            except TimeoutError:
                raise Unavailable(f"database {self.name} lets nobody LISTEN within {_LISTEN_WAIT:g} s") from None
            yield
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)
