# SPDX-License-Identifier: Apache-2.0
"""Drivers that write what happens to them into a file, for tests that look from outside the exporter's process."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import anyio

from jumpstarter.driver import Driver, export, exportstream


@dataclass(kw_only=True)
class _Traced(Driver):
    """trace: file that gets a line per happening."""

    trace: str

    @classmethod
    def client(cls) -> str:
        return "jumpstarter.client.DriverClient"

    def note(self, line: str) -> None:
        with open(self.trace, "a", encoding="utf-8") as file:
            file.write(f"{line}\n")


@dataclass(kw_only=True)
class TracedPower(_Traced):
    """A supply."""

    driver_type: ClassVar[str] = "power"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._on = False

    @export
    def on(self) -> None:
        self._on = True
        self.note("on")

    @export
    def off(self) -> None:
        self._on = False
        self.note("off")

    @export(readonly=True)
    def status(self) -> str:
        return "on" if self._on else "off"


@dataclass(kw_only=True)
class SlowPower(TracedPower):
    """A supply that takes its time, as one behind a slow network does: until there is a file TRACE.go."""

    @export
    def off(self) -> None:
        go, deadline = Path(f"{self.trace}.go"), time.monotonic() + 60
        while not go.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        super().off()


@dataclass(kw_only=True)
class OldPower(_Traced):
    """A supply that cannot tell its state and cannot cycle by itself."""

    @export
    def on(self) -> None:
        self.note("on")

    @export
    def off(self) -> None:
        self.note("off")


@dataclass(kw_only=True)
class Worker(_Traced):
    """Does things that take long."""

    @export
    async def work(self, seconds: float) -> str:
        """Take `seconds`."""
        self.note(f"work started in {os.getpid()}")
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.note("work cancelled")
            raise
        self.note("work done")
        return "done"

    @export
    def echo(self, value: Any) -> Any:
        """Give back what came."""
        return value

    @export(readonly=True)
    def add(self, left: int, right: int = 1) -> int:
        """Add numbers."""
        return left + right

    @export
    def data(self) -> bytes:
        """Bytes that are no text."""
        return b"\x00\xff"

    @exportstream
    @asynccontextmanager
    async def connect(self) -> Any:
        """Answer every byte with the same byte in upper case; tell when the client half-closes."""
        client, device = _pair()

        async def answer() -> None:
            async for data in device:
                await device.send(bytes(data).upper())
            await device.send(b"<eof>")
            await device.send_eof()

        async with anyio.create_task_group() as group:
            group.start_soon(answer)
            self.note("stream opened")
            try:
                yield client
            finally:
                self.note("stream closed")
                group.cancel_scope.cancel()

    @exportstream
    @asynccontextmanager
    async def listen(self) -> Any:
        """Send something once and stay open whatever the client does, as a console does."""
        client, device = _pair()
        await device.send(b"hello")
        self.note("stream opened")
        try:
            yield client
        finally:
            self.note("stream closed")


def _pair() -> tuple[Any, Any]:
    from anyio.streams.stapled import StapledObjectStream

    to_device, from_client = anyio.create_memory_object_stream[bytes](16)
    to_client, from_device = anyio.create_memory_object_stream[bytes](16)
    return StapledObjectStream(to_device, from_device), StapledObjectStream(to_client, from_client)


@dataclass(kw_only=True)
class SlowStart(_Traced):
    """Hardware that takes for ever to open."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.note(str(os.getpid()))
        threading.Event().wait(600)


@dataclass(kw_only=True)
class SlowFlasher(_Traced):
    """Says that 1 MiB of an image is written, and stays there."""

    @export
    def flash(self, source: Any, target: str | None = None) -> None:
        raise NotImplementedError

    @export(readonly=True)
    def flash_state(self, target: str | None = None) -> dict[str, Any]:
        return {"name": target or "disk", "capacity": 1 << 30, "record": None, "problem": None}

    @export
    async def flash_image(self, source: Any, target: str, options: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        yield {"event": "progress", "phase": "writing", "done": 1 << 20, "total": 4 << 20}
        await asyncio.sleep(600)
