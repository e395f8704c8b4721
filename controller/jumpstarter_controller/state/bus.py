# SPDX-License-Identifier: Apache-2.0
"""Who waits for what: subscribers sleep until a topic they named has changed.

A topic is a word such as ``exporter/ID``. Nothing but "look again" is sent, so any number of changes may fold into one
wake-up, and a subscriber that reads the database after every wake-up misses nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

__all__ = ["LAB_TOPIC", "Bus", "LocalBus", "Subscription"]

#: Somebody has changed the state without a pass over the queue, or a replica has gone: run one.
LAB_TOPIC = "lab"


class Subscription:
    """Says that a topic has changed since the last look."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Something has changed."""
        self._changed.set()

    def take(self) -> bool:
        """Whether something has changed since the last look, without waiting."""
        changed = self._changed.is_set()
        self._changed.clear()
        return changed

    async def changed(self) -> None:
        """Return when something has changed since the last return."""
        await self._changed.wait()
        self._changed.clear()


class Bus(Protocol):
    """Carries changes from those who make them to those who wait, on the event loop of this process.

    `state.notifications` does so between the controllers of one PostgreSQL database as well.
    """

    def publish(self, topics: Iterable[str]) -> None:
        """Wake every subscriber of these topics in this process."""

    def publish_all(self) -> None:
        """Wake every subscriber in this process: what has happened is not known."""

    def subscribe(self, *topics: str) -> AbstractContextManager[Subscription]:
        """Context: a subscription to these topics."""


class LocalBus:
    """The bus within one process."""

    def __init__(self) -> None:
        self._subscribers: dict[str, set[Subscription]] = {}

    def publish(self, topics: Iterable[str]) -> None:
        """Wake every subscriber of these topics."""
        for topic in topics:
            for subscriber in self._subscribers.get(topic, ()):
                subscriber.wake()

    def publish_all(self) -> None:
        """Wake every subscriber."""
        for subscribers in self._subscribers.values():
            for subscriber in subscribers:
                subscriber.wake()

    @contextmanager
    def subscribe(self, *topics: str) -> Iterator[Subscription]:
        """Context: a subscription to these topics."""
        subscription = Subscription()
        for topic in topics:
            self._subscribers.setdefault(topic, set()).add(subscription)
        try:
            yield subscription
        finally:
            for topic in topics:
                self._subscribers[topic].discard(subscription)
                if not self._subscribers[topic]:
                    del self._subscribers[topic]
