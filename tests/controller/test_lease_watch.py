# SPDX-License-Identifier: Apache-2.0
"""Many who watch one queue: everybody sees it move, and it is read for all of them together."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from queue_bench import NAMESPACE, QueueBench

from jumpstarter_controller.identity import Caller
from jumpstarter_controller.leases import watch
from jumpstarter_controller.leases.requests import release_lease
from jumpstarter_controller.leases.schedule import schedule
from jumpstarter_controller.leases.watch import QueueViews
from jumpstarter_controller.state.database import Transaction

WATCHERS = 20


def test_many_watchers_cost_one_look_at_the_queue(bench: QueueBench, monkeypatch: pytest.MonkeyPatch) -> None:
    alice = bench.client("alice")
    bench.exporter("e1", board="x")
    bench.exporter("e2", board="y")
    held, elsewhere = bench.lease(alice), bench.lease(alice, "board=y")
    names = [bench.lease(alice) for _ in range(WATCHERS)]
    unrelated = bench.lease(alice, "board=y")
    looks = 0
    read_queue = watch.read_queue

    def counted(*args: object) -> object:
        nonlocal looks
        looks += 1
        return read_queue(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(watch, "read_queue", counted)

    def give_back(tx: Transaction, caller: Caller, name: str) -> None:
        release_lease(tx, caller, name)
        tx.session.flush()
        schedule(tx, bench.policy, bench.catalogue, bench.beats)

    async def body() -> None:
        views = QueueViews(bench.database, bench.catalogue)
        seen: dict[str, list[tuple[int, int]]] = {name: [] for name in [*names, unrelated, elsewhere]}
        told = asyncio.Event()

        async def follow(name: str) -> None:
            async with aclosing(views.views(NAMESPACE, name)) as changes:
                async for view in changes:
                    seen[name].append((view.position, view.waiting))
                    told.set()

        async def until(done: object) -> None:
            async with asyncio.timeout(60):
                while not done():  # type: ignore[operator]
                    await told.wait()
                    told.clear()

        async with bench.database.running(), asyncio.TaskGroup() as tasks:
            followers = [tasks.create_task(follow(name)) for name in seen]
            await until(lambda: all(seen.values()))
            assert [seen[name][-1] for name in names] == [(i + 1, WATCHERS) for i in range(WATCHERS)]
            assert (seen[unrelated][-1], seen[elsewhere][-1]) == ((1, 1), (0, 0))
            assert looks <= 3
            await until(lambda: len(seen[elsewhere]) == 2)  # with the queue, and from then on without
            before, quiet = looks, len(seen[elsewhere])
            await bench.database.write(give_back, alice, held)
            # The first has the exporter, the others move up.
            moved = [(0, 0), *((i, WATCHERS - 1) for i in range(1, WATCHERS))]
            await until(lambda: [seen[name][-1] for name in names] == moved)
            assert looks - before <= 3
            assert len(seen[elsewhere]) == quiet  # who holds an exporter is not woken by the queue
            for follower in followers:
                follower.cancel()
        assert not views._shared

    asyncio.run(body())
