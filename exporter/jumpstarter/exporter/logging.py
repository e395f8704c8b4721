# SPDX-License-Identifier: Apache-2.0
"""Log lines of an exporter, live for every subscriber.

Each subscriber has a bounded queue of its own; what does not fit is counted and reported in the stream, so a slow
reader loses lines of its own only and knows how many. New subscribers first get the latest lines.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from jumpstarter.common.enums import LogSource
from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2

__all__ = ["LogHub"]

_BACKLOG = 256
_QUEUE = 8192
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_PROMOTED = ("driver_type", "operation")


class _Subscriber:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.queue: deque[jumpstarter_pb2.LogStreamResponse] = deque()
        self.dropped = 0
        self.ready = asyncio.Event()

    def push(self, entry: jumpstarter_pb2.LogStreamResponse) -> None:
        if len(self.queue) >= _QUEUE:
            self.dropped += 1
        else:
            self.queue.append(entry)
        try:
            self.loop.call_soon_threadsafe(self.ready.set)
        except RuntimeError:
            self.dropped += 1  # the loop has ended, and so has the subscriber


class LogHub(logging.Handler):
    """A logging handler that fans out to any number of log streams.

    Attach it to a logger (`attach`), subscribe with `follow`. `sources` maps logger names (and what is below them) to
    log sources; hooks set theirs while they run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sources: dict[str, LogSource] = {"driver": LogSource.DRIVER}
        self._backlog: deque[jumpstarter_pb2.LogStreamResponse] = deque(maxlen=_BACKLOG)
        self._subscribers: set[_Subscriber] = set()

    def attach(self) -> None:
        """Take part in all logging of this process."""
        logging.getLogger().addHandler(self)

    def detach(self) -> None:
        """Undo `attach`."""
        logging.getLogger().removeHandler(self)

    def forget(self) -> None:
        """Drop the latest lines: those who subscribe from now on have no business with what was before."""
        self.acquire()
        try:
            self._backlog.clear()
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one record to every subscriber."""
        try:
            entry = self._entry(record)
        except Exception:  # noqa: BLE001 (logging's own rule: a bad record is reported, not raised into the code)
            self.handleError(record)
            return
        # Handler.handle() holds the lock, so backlog and subscribers stay in step.
        self._backlog.append(entry)
        for subscriber in list(self._subscribers):
            subscriber.push(entry)

    def _source(self, name: str) -> LogSource:
        while name:
            if name in self.sources:
                return self.sources[name]
            name = name.rpartition(".")[0]
        return LogSource.SYSTEM

    def _entry(self, record: logging.LogRecord) -> jumpstarter_pb2.LogStreamResponse:
        fields = {k: str(v) for k, v in vars(record).items() if k not in _STANDARD}
        promoted: dict[str, Any] = {k: fields.pop(k) for k in _PROMOTED if k in fields}
        entry: jumpstarter_pb2.LogStreamResponse = jumpstarter_pb2.LogStreamResponse(
            severity=record.levelname,
            message=record.getMessage(),
            source=self._source(record.name).to_proto(),
            structured_fields=fields,
            **promoted,
        )
        entry.timestamp.FromNanoseconds(int(record.created * 1e9))
        return entry

    async def follow(self) -> AsyncIterator[jumpstarter_pb2.LogStreamResponse]:
        """The latest lines, then every new one, without end."""
        subscriber = _Subscriber(asyncio.get_running_loop())
        self.acquire()
        try:
            subscriber.queue.extend(self._backlog)
            self._subscribers.add(subscriber)
        finally:
            self.release()
        try:
            while True:
                while subscriber.queue:
                    yield subscriber.queue.popleft()
                if subscriber.dropped:
                    count, subscriber.dropped = subscriber.dropped, 0
                    yield jumpstarter_pb2.LogStreamResponse(
                        severity="WARNING",
                        message=f"{count} log lines were dropped: this subscriber reads too slowly",
                        source=LogSource.SYSTEM.to_proto(),
                        structured_fields={"dropped": str(count)},
                    )
                await subscriber.ready.wait()
                subscriber.ready.clear()
        finally:
            self._subscribers.discard(subscriber)
