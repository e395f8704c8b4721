# SPDX-License-Identifier: Apache-2.0
"""The database: transactions, run in threads, that say afterwards what they have changed.

A transaction is an ordinary function that is given a `Transaction`. It runs in a worker thread, alone among writers
(those of other controllers included), and is repeated as a whole when the database asks for that: it must not do
anything but read and change the state. What it changed is published with the commit, never before.

A database that goes away is waited for, for a moment by `read` and `write`, which raise `Unavailable` then, and as long
as it takes by `patient_read` and `patient_write`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar

from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_controller.state.address import Address, PostgresAddress, address_of
from jumpstarter_controller.state.backend import Backend, Verdict
from jumpstarter_controller.state.bus import Bus
from jumpstarter_controller.state.outage import AWAY, Outage, Unavailable
from jumpstarter_controller.state.transaction import Transaction

__all__ = ["Database", "Transaction", "Unavailable", "open_database"]

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)

_THREADS = 4

#: How often a transaction is run again that others were in the way of, and the longest pause before, in seconds.
_CONFLICTS, _CONFLICT_PAUSE = 8, 0.05
#: Seconds that a caller waits for a database that has gone.
_PATIENCE = 2.0


class _Done(NamedTuple, Generic[T]):
    """A transaction that has ended."""

    value: T
    transaction: Transaction


class _Unanswered(Exception):
    """The connection broke during COMMIT. number: of the transaction; done: what it was about to leave."""

    def __init__(self, number: str, done: _Done[Any]) -> None:
        super().__init__(f"transaction {number}")
        self.number = number
        self.done = done


class _ServerClock:
    """The time of the database's server, by the last comparison with this machine's."""

    def __init__(self) -> None:
        self._offset = 0.0
        #: Half of the time that the last comparison took: so far off it may be.
        self._error = float("inf")

    def __call__(self) -> float:
        return time.time() + self._offset

    def compare(self, before: float, server: float, after: float) -> None:
        """``server`` was its time between these two of ours."""
        error = (after - before) / 2
        if error < max(0.5, self._error):  # a slow answer says little, but more than none
            self._offset, self._error = server - (before + after) / 2, error


class Database:
    """Transactions on one database. clock: seconds since 1970, by default the one that all its controllers share."""

    def __init__(self, backend: Backend, clock: Callable[[], float] | None = None) -> None:
        self.backend = backend
        self._server_clock = _ServerClock()
        self.clock: Callable[[], float] = clock or self._server_clock
        self.outage = Outage(backend.name, self._probe)
        #: Called with what every committed transaction has measured: (name, value).
        self.on_measures: Callable[[list[tuple[str, float]]], None] | None = None
        #: Called with the topics of what `write_now` has changed.
        self.on_write_now: Callable[[set[str]], None] | None = None
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="database")
        self._one_writer = asyncio.Lock()

    @property
    def engine(self) -> Engine:
        """The engine whose transactions may change things."""
        return self.backend.writer

    @property
    def bus(self) -> Bus:
        """Wakes those who wait for a change."""
        return self.backend.bus

    @property
    def shared(self) -> bool:
        """Other controllers may serve from this database too."""
        return self.backend.shared

    def measure(self, name: str, value: float = 1.0) -> None:
        """Count something for the metrics that is no transaction."""
        if self.on_measures is not None:
            self.on_measures([(name, value)])

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Context in which changes that other controllers make are heard."""
        async with self.backend.running(self.outage.suspect):
            try:
                yield
            finally:
                await self.outage.stop()

    def write_now(self, body: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``body`` in a transaction, in this thread (command line tools). Raises `Unavailable`.

        On PostgreSQL every controller is woken by what it touches.
        """
        lost = conflicts = 0
        while True:
            try:
                done = self._write_once(body, args, kwargs, everywhere=True)
            except DBAPIError as error:
                verdict = self._judge(error)
                conflicts += verdict is Verdict.CONFLICT
                lost += verdict is Verdict.LOST
                # The first connection may have been broken for long; then the pool makes new ones.
                if verdict not in (Verdict.CONFLICT, Verdict.LOST) or conflicts > _CONFLICTS or lost > 1:
                    raise self._unavailable(error) from None
                time.sleep(random.uniform(0, _CONFLICT_PAUSE))
            except _Unanswered as unanswered:
                if not self._has_happened(unanswered.number):
                    continue
                done = unanswered.done
                break
            else:
                break
        for call in done.transaction.consequences:
            call()
        if self.on_write_now is not None and done.transaction.topics:
            self.on_write_now(done.transaction.topics)
        value: T = done.value
        return value

    async def write(self, body: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``body`` in a transaction that may change things, then wake who waits for what it touched.

        A caller that is cancelled meanwhile leaves a transaction that is complete and published.
        """
        writing = asyncio.create_task(self._write(_PATIENCE, body, args, kwargs))
        try:
            return await asyncio.shield(writing)
        except asyncio.CancelledError:
            writing.add_done_callback(_tell_failure)
            raise

    async def patient_write(
        self, body: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """`write`, after the end of an outage of any length. A caller that is cancelled may leave it undone."""
        while True:
            try:
                return await self.write(body, *args, **kwargs)
            except Unavailable:
                await self.outage.over(None)

    async def read(self, body: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``body`` on a snapshot; it changes nothing."""
        return await self._read(_PATIENCE, body, args, kwargs)

    async def patient_read(
        self, body: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """`read`, after the end of an outage of any length."""
        while True:
            try:
                return await self.read(body, *args, **kwargs)
            except Unavailable:
                await self.outage.over(None)

    def read_now(self, body: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`read` in this thread. Raises `Unavailable`."""
        for attempt in range(2):
            try:
                return self._read_once(body, args, kwargs)
            except DBAPIError as error:
                # The first connection may have been broken for long; then the pool makes new ones.
                if self._judge(error) is not Verdict.LOST or attempt:
                    raise self._unavailable(error) from None
        raise AssertionError("unreachable")

    async def compare_clocks(self) -> None:
        """Learn the server's time; `clock` follows it from now on. Raises `Unavailable`."""
        await self._in_thread(_PATIENCE, self.compare_clocks_now)

    # --- one attempt --------------------------------------------------------------------------------------------

    def _write_once(
        self, body: Callable[..., T], args: Iterable[Any], kwargs: dict[str, Any], *, everywhere: bool
    ) -> _Done[T]:
        done: _Done[T] | None = None
        number: str | None = None
        try:
            with self.backend.writer.connect() as connection, connection.begin():
                number = self.backend.lock(connection)
                with Session(connection, expire_on_commit=False) as session:
                    transaction = Transaction(session, self.clock())
                    value = body(transaction, *args, **kwargs)
                    session.flush()
                    if transaction.topics:
                        self.backend.announce(connection, transaction.topics, everywhere=everywhere)
                done = _Done(value, transaction)
        except DBAPIError as error:
            # Only the COMMIT is left when there is a result.
            if done is None or number is None or self.backend.verdict(error) is not Verdict.LOST:
                raise
            raise _Unanswered(number, done) from error
        assert done is not None
        if self.on_measures is not None and done.transaction.measures:
            self.on_measures(done.transaction.measures)
        return done

    def _read_once(self, body: Callable[..., T], args: Iterable[Any], kwargs: dict[str, Any]) -> T:
        with self.backend.reader.connect() as connection, connection.begin():
            with Session(connection, expire_on_commit=False) as session:
                return body(Transaction(session, self.clock()), *args, **kwargs)

    def _has_happened(self, number: str) -> bool:
        try:
            with self.backend.writer.connect() as connection, connection.begin():
                return self.backend.committed(connection, number)
        except DBAPIError as error:
            raise self._unavailable(error) from None

    def compare_clocks_now(self) -> None:
        """`compare_clocks` in this thread, once. Raises DBAPIError."""
        with self.backend.reader.connect() as connection, connection.begin():
            before = time.time()
            server = self.backend.server_time(connection)
            if server is not None:
                self._server_clock.compare(before, server, time.time())

    # --- repeated -----------------------------------------------------------------------------------------------

    async def _write(self, patience: float, body: Callable[..., T], args: Iterable[Any], kwargs: dict[str, Any]) -> T:
        unanswered: _Unanswered | None = None

        def attempt() -> _Done[T]:
            nonlocal unanswered
            if unanswered is not None:
                happened, unanswered = (unanswered.done if self._committed(unanswered.number) else None), None
                if happened is not None:
                    return happened
            try:
                return self._write_once(body, args, kwargs, everywhere=False)
            except _Unanswered as error:
                unanswered = error
                assert error.__cause__ is not None
                raise error.__cause__ from None

        done = await self._in_thread(patience, attempt, self._one_writer)
        for call in done.transaction.consequences:
            call()
        self.bus.publish(done.transaction.topics)
        return done.value

    def _committed(self, number: str) -> bool:
        with self.backend.writer.connect() as connection, connection.begin():
            return self.backend.committed(connection, number)

    async def _read(self, patience: float, body: Callable[..., T], args: Iterable[Any], kwargs: dict[str, Any]) -> T:
        return await self._in_thread(patience, lambda: self._read_once(body, args, kwargs))

    async def _in_thread(self, patience: float, attempt: Callable[[], T], lock: asyncio.Lock | None = None) -> T:
        """Run ``attempt`` in a thread, again while the database asks for that. Raises `Unavailable`."""
        loop = asyncio.get_running_loop()
        conflicts = 0
        given_up: float | None = None
        while True:
            await self.outage.over(patience)
            try:
                if lock is None:
                    return await loop.run_in_executor(self._threads, attempt)
                async with lock:
                    return await loop.run_in_executor(self._threads, attempt)
            except DBAPIError as error:
                verdict = self._judge(error)
                if verdict is Verdict.CONFLICT and conflicts < _CONFLICTS:
                    conflicts += 1
                elif verdict is Verdict.LOST and (given_up is None or loop.time() < given_up):
                    # It may answer the probe and still refuse this: a server that has become a standby does so.
                    given_up = given_up or loop.time() + patience
                    self.outage.suspect(error)
                elif verdict is Verdict.LOST:
                    logger.error("%s", self._unavailable(error))
                    raise Unavailable(AWAY) from None
                else:
                    raise self._unavailable(error) from None
            await asyncio.sleep(random.uniform(0, _CONFLICT_PAUSE))

    def _judge(self, error: DBAPIError) -> Verdict:
        verdict = self.backend.verdict(error)
        self.measure(f"database error: {verdict.value}")
        return verdict

    def _unavailable(self, error: DBAPIError) -> Exception:
        """What the caller of a transaction gets instead of ``error``."""
        verdict = self.backend.verdict(error)
        if verdict is Verdict.FATAL:
            return error
        why = " ".join(str(error.orig).split())
        if verdict is Verdict.LOST:
            return Unavailable(f"database {self.backend.name} cannot be reached: {why}")
        if verdict is Verdict.STUCK:
            logger.error("database %s cannot be used: %s", self.backend.name, why)
            return Unavailable(f"the controller's database cannot be used: {why}")
        return Unavailable(f"the controller's database is held by others for too long; try again later: {why}")

    async def _probe(self) -> None:
        # In a thread of its own: those of the pool may all be waiting for a server that is silent.
        await asyncio.to_thread(self._ask)

    def _ask(self) -> None:
        try:
            self.read_now(lambda tx: tx.session.execute(text("SELECT 1")).all())
        except DBAPIError as error:
            raise Unavailable(" ".join(str(error.orig).split())) from None
        except ConfigurationError as error:  # a password file that is being replaced
            raise Unavailable(str(error)) from None

    def close(self) -> None:
        """Wait for what runs, then close the connections."""
        self._threads.shutdown()
        self.backend.writer.dispose()


def open_database(
    place: str | Path | PostgresAddress, bus: Bus | None = None, clock: Callable[[], float] | None = None
) -> Database:
    """The database at ``place`` (a path, a URL), made or brought up to date.

    Raises ConfigurationError, or `Unavailable`, naming it.
    """
    from jumpstarter_controller.state.upgrade import upgrade

    database = Database(_backend(address_of(place), bus), clock)
    try:
        upgrade(database.backend)
        database.compare_clocks_now()
    except BaseException:
        database.close()
        raise
    return database


def _backend(address: Address, bus: Bus | None) -> Backend:
    # PostgreSQL's driver is loaded only for those who have one.
    if isinstance(address, PostgresAddress):
        from jumpstarter_controller.state.postgres import PostgresBackend

        return PostgresBackend(address, _THREADS, bus)
    from jumpstarter_controller.state.sqlite import SqliteBackend

    return SqliteBackend(address, _THREADS, bus)


def _tell_failure(writing: asyncio.Task[Any]) -> None:
    """Nobody waits any more for what a transaction comes to."""
    if not writing.cancelled() and (error := writing.exception()) is not None:
        logger.info("a transaction has failed whose caller had gone: %s", error)
