# SPDX-License-Identifier: Apache-2.0
"""A lease as somebody sees it who waits for it: its place in the queue, and one line that says how it is.

Whoever waits wants to know when the queue moves, and all of them at once. So the queue is read once for all.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from sqlalchemy import select

from jumpstarter_controller.leases.catalogue import Candidates, Catalogue
from jumpstarter_controller.leases.conditions import newest_message
from jumpstarter_controller.leases.ending import lease_topic, queue_topic
from jumpstarter_controller.leases.queue import Place, waiting_of
from jumpstarter_controller.leases.requests import find_lease
from jumpstarter_controller.state.bus import Bus, Subscription
from jumpstarter_controller.state.database import Database, Transaction
from jumpstarter_controller.state.models import Lease

__all__ = ["LeaseView", "QueueViews", "read_queue"]


@dataclass(frozen=True)
class LeaseView:
    """position: 1 for the next, 0 when it does not wait. waiting: how many want its exporters, itself included."""

    lease: Lease
    position: int = 0
    waiting: int = 0

    @property
    def message(self) -> str:
        """One line: what it waits for, why it has ended."""
        return newest_message(self.lease.conditions)


@dataclass
class _Shared:
    """The queue of one namespace, for those who watch it now."""

    subscription: Subscription
    stack: ExitStack
    watchers: int = 0
    reading: asyncio.Task[dict[str, LeaseView]] | None = None


class QueueViews:
    """The queues that somebody watches."""

    def __init__(self, database: Database, catalogue: Catalogue) -> None:
        self._database = database
        self._bus: Bus = database.bus
        self._catalogue = catalogue
        self._shared: dict[str, _Shared] = {}

    async def views(self, namespace: str, name: str) -> AsyncGenerator[LeaseView, None]:
        """The lease now and whenever it or its place may have changed; ends after the view in which it has ended.

        Raises NOT_FOUND. A database that goes away is waited for.
        """
        waits = True
        while True:
            topics = [lease_topic(namespace, name), queue_topic(namespace)][: 2 if waits else 1]
            with self._bus.subscribe(*topics) as subscription, self._sharing(namespace):
                while True:
                    view = await self._view(namespace, name, waits)
                    yield view
                    if view.lease.ended:
                        return
                    if waits and view.lease.exporter_id is not None:
                        waits = False  # who holds an exporter does not care how the queue moves
                        break
                    await subscription.changed()

    async def _view(self, namespace: str, name: str, waits: bool) -> LeaseView:
        if waits and (view := (await self._queue(namespace)).get(name)) is not None:
            return view
        return LeaseView(await self._database.patient_read(find_lease, namespace, name))

    @contextmanager
    def _sharing(self, namespace: str) -> Iterator[None]:
        """Context in which the queue of the namespace is kept in view."""
        shared = self._shared.get(namespace)
        if shared is None:
            stack = ExitStack()
            shared = _Shared(stack.enter_context(self._bus.subscribe(queue_topic(namespace))), stack)
            self._shared[namespace] = shared
        shared.watchers += 1
        try:
            yield
        finally:
            shared.watchers -= 1
            if shared.watchers == 0:
                del self._shared[namespace]
                shared.stack.close()

    async def _queue(self, namespace: str) -> dict[str, LeaseView]:
        shared = self._shared[namespace]
        reading = shared.reading
        failed = reading is not None and reading.done() and (reading.cancelled() or reading.exception() is not None)
        if shared.subscription.take() or reading is None or failed:
            read = self._database.patient_read(read_queue, self._catalogue, namespace)
            reading = shared.reading = asyncio.create_task(read, name="queue view")
        return await asyncio.shield(reading)


def read_queue(tx: Transaction, catalogue: Catalogue, namespace: str) -> dict[str, LeaseView]:
    """Every lease that waits for an exporter now, by name."""
    snapshot = catalogue.of(tx, namespace)
    found: dict[str, LeaseView] = {}
    queue: list[tuple[Place, Candidates, Lease]] = []
    for lease in tx.session.scalars(select(Lease).where(~Lease.ended, Lease.exporter_id.is_(None))):
        waiting = waiting_of(lease)
        if lease.namespace != namespace or not waiting.is_due(tx.now):
            continue
        candidates = snapshot.candidates(waiting.wanted)
        if not candidates.tiers:
            found[lease.name] = LeaseView(lease, 1, 1)  # nobody else waits for an exporter that there is not
            continue
        reserved = waiting.reserved_id in candidates.grants
        queue.append((waiting.place(candidates.tiers[0].grant, reserved=reserved), candidates, lease))
    queue.sort(key=lambda entry: entry[0])
    kinds = {id(candidates): candidates for _, candidates, _ in queue}
    rivals = {
        key: [other for other, theirs in kinds.items() if not ours.grants.keys().isdisjoint(theirs.grants)]
        for key, ours in kinds.items()
    }
    total = Counter(id(candidates) for _, candidates, _ in queue)
    passed: Counter[int] = Counter()
    for _, candidates, lease in queue:
        passed[id(candidates)] += 1
        others = rivals[id(candidates)]
        found[lease.name] = LeaseView(lease, sum(passed[key] for key in others), sum(total[key] for key in others))
    return found
