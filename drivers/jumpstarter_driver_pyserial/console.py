# SPDX-License-Identifier: Apache-2.0
"""Base of console drivers: everything a client can do with a console, over any kind of port."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import Driver, export, exportstream
from jumpstarter_driver_pyserial.hub import ConsoleHub
from jumpstarter_driver_pyserial.ports import ListenFactory, PortFactory

__all__ = ["ConsoleDriver"]

#: Seconds `connect` waits for a port that should be there and is just being opened (again).
_PRESENT_WITHIN = 2.0


@dataclass(kw_only=True)
class ConsoleDriver(Driver):
    """A console that is read from the start of the session, whether or not a client is connected.

    log_size: bytes of output kept. cps: characters written per second, at most; for devices that lose fast input.
    check_present: the port is expected to be there; without, it may come and go (an emulator's).

    Reading: any number of `connect` and `tap` streams, which start at the present, and of `follow` and `log` calls,
    which can go back in the log. Offsets (``seq``) count the bytes since the session began (``epoch``): an answer
    with ``seq`` equal to the previous ``seq + len(data)`` proves that nothing is missing between the two.

    Writing: one at a time. A `connect` stream takes the right to write with the first bytes it sends and keeps it
    until it closes; `acquire_writer` takes it for calls of `write` with the same owner. Everybody else is refused,
    and told who writes.
    """

    driver_type: ClassVar[str] = "serial"

    log_size: int = 1 << 20
    cps: float | None = None
    check_present: bool = True
    hub: ConsoleHub = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.log_size < 4096:
            raise ConfigurationError(f"console: log_size is {self.log_size}, must be at least 4096 bytes")
        if self.cps is not None and self.cps <= 0:
            raise ConfigurationError(f"console: cps is {self.cps:g}, must be positive")
        self.hub = ConsoleHub(self._port_factory(), capacity=self.log_size, cps=self.cps, logger=self.logger)

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_pyserial.client.PySerialClient"

    @abstractmethod
    def _port_factory(self) -> PortFactory:
        """What opens the port. Called once, while the driver is constructed."""

    # --- life ---------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Begin a session: an empty log, nobody writing, the port being read."""
        super().reset()
        hub = self.hub

        def begin() -> None:
            hub.renew()
            hub.start()

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            # Called from a thread: between two sessions in the loop of the first, or before there is any loop. Then
            # the first use starts the hub.
            if hub.loop is not None and hub.loop.is_running():
                hub.loop.call_soon_threadsafe(begin)
            return
        begin()

    @export
    def close(self) -> None:
        """Close the port. The next use (or session) opens it again."""
        self.hub.stop()
        super().close()

    async def ensure_open(self) -> None:
        """Make sure that the port is being opened, or can be connected to. For the driver that starts the device."""
        self.hub.start()
        if isinstance(self.hub.factory, ListenFactory):
            self.hub.factory.listen()

    @asynccontextmanager
    async def lend(self, who: str) -> AsyncIterator[None]:
        """Leave the port to a program (``who``, for messages) while the context is open. For drivers that run one."""
        async with self.hub.lend(who):
            yield

    async def _ready(self) -> None:
        if isinstance(self.hub.factory, ListenFactory):
            await self.ensure_open()
            return
        await self.hub.settled()
        if self.check_present and not self.hub.open:
            await self.hub.wait_open(_PRESENT_WITHIN)

    # --- streams ------------------------------------------------------------------------------------------------

    @exportstream
    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Any]:
        """Stream: the console from now on, to read and to write."""
        await self._ready()
        async with self.hub.stream() as stream:
            yield stream

    @exportstream
    @asynccontextmanager
    async def tap(self) -> AsyncIterator[Any]:
        """Stream: the console from now on, to read only."""
        self.hub.start()
        async with self.hub.stream(writable=False) as stream:
            yield stream

    # --- the log ------------------------------------------------------------------------------------------------

    @export(readonly=True)
    async def position(self) -> dict[str, Any]:
        """Where the log is: next offset, oldest offset kept, epoch, whether the port is open, who writes."""
        hub = self.hub
        return {
            "seq": hub.ring.head,
            "first": hub.ring.first,
            "epoch": hub.epoch,
            "open": hub.open,
            "writer": hub.writer.owner if hub.writer is not None else None,
        }

    @export(readonly=True)
    async def log(self, since_seq: int = 0, max_bytes: int = 1 << 16) -> dict[str, Any]:
        """Read the log: up to max_bytes from an offset on (negative: the newest ones).

        seq: offset of the first byte of data. dropped: bytes after since_seq that are no longer kept. t: seconds
        since the epoch when the first byte arrived. next_seq: offset to go on with. events: what happened to the port
        between seq and next_seq.
        """
        if not 0 < max_bytes <= 1 << 20:
            raise ValueError(f"log: max_bytes is {max_bytes}, must be 1 to {1 << 20}")
        hub = self.hub
        hub.start()
        piece = hub.read(since_seq, max_bytes)
        end = piece.seq + len(piece.data)
        return {
            "seq": piece.seq,
            "data": piece.data,
            "dropped": piece.dropped,
            "t": piece.t,
            "next_seq": end,
            "epoch": hub.epoch,
            "open": hub.open,
            "events": [{"seq": e.seq, "t": e.t, "event": e.text} for e in hub.events if piece.seq <= e.seq <= end],
        }

    @export(readonly=True)
    async def follow(self, since_seq: int = 0) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the log from an offset on (negative: from now), and go on until the session ends.

        Each item has seq, t, data, dropped (bytes before seq that this follower lost) and event ("open",
        "lost: ...", or "" for data).
        """
        async for chunk in self.hub.follow(since_seq):
            yield {
                "seq": chunk.seq,
                "t": chunk.t,
                "data": chunk.data,
                "dropped": chunk.dropped,
                "event": chunk.event,
            }

    # --- writing ------------------------------------------------------------------------------------------------

    @export(concurrent=True)
    async def write(self, data: bytes, owner: str = "") -> int:
        """Write bytes; owner: the name given to `acquire_writer`, if it was.

        Returns the log's offset at that moment: the device's answer comes after it.
        """
        await self._ready()
        return await self.hub.write(data, owner)

    @export(concurrent=True)
    async def acquire_writer(self, owner: str) -> dict[str, Any]:
        """Take the right to write, for `write` with the same owner, until it is released or the session ends.

        Asking again with the same name is no error.
        """
        if not owner:
            raise ValueError("acquire_writer: owner is empty; say who writes")
        held = self.hub.writer
        if held is None or held.owner != owner:
            held = self.hub.claim(owner)
        return {"owner": held.owner, "since": held.since, "seq": self.hub.head}

    @export(concurrent=True)
    async def release_writer(self, owner: str) -> bool:
        """Give the right to write back. Returns False when that owner did not have it."""
        held = self.hub.writer
        if held is None or held.owner != owner:
            return False
        self.hub.release(held)
        return True
