# SPDX-License-Identifier: Apache-2.0
"""Leases of clients that vanished end; those of clients that could not be heard do not."""

from __future__ import annotations

import asyncio

import pytest
from queue_bench import START, QueueBench

from jumpstarter_controller.errors import Refused
from jumpstarter_controller.lab import Lab
from jumpstarter_controller.leases.heartbeats import restart_heartbeats


def beat(bench: QueueBench, name: str) -> None:
    bench.beats.beat(bench.get(name), bench.now)


def test_a_lease_whose_holder_is_silent_ends_held_or_waiting(bench: QueueBench) -> None:
    alice, bob = bench.client("alice"), bench.client("bob")
    bench.exporter("e1", board="x")
    held, waiting = bench.lease(alice, heartbeat=20.0), bench.lease(bob, heartbeat=40.0)
    without = bench.lease(bob)
    assert bench.deadline == START + 25
    bench.at(24.9)
    assert bench.holder(held) == "e1"
    bench.at(25)
    assert bench.reason(held) == "Ready=False HeartbeatLost"
    assert bench.get(held).conditions[-1]["message"] == "Nothing was heard of the client for 20 seconds"
    assert bench.holder(waiting) == "e1"  # it is waited for until it is silent itself
    bench.at(45)
    assert (bench.reason(waiting), bench.holder(without)) == ("Ready=False HeartbeatLost", "e1")
    assert bench.get(waiting).effective_end == START + 45


def test_heartbeats_in_memory_count_before_they_are_written(bench: QueueBench) -> None:
    alice = bench.client("alice")
    bench.exporter("e1", board="x")
    held = bench.lease(alice, heartbeat=20.0)
    for second in (10, 20, 30, 40):
        bench.now = START + second
        beat(bench, held)
        bench.at(second + 5)
        assert bench.holder(held) == "e1"
    bench.at(65)
    assert bench.reason(held) == "Ready=False HeartbeatLost"
    with pytest.raises(Refused, match="has ended: Nothing was heard of the client for 20 seconds"):
        beat(bench, held)


def test_heartbeats_are_written_together_and_without_a_pass_over_the_queue(bench: QueueBench) -> None:
    alice = bench.client("alice")
    for i in range(5):
        bench.exporter(f"e{i}", board="x")
    names = [bench.lease(alice, heartbeat=20.0) for _ in range(5)]
    bench.now = START + 10
    for name in names:
        beat(bench, name)
    assert {bench.get(name).heartbeat_at for name in names} == {START}

    async def flush() -> None:
        await bench.beats.flush(bench.database)
        assert bench.beats.newest(bench.get(names[0]).sequence) is None

    asyncio.run(flush())
    assert {(bench.get(name).heartbeat_at, bench.get(name).silent_at) for name in names} == {(START + 10, START + 35)}


def test_who_could_not_be_heard_gets_the_whole_time_again(bench: QueueBench) -> None:
    alice = bench.client("alice")
    bench.exporter("e1", board="x")
    held = bench.lease(alice, heartbeat=20.0)
    # The controller was stopped, or its database away, when the time ran out: nobody looked.
    bench.at(500)
    assert bench.holder(held) == "e1"
    assert bench.deadline == START + 525
    # It was started anew just before.
    bench.now = START + 524
    bench.database.write_now(restart_heartbeats)
    bench.at(525)
    assert bench.holder(held) == "e1"
    assert bench.deadline == START + 549
    bench.at(549)
    assert bench.reason(held) == "Ready=False HeartbeatLost"


def test_a_lease_without_a_heartbeat_needs_none(bench: QueueBench) -> None:
    alice = bench.client("alice")
    bench.exporter("e1", board="x")
    held = bench.lease(alice, duration=10_000.0)
    with pytest.raises(Refused, match="was created without a heartbeat"):
        beat(bench, held)
    bench.database.write_now(restart_heartbeats)
    bench.at(9_999)
    assert bench.holder(held) == "e1"


def test_a_transfer_waits_for_the_first_heartbeat_of_the_new_holder(bench: QueueBench) -> None:
    alice = bench.client("alice")
    bench.client("bob")
    bench.exporter("e1", board="x")
    held = bench.lease(alice, heartbeat=20.0, duration=1000.0)
    bench.update(alice, held, client="bob")
    bench.at(200)
    assert bench.holder(held) == "e1"
    beat(bench, held)
    asyncio.run(bench.beats.flush(bench.database))
    bench.at(225)
    assert bench.reason(held) == "Ready=False HeartbeatLost"


def test_a_started_controller_gives_the_whole_time(bench: QueueBench) -> None:
    alice = bench.client("alice")
    bench.exporter("e1", board="x")
    held = bench.lease(alice, heartbeat=20.0)
    bench.now = START + 24

    async def start() -> None:
        async with Lab(bench.database, bench.policy).running():
            pass

    asyncio.run(start())
    assert bench.get(held).silent_at == START + 49


def test_nobody_is_silent_while_the_database_is_away(bench: QueueBench) -> None:
    alice = bench.client("alice")
    bench.exporter("e1", board="x")
    held = bench.lease(alice, heartbeat=20.0)
    bench.beats.database_down(True)
    bench.now = START + 25.5
    bench.beats.database_down(False)
    bench.at(26)  # at its time, but its holder may have tried in vain until now
    assert bench.holder(held) == "e1"

    async def keep() -> None:
        keeper = asyncio.create_task(bench.beats.keep(bench.database))
        async with asyncio.timeout(60):
            while bench.beats.away:
                await asyncio.sleep(0.01)
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)

    bench.now = START + 30
    asyncio.run(keep())
    assert bench.get(held).silent_at == START + 55
    bench.at(55)
    assert bench.reason(held) == "Ready=False HeartbeatLost"
