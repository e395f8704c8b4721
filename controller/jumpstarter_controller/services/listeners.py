# SPDX-License-Identifier: Apache-2.0
"""Exporters that wait for clients to dial, by lease."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import grpc

from jumpstarter_controller.errors import Refused
from jumpstarter_controller.state.bus import Bus

__all__ = ["Listener", "Listeners", "listener_topic"]

#: Dials that may wait for an exporter that is slow to take them.
_BACKLOG = 8


def listener_topic(namespace: str, lease: str) -> str:
    """Bus topic: somebody listens for this lease."""
    return f"listener/{namespace}/{lease}"


class Listener:
    """One Listen stream."""

    def __init__(self) -> None:
        self._dials: asyncio.Queue[str | None] = asyncio.Queue()

    def dial(self, token: str) -> None:
        """Hand over the exporter's token of a new tunnel. Raises RESOURCE_EXHAUSTED."""
        if self._dials.qsize() >= _BACKLOG:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"the exporter has {_BACKLOG} dials to answer; try again later"
            )
        self._dials.put_nowait(token)

    def close(self) -> None:
        """No more dials: the stream ends after those that wait."""
        self._dials.put_nowait(None)

    async def dials(self) -> AsyncIterator[str]:
        """The tokens, until closed."""
        while (token := await self._dials.get()) is not None:
            yield token


class Listeners:
    """The listener of each lease; a new one takes the place of the old."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._by_lease: dict[tuple[str, str], Listener] = {}

    def get(self, namespace: str, lease: str) -> Listener | None:
        """Who listens for this lease."""
        return self._by_lease.get((namespace, lease))

    @contextmanager
    def listening(self, namespace: str, lease: str) -> Iterator[Listener]:
        """Context: listen for this lease."""
        key, listener = (namespace, lease), Listener()
        old = self._by_lease.get(key)
        self._by_lease[key] = listener
        if old is not None:
            old.close()
        self._bus.publish([listener_topic(namespace, lease)])
        try:
            yield listener
        finally:
            if self._by_lease.get(key) is listener:
                del self._by_lease[key]
