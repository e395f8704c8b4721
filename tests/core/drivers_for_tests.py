# SPDX-License-Identifier: Apache-2.0
"""A driver with one method of every kind, and its client."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, ClassVar
from uuid import UUID

import anyio
from pydantic import BaseModel

from jumpstarter.client import DriverClient
from jumpstarter.driver import Driver, call_cancelled, export, exportstream
from jumpstarter.streams.common import create_memory_stream


class Mode(Enum):
    FAST = "fast"
    SLOW = "slow"


class Reading(BaseModel):
    volts: float
    count: int
    at: datetime | None = None


@dataclass
class Point:
    x: int
    y: int


@dataclass(kw_only=True)
class EveryKind(Driver):
    """Everything a driver can export."""

    driver_type: ClassVar[str] = "testing"

    log: list[str] = field(default_factory=list, init=False)
    running: int = field(default=0, init=False)
    most_running: int = field(default=0, init=False)
    seen_cancel: threading.Event = field(default_factory=threading.Event, init=False)
    started: threading.Event = field(default_factory=threading.Event, init=False)

    @classmethod
    def client(cls) -> str:
        return f"{__name__}.EveryKindClient"

    @export(readonly=True)
    def kinds(
        self,
        i: int,
        f: float,
        b: bytes,
        mode: Mode,
        when: datetime,
        wait: timedelta,
        id: UUID,
        point: Point,
        reading: Reading,
        maybe: int | None = None,
        *,
        many: list[int] | None = None,
    ) -> list[str]:
        """Types of the arguments as they arrive."""
        values = (i, f, b, mode, when, wait, id, point, reading, maybe, many)
        return [type(v).__name__ for v in values] + [repr(many)]

    @export
    def echo(self, value: Any = None) -> Any:
        """The argument."""
        return value

    @export
    async def echo_async(self, value: Any = None) -> Any:
        return value

    @export
    def reading(self) -> Reading:
        return Reading(volts=5.0, count=3)

    @export
    def fail(self, kind: str) -> None:
        errors: dict[str, Exception] = {
            "value": ValueError("bad value"),
            "not_implemented": NotImplementedError("not here"),
            "timeout": TimeoutError("no answer"),
            "connection": ConnectionResetError("device hung up"),
            "os": OSError(5, "Input/output error"),
            "other": RuntimeError("surprise"),
        }
        raise errors[kind]

    def _enter(self) -> None:
        self.running += 1
        self.most_running = max(self.most_running, self.running)

    @export
    def exclusive(self) -> None:
        self._enter()
        time.sleep(0.02)
        self.running -= 1

    @export(concurrent=True)
    def meet(self) -> bool:
        """True once two calls are inside at the same time."""
        self._enter()
        deadline = time.monotonic() + 60
        while self.most_running < 2 and time.monotonic() < deadline:
            time.sleep(0.002)
        self.running -= 1
        return self.most_running >= 2

    @export
    def slow(self) -> None:
        self.started.set()
        while not call_cancelled():
            time.sleep(0.005)
        self.seen_cancel.set()

    @export
    async def slow_async(self) -> None:
        self.started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.seen_cancel.set()
            raise

    @export
    def count(self, n: int) -> Generator[int, None, None]:
        yield from range(n)

    @export
    async def count_async(self, n: int) -> AsyncGenerator[int, None]:
        for i in range(n):
            yield i

    @export
    def blocking_generator(self) -> Generator[str, None, None]:
        """Blocks its thread until it is closed."""
        yield "started"
        while not call_cancelled():
            time.sleep(0.005)
        self.seen_cancel.set()

    @export
    def half(self) -> Generator[int, None, None]:
        yield 1
        raise OSError("lost after one")

    @export
    async def swallow(self, source: Any) -> int:
        """Bytes that came in before the end of the client's stream."""
        total = 0
        async with self.resource(source) as stream:
            async for chunk in stream:
                total += len(chunk)
                self.started.set()
        return total

    @export
    async def pour(self, target: Any, size: int, fail: bool = False) -> None:
        async with self.resource(target) as stream:
            for at in range(0, size, 1 << 20):
                await stream.send(b"\xa5" * min(1 << 20, size - at))
            if fail:
                raise OSError("device gone")

    @exportstream
    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Any]:
        ours, theirs = create_memory_stream()

        async def echo() -> None:
            async for data in theirs:
                await theirs.send(data)
            await theirs.send_eof()

        async with anyio.create_task_group() as tg:
            tg.start_soon(echo)
            yield ours

    @exportstream
    @asynccontextmanager
    async def refuses(self) -> AsyncIterator[Any]:
        raise ConnectionRefusedError("tcp 127.0.0.1:9: connection refused")
        yield


class EveryKindClient(DriverClient):
    """Client of `EveryKind`."""
