# SPDX-License-Identifier: Apache-2.0
"""What `Database` needs to know of SQLite and of PostgreSQL."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from jumpstarter_controller.state.bus import Bus

__all__ = ["Backend", "Verdict"]


class Verdict(enum.Enum):
    """What an error of the database asks for."""

    #: It is an error of the program, or of the value.
    FATAL = "fatal"
    #: Another transaction was in the way: run the whole again.
    CONFLICT = "conflict"
    #: The connection or the server has gone.
    LOST = "lost"
    #: Somebody else holds the database for longer than anybody should.
    BUSY = "busy"
    #: What holds the data cannot be used: the disk is full, the file damaged or read-only.
    STUCK = "stuck"


class Backend(Protocol):
    """One kind of database. name: for messages, without secrets. shared: several controllers may serve from it."""

    name: str
    shared: bool
    bus: Bus

    @property
    def writer(self) -> Engine:
        """For transactions that may change things."""

    @property
    def reader(self) -> Engine:
        """For snapshots."""

    def lock(self, connection: Connection) -> str | None:
        """Called first in a transaction that writes; returns when no other one writes. Returns the transaction's id."""

    def take_your_time(self, connection: Connection) -> None:
        """Called first in a transaction that may last, and wait for others that last: a migration."""

    def committed(self, connection: Connection, transaction: str) -> bool:
        """Whether the transaction with this id, whose commit was not answered, has happened."""

    def announce(self, connection: Connection, topics: Iterable[str], *, everywhere: bool) -> None:
        """Called last in a transaction that writes: other processes shall hear of it; ``everywhere``: this one too."""

    def verdict(self, error: DBAPIError) -> Verdict:
        """What to do about an error."""

    def server_time(self, connection: Connection) -> float | None:
        """The time that all controllers of this database share; None: that of this machine."""

    def running(self, suspect: Callable[[Exception], None]) -> AbstractAsyncContextManager[None]:
        """Context in which other processes are heard. suspect: is told of lost connections."""
