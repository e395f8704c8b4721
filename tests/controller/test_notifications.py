# SPDX-License-Identifier: Apache-2.0
"""What one controller changes wakes those who wait at another one, whatever happens to the connection between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from postgres_harness import PostgresServer

from jumpstarter_controller.state.bus import Subscription
from jumpstarter_controller.state.database import Database, Transaction, open_database
from jumpstarter_controller.state.notifications import payloads, topics_of


def _touch(tx: Transaction, *topics: str) -> None:
    tx.touch(*topics)


@asynccontextmanager
async def _two(url: str) -> AsyncIterator[list[Database]]:
    databases = [await asyncio.to_thread(open_database, url) for _ in range(2)]
    try:
        async with databases[0].running(), databases[1].running():
            yield databases
    finally:
        for database in databases:
            await asyncio.to_thread(database.close)


async def _woken(subscription: Subscription) -> None:
    async with asyncio.timeout(60):
        await subscription.changed()


def test_a_change_at_one_wakes_the_other_and_only_who_named_the_topic(postgres_url: str) -> None:
    async def body() -> None:
        async with _two(postgres_url) as [one, two]:
            with two.bus.subscribe("a") as a, two.bus.subscribe("b") as b, one.bus.subscribe("a") as own:
                await one.write(_touch, "a")
                await _woken(a)
                assert own.take()
                await two.write(_touch, "b")
                assert b.take()
                assert not a.take()

    asyncio.run(body())


def test_a_command_wakes_every_controller(postgres_url: str) -> None:
    async def body() -> None:
        async with _two(postgres_url) as [one, two]:
            with one.bus.subscribe("a") as first, two.bus.subscribe("a") as second:
                await asyncio.to_thread(one.write_now, _touch, "a")
                await _woken(first)
                await _woken(second)

    asyncio.run(body())


def test_after_a_lost_connection_everybody_looks_again(postgres_url: str, postgres: PostgresServer) -> None:
    async def body() -> None:
        async with _two(postgres_url) as [one, two]:
            with two.bus.subscribe("a") as subscription:
                await asyncio.to_thread(
                    postgres.run_sql,
                    "postgres",
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = 'jumpstarter-controller'",
                )
                await _woken(subscription)  # for what may have been lost
                await one.write(_touch, "a")
                await _woken(subscription)

    asyncio.run(body())


@pytest.mark.parametrize("count", [1, 400, 501])
def test_many_and_long_topics_keep_to_the_limit_of_a_payload(count: int) -> None:
    topics = {f"lease/default/{'é' * 100}-{i}" for i in range(count)}
    sent = list(payloads("origin", topics))
    assert all(len(payload.encode()) < 8000 for payload in sent)
    heard = [topics_of(payload, "somebody else") for payload in sent]
    if count > 500:
        assert heard == [None]
    else:
        assert {topic for some in heard if some is not None for topic in some} == topics
    assert all(topics_of(payload, "origin") == [] for payload in sent)


def test_a_topic_that_is_too_long_wakes_everybody() -> None:
    [payload] = payloads("", {"x" * 9000})
    assert topics_of(payload, "") is None
