# SPDX-License-Identifier: Apache-2.0
"""Topics between the controllers of one PostgreSQL database: NOTIFY in the transaction, LISTEN on its own connection.

PostgreSQL delivers a notification after the commit, to every session that listens, and forgets those for sessions
that do not. After every (re)connection all subscribers are therefore told to look again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator

import psycopg

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_controller.state.address import PostgresAddress
from jumpstarter_controller.state.bus import Bus

__all__ = ["CHANNEL", "listen", "payloads", "topics_of"]

logger = logging.getLogger(__name__)

CHANNEL = "jumpstarter"
#: Bytes of a payload; PostgreSQL takes fewer than 8000.
_MAX_PAYLOAD = 7900
#: Topics of one transaction that are named. With more of them everybody is woken, which costs less than sending them.
_MAX_TOPICS = 500
_EVERYTHING = "*"
#: Seconds without a notification after which the connection is asked for a sign of life, and how long that may take.
_QUIET, _ANSWER = 15.0, 5.0
#: Seconds between two attempts to connect.
_RETRY = (0.1, 2.0)


def payloads(origin: str, topics: Iterable[str]) -> Iterator[str]:
    """The notifications that carry these topics. origin: the bus that needs none of them back, "" for nobody."""
    words = sorted(topics)
    if len(words) > _MAX_TOPICS or any(len(word.encode()) > _MAX_PAYLOAD // 2 for word in words):
        words = [_EVERYTHING]
    batch: list[str] = []
    size = 0
    for word in words:
        room = len(word.encode()) + 1
        if batch and size + room > _MAX_PAYLOAD - len(origin):
            yield "\n".join([origin, *batch])
            batch, size = [], 0
        batch.append(word)
        size += room
    if batch:
        yield "\n".join([origin, *batch])


def topics_of(payload: str, origin: str) -> list[str] | None:
    """The topics of a notification; none when ``origin`` has sent it, None when everybody is meant."""
    sender, *topics = payload.split("\n")
    if sender == origin and origin:
        return []
    return None if _EVERYTHING in topics else topics


async def listen(
    address: PostgresAddress, origin: str, bus: Bus, suspect: Callable[[Exception], None], ready: asyncio.Event
) -> None:
    """Bring what other controllers announce to the bus, until cancelled. ready: set while connected.

    suspect: is told of every connection that is lost.
    """
    pause = _RETRY[0]
    while True:
        try:
            async with asyncio.timeout(30):
                connection = await psycopg.AsyncConnection.connect(autocommit=True, **address.parameters())  # type: ignore[arg-type]
            async with connection:
                await connection.execute(f"LISTEN {CHANNEL}")
                bus.publish_all()
                ready.set()
                pause = _RETRY[0]
                await _receive(connection, origin, bus)
        except (psycopg.Error, TimeoutError, OSError) as error:
            suspect(error)
        except ConfigurationError as error:  # the password file is being replaced
            logger.error("%s", error)
        finally:
            ready.clear()
        await asyncio.sleep(pause)
        pause = min(pause * 2, _RETRY[1])


async def _receive(connection: psycopg.AsyncConnection, origin: str, bus: Bus) -> None:
    while True:
        async for notification in connection.notifies(timeout=_QUIET):
            topics = topics_of(notification.payload, origin)
            if topics is None:
                bus.publish_all()
            else:
                bus.publish(topics)
        async with asyncio.timeout(_ANSWER):
            await connection.execute("SELECT 1")
