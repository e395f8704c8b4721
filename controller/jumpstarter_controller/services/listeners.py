# SPDX-License-Identifier: Apache-2.0
"""Exporters that wait for clients to dial, by lease: those whose Listen stream is at this controller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from uuid import uuid4

import grpc

from jumpstarter_controller.errors import Refused

__all__ = ["Invitation", "Listener", "Listeners", "backlog_full"]

#: Dials that may wait for an exporter that is slow to take them.
_BACKLOG = 8


class Invitation(NamedTuple):
    """What an exporter is told of a new tunnel. endpoint: of the router."""

    endpoint: str
    token: str


def backlog_full() -> Refused:
    """RESOURCE_EXHAUSTED."""
    return Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, f"the exporter has {_BACKLOG} dials to answer; try again later")


class Listener:
    """One Listen stream. session: its name, unique over all controllers."""

    def __init__(self) -> None:
        self.session = uuid4().hex
        self._dials: asyncio.Queue[Invitation | None] = asyncio.Queue()

    @property
    def room(self) -> int:
        """How many more dials it takes."""
        return max(0, _BACKLOG - self._dials.qsize())

    def dial(self, invitation: Invitation) -> None:
        """Hand over a new tunnel. Raises RESOURCE_EXHAUSTED."""
        if not self.room:
            raise backlog_full()
        self._dials.put_nowait(invitation)

    def close(self) -> None:
        """No more dials: the stream ends after those that wait."""
        self._dials.put_nowait(None)

    async def dials(self) -> AsyncIterator[Invitation]:
        """The tunnels, until closed."""
        while (invitation := await self._dials.get()) is not None:
            yield invitation


class Listeners:
    """The listener of each lease at this controller; a new one takes the place of the old.

    The old stream ends when the database says that it does not count any more: until then dials may be on their way to
    it from other controllers, and one that is taken must be told.
    """

    def __init__(self) -> None:
        self._by_lease: dict[tuple[str, str], Listener] = {}

    def get(self, namespace: str, lease: str) -> Listener | None:
        """Who listens for this lease."""
        return self._by_lease.get((namespace, lease))

    @contextmanager
    def listening(self, namespace: str, lease: str) -> Iterator[Listener]:
        """Context: listen for this lease."""
        key, listener = (namespace, lease), Listener()
        self._by_lease[key] = listener
        try:
            yield listener
        finally:
            if self._by_lease.get(key) is listener:
                del self._by_lease[key]
