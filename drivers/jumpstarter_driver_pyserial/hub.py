# SPDX-License-Identifier: Apache-2.0
"""One console, read once and shared: an always-on log, any number of readers, one writer at a time.

The hub opens its port when it is started and reads for as long as it lives. What it reads goes into a `Ring`; readers
are nothing but positions in it. So a reader costs no memory, a slow one holds up nobody, and each knows from the
offsets whether it saw everything. When the port goes away the hub says so in its events and opens it again.

A hub lives in one event loop. Its methods are called there, except `stop`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import uuid4

from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import ObjectStream

from jumpstarter.common.exceptions import DriverError
from jumpstarter_driver_pyserial.ports import Port, PortFactory
from jumpstarter_driver_pyserial.ring import Ring

__all__ = ["Chunk", "ConsoleBusy", "ConsoleHub", "ConsoleStream", "ConsoleUnavailable", "Event", "Slice", "Writer"]

#: Seconds between two attempts to open a port that is away: at first, and at most.
_RETRY_FIRST, _RETRY_MOST = 0.02, 1.0

#: Bytes handed to a reader at once.
_PIECE = 1 << 18


class ConsoleBusy(DriverError):
    """Somebody else is writing to the console."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="RESOURCE_EXHAUSTED")


class ConsoleUnavailable(DriverError):
    """The console's port is not there, or its reader fell behind."""

    def __init__(self, message: str, code: str = "UNAVAILABLE") -> None:
        super().__init__(message, code=code)


class Event(NamedTuple):
    """Something that happened to the port, between the bytes ``seq - 1`` and ``seq``."""

    number: int
    seq: int
    t: float
    text: str


class Slice(NamedTuple):
    """Bytes of the log: the offset of the first, when it arrived, and how many wanted ones before it are lost."""

    seq: int
    data: bytes
    dropped: int
    t: float


@dataclass(frozen=True)
class Chunk:
    """What a follower gets: bytes, or an event. ``dropped`` bytes before ``seq`` are lost to this follower."""

    seq: int
    t: float
    data: bytes = b""
    dropped: int = 0
    event: str = ""


@dataclass(eq=False)
class Writer:
    """Who holds the right to write, and since when (seconds since the epoch)."""

    owner: str
    since: float

    def __str__(self) -> str:
        return f"{self.owner} (since {time.strftime('%H:%M:%S', time.localtime(self.since))})"


class ConsoleHub:
    """See the module. factory: opens the port. capacity: bytes of log. cps: characters written per second, at most."""

    def __init__(
        self,
        factory: PortFactory,
        *,
        capacity: int = 1 << 20,
        cps: float | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        self.factory = factory
        self.cps = cps
        self._capacity = capacity
        self._logger = logger or logging.getLogger(__name__)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._port: Port | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._kick = asyncio.Event()
        self._write_turn = asyncio.Lock()
        #: Who uses the port instead of the hub, "" for nobody; and ends the hub's own use of it.
        self._borrower = ""
        self._lose: Callable[[str], None] | None = None
        self._opening = False
        #: Raw streams opened so far.
        self.streams = 0
        self._event_number = 0
        self._reason = "not opened yet"
        #: Set by a driver that knows why there is no port ("the machine is off"); empty when it does not.
        self.explain_absence: Callable[[], str] | None = None
        self._attempted = False
        self._renew()

    def _renew(self) -> None:
        self.epoch = uuid4().hex
        self.ring = Ring(self._capacity)
        self.events: deque[Event] = deque(maxlen=256)
        self.writer: Writer | None = None

    # --- life ---------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """True between `start` and `stop`."""
        return self._task is not None

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop it was last started in."""
        return self._loop

    @property
    def open(self) -> bool:
        """True while the port is there."""
        return self._port is not None

    @property
    def head(self) -> int:
        """Offset of the next byte to come."""
        return self.ring.head

    def start(self) -> None:
        """Start to open and read the port, in the running loop. Does nothing when it runs."""
        if self._task is not None:
            return
        self._loop = asyncio.get_running_loop()
        # Those of an earlier loop cannot be used in this one.
        self._kick = asyncio.Event()
        self._write_turn = asyncio.Lock()
        self._attempted = False
        self._task = self._loop.create_task(self._supervise(), name=f"console {self.factory.name}")
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        # A mistake in a port, not a port that is away: say it where it is seen, readers must not wait for ever.
        self._reason = f"failed: {error}"
        self._logger.error("%s: the console failed", self.factory.name, exc_info=error)
        if self._task is task:
            self._stop(in_loop=True)

    def renew(self) -> None:
        """Forget the past for the next user: log, events, writer. Readers of the old log come to its end.

        The port stays open: opening a terminal again would toggle its modem lines, which resets some boards.
        """
        self._renew()
        if self._port is not None:
            self._note("open")
        self._wake_all()

    def stop(self) -> None:
        """Close the port and end all readers. May be called from any thread, and twice."""
        loop = self._loop
        if self._task is None or loop is None:
            return
        if loop.is_closed() or not loop.is_running():
            self._stop(in_loop=False)
            return
        try:
            inside = asyncio.get_running_loop() is loop
        except RuntimeError:
            inside = False
        if inside:
            self._stop(in_loop=True)
            return
        done = threading.Event()

        def stop_there() -> None:
            try:
                self._stop(in_loop=True)
            finally:
                done.set()

        loop.call_soon_threadsafe(stop_there)
        if not done.wait(10):
            raise TimeoutError(f"{self.factory.name}: the console could not be closed within 10 s (event loop blocked)")

    def _stop(self, *, in_loop: bool) -> None:
        task, self._task = self._task, None
        if task is not None and in_loop:
            task.cancel()
        if self._port is not None:
            port, self._port = self._port, None
            self._note("closed")
            port.close()
        self.factory.close()
        self._reason = "closed"
        self.writer = None
        if in_loop:
            self._wake_all()

    def kick(self) -> None:
        """Try to open the port now rather than at the next attempt. From any thread."""
        loop = self._loop
        if self._task is not None and loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._kick.set)

    async def wait_open(self, timeout: float | None) -> None:
        """Wait until the port is there; seconds, None: without end. Raises `ConsoleUnavailable`."""
        self.start()
        try:
            async with asyncio.timeout(timeout):
                while self._port is None:
                    if self._task is None:
                        raise ConsoleUnavailable(f"{self.factory.name}: the console was closed")
                    await self._change()
        except TimeoutError:
            raise ConsoleUnavailable(f"{self.factory.name}: {self._absence()}") from None

    @asynccontextmanager
    async def lend(self, who: str) -> AsyncIterator[None]:
        """Leave the port to another program while the context is open; readers see it as lost and come back.

        Raises `ConsoleUnavailable` when it is lent already.
        """
        if self._borrower:
            raise ConsoleUnavailable(f"{self.factory.name}: {self._absence()}", code="RESOURCE_EXHAUSTED")
        self._borrower = who
        try:
            if self._task is not None:
                await self.settled()  # the first attempt to open it
            if self._lose is not None:
                self._lose(f"in use by {who}")
            # Later attempts, too, end before the port is anybody else's: opening it moves the modem lines.
            while (self._opening or self._port is not None) and self._task is not None:
                await self._change()
            yield
        finally:
            self._borrower = ""
            self.kick()

    async def settled(self) -> None:
        """Wait until the first attempt to open the port since `start` has ended, well or badly."""
        self.start()
        while not self._attempted and self._task is not None:
            await self._change()

    async def _supervise(self) -> None:
        delay = _RETRY_FIRST
        complained = ""
        while True:
            self._kick.clear()
            try:
                if self._borrower:
                    raise OSError(errno.EBUSY, f"in use by {self._borrower}")
                self._opening = True
                try:
                    port = await self.factory.open()
                finally:
                    self._opening = False
                    if self._borrower:
                        self._wake_all()
                if self._borrower:
                    port.close()
                    raise OSError(errno.EBUSY, f"in use by {self._borrower}")
            except OSError as error:
                self._reason = (error.strerror or str(error) or type(error).__name__).lower()
                if not self._attempted:
                    self._attempted = True
                    self._wake_all()
                if self._reason != complained:
                    complained = self._reason
                    self._logger.warning("%s: cannot open: %s; will keep trying", self.factory.name, self._reason)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._kick.wait()
                delay = min(delay * 2, _RETRY_MOST)
                continue
            delay, complained = _RETRY_FIRST, ""
            lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

            def gone(reason: str, lost: asyncio.Future[str] = lost) -> None:
                if not lost.done():
                    lost.set_result(reason)

            self._port = port
            self._lose = gone
            self._attempted = True
            try:
                self._logger.debug("%s: open", self.factory.name)
                self._note("open")
                port.start(self._received, gone)
                self._wake_all()
                self._reason = await lost
            finally:
                self._lose = None
                if self._port is port:
                    self._port = None
                port.close()
            self._logger.info("%s: lost: %s", self.factory.name, self._reason)
            self._note(f"lost: {self._reason}")
            self._wake_all()

    # --- reading ------------------------------------------------------------------------------------------------

    def _received(self, data: bytes) -> None:
        self.ring.append(data, time.time())
        if self._waiters:
            self._wake_all()

    def _note(self, text: str) -> None:
        self._event_number += 1
        self.events.append(Event(self._event_number, self.ring.head, time.time(), text))

    def _wake_all(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _change(self) -> None:
        """Wait for the next bytes or event."""
        assert self._loop is not None
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)
            raise

    def read(self, since: int, limit: int) -> Slice:
        """Up to ``limit`` bytes of the log from an offset on; a negative one: the newest bytes.

        Raises ValueError for an offset that has not been reached.
        """
        if since < 0:
            since = max(self.ring.first, self.ring.head - limit)
        self._check(since)
        seq, data = self.ring.read(since, limit)
        return Slice(seq, data, seq - since, self.ring.time(seq))

    def _check(self, since: int) -> None:
        if since > self.ring.head:
            raise ValueError(
                f"{self.factory.name}: offset {since} is in the future, the log is at {self.ring.head} "
                "(another session, or was the exporter restarted?)"
            )

    async def follow(self, since: int = -1) -> AsyncIterator[Chunk]:
        """Everything from an offset on (negative: from now), in order, until the hub is stopped or renewed.

        Bytes that arrived at different times come apart. A follower that falls behind by more than the log is told so
        in `Chunk.dropped` and goes on with the oldest byte that is left.
        """
        self.start()
        epoch = self.epoch
        at = self.ring.head if since < 0 else since
        self._check(at)
        # Live followers start after what has happened; others also get the events among the bytes they asked for.
        seen = self._event_number if since < 0 else 0
        while self.epoch == epoch:
            event = None
            if seen < self._event_number:
                event = next((e for e in self.events if e.number > seen and e.seq >= at), None)
                if event is None:
                    seen = self._event_number
            if event is not None and event.seq <= at:
                seen = event.number
                yield Chunk(event.seq, event.t, event=event.text)
                continue
            if at < self.ring.head:
                start = max(at, self.ring.first)
                end = min(self.ring.same_time(start), event.seq if event is not None else self.ring.head)
                seq, data = self.ring.read(start, min(_PIECE, max(end - start, 1)))
                dropped, at = seq - at, seq + len(data)
                yield Chunk(seq, self.ring.time(seq), data, dropped)
                continue
            if self._task is None:
                return
            await self._change()

    # --- writing ------------------------------------------------------------------------------------------------

    def claim(self, owner: str) -> Writer:
        """Take the right to write. Raises `ConsoleBusy` naming who has it."""
        if self.writer is not None:
            raise ConsoleBusy(f"{self.factory.name}: {self.writer} is writing to this console")
        self.writer = Writer(owner, time.time())
        return self.writer

    def release(self, writer: Writer) -> None:
        """Give the right to write back; nothing happens when it was taken away."""
        if self.writer is writer:
            self.writer = None

    async def write(self, data: bytes, owner: str = "") -> int:
        """Write for a named owner, who may have claimed the console before. Returns the offset of the log then.

        Raises `ConsoleBusy` when somebody else holds it, `ConsoleUnavailable` when the port is away.
        """
        self.start()
        held = self.writer
        if held is not None and (not owner or held.owner != owner):
            raise ConsoleBusy(f"{self.factory.name}: {held} is writing to this console")
        writer = held or self.claim(owner or "a single write")
        try:
            return await self.write_as(writer, data)
        finally:
            if held is None:
                self.release(writer)

    async def write_as(self, writer: Writer, data: bytes) -> int:
        """Write as the holder of the console."""
        async with self._write_turn:
            if self.writer is not writer:
                raise ConsoleBusy(f"{self.factory.name}: the right to write was taken away from {writer.owner}")
            port = self._require_port()
            at = self.ring.head
            try:
                if self.cps:
                    await self._write_slowly(port, data, self.cps)
                else:
                    await port.write(data)
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise ConsoleUnavailable(f"{self.factory.name}: writing failed: {reason}") from error
            return at

    @staticmethod
    async def _write_slowly(port: Port, data: bytes, cps: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        for index in range(len(data)):
            await port.write(data[index : index + 1])
            # Against the clock, not after each byte: oversleeping must not add up.
            due = max(due + 1 / cps, loop.time())
            await asyncio.sleep(due - loop.time())

    def _absence(self) -> str:
        return (self.explain_absence() if self.explain_absence else "") or f"the port is not there: {self._reason}"

    def _require_port(self) -> Port:
        if self._port is None:
            raise ConsoleUnavailable(f"{self.factory.name}: {self._absence()}")
        return self._port

    def lines(self) -> Any:
        """The open port's modem lines and BREAK (a pyserial object). Raises `ConsoleUnavailable`."""
        lines = self._require_port().lines
        if lines is None:
            raise NotImplementedError(f"{self.factory.name} has no modem lines and no BREAK")
        return lines

    @asynccontextmanager
    async def stream(self, owner: str | None = None, *, writable: bool = True) -> AsyncIterator[ConsoleStream]:
        """A raw byte stream that starts now. It becomes the writer with the first bytes it sends."""
        self.start()
        self.streams += 1
        stream = ConsoleStream(self, owner or f"console stream {self.streams}", writable=writable)
        try:
            yield stream
        finally:
            await stream.aclose()


class ConsoleStream(ObjectStream[bytes]):
    """A raw view of a console. Raw bytes cannot say that some are missing, so a reader that lost any is ended."""

    def __init__(self, hub: ConsoleHub, owner: str, *, writable: bool) -> None:
        self._hub = hub
        self._owner = owner
        self._writable = writable
        self._epoch = hub.epoch
        self._at = hub.head
        self._writer: Writer | None = None
        self._ended = False
        self._closed = False

    async def receive(self) -> bytes:
        """The next bytes. Raises `ConsoleUnavailable` when this reader is more than a whole log behind."""
        hub = self._hub
        while True:
            if self._closed:
                raise ClosedResourceError
            if self._epoch != hub.epoch:
                raise EndOfStream
            seq, data = hub.ring.read(self._at, _PIECE)
            if data:
                if seq != self._at:
                    raise ConsoleUnavailable(
                        f"{hub.factory.name}: this reader fell behind, {seq - self._at} bytes from offset {self._at} "
                        "on are lost to it; connect again, or use follow(), which tells and goes on",
                        "DATA_LOSS",
                    )
                self._at += len(data)
                return data
            if self._ended or not hub.running:
                raise EndOfStream
            await hub._change()

    async def send(self, item: bytes) -> None:
        """Write; the first one takes the right to write. Raises `ConsoleBusy` or `ConsoleUnavailable`."""
        if self._closed or self._ended:
            raise ClosedResourceError
        if not self._writable:
            raise ConsoleBusy(f"{self._hub.factory.name}: this stream is for reading only; use connect to write")
        if self._epoch != self._hub.epoch:
            raise BrokenResourceError("the session has ended")
        if self._writer is None:
            self._writer = self._hub.claim(self._owner)
        await self._hub.write_as(self._writer, item)

    async def send_eof(self) -> None:
        """End the stream: a console knows no half-close, and what was sent before has been written."""
        self._ended = True
        self._release()
        self._hub._wake_all()

    async def aclose(self) -> None:
        """Leave the console."""
        if self._closed:
            return
        self._closed = True
        self._release()
        self._hub._wake_all()

    async def reset(self) -> None:
        """Leave the console (the peer broke off)."""
        await self.aclose()

    def _release(self) -> None:
        if self._writer is not None:
            self._hub.release(self._writer)
            self._writer = None

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """None."""
        return {}
