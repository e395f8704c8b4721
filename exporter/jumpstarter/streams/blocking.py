# SPDX-License-Identifier: Apache-2.0
"""A byte stream for code without an event loop.

The stream lives in the loop of a portal; this end is used from other threads. Handing every operation to the loop and
waiting for it would cost two thread switches each, so a task in the loop reads ahead (a little) into a queue that the
caller waits on, and what is sent is handed over without waiting unless much is on its way already.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from queue import SimpleQueue
from threading import Condition
from typing import Any

from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.from_thread import BlockingPortal

from jumpstarter.streams.common import receive_from
from jumpstarter.streams.frames import MAX_PAYLOAD

__all__ = ["BlockingStream"]

#: Bytes read ahead, and bytes on their way out, before the respective side waits.
_AHEAD = 4 * MAX_PAYLOAD


class BlockingStream:
    """Blocking view of an async byte stream that lives in the loop of ``portal``. One reader, one writer at a time."""

    def __init__(self, stream: Any, portal: BlockingPortal) -> None:
        self.stream = stream
        self.portal = portal
        self._loop: asyncio.AbstractEventLoop = portal.call(asyncio.get_running_loop)
        self._received: SimpleQueue[bytes | BaseException] = SimpleQueue()
        self._end: BaseException | None = None
        # Two counters, one per thread, because an update from both sides would lose some.
        self._bytes_read = 0
        self._bytes_taken = 0
        self._reader_waits = False
        self._read_on = asyncio.Event()
        self._outgoing: deque[bytes | None] = deque()
        self._unsent = 0
        self._sent = Condition()
        self._failure: BaseException | None = None
        self._writer: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._closed = False
        self._rest = b""

    # In the loop -----------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            while True:
                while self._bytes_read - self._bytes_taken >= _AHEAD:
                    self._read_on.clear()
                    self._reader_waits = True
                    if self._bytes_read - self._bytes_taken >= _AHEAD:  # again, now that the flag can be seen
                        await self._read_on.wait()
                    self._reader_waits = False
                data = await receive_from(self.stream)
                self._bytes_read += len(data)
                self._received.put(data)
        except asyncio.CancelledError:
            self._received.put(ClosedResourceError())
            raise
        except BaseException as error:  # noqa: BLE001 (carried over to the reader's thread, raised there)
            self._received.put(error)

    async def _write(self) -> None:
        try:
            while self._outgoing:
                data = self._outgoing.popleft()
                if data is None:
                    await self.stream.send_eof()
                    continue
                await self.stream.send(data)
                with self._sent:
                    self._unsent -= len(data)
                    self._sent.notify_all()
        except BaseException as error:  # raised by the next send
            with self._sent:
                self._failure = ClosedResourceError() if isinstance(error, asyncio.CancelledError) else error
                self._outgoing.clear()
                self._unsent = 0
                self._sent.notify_all()
            if isinstance(error, asyncio.CancelledError):
                raise

    def _start_reading(self) -> None:
        if self._reader is None and not self._closed:
            self._reader = self._loop.create_task(self._read())

    def _start_writing(self) -> None:
        if self._outgoing and (self._writer is None or self._writer.done()):
            self._writer = self._loop.create_task(self._write())

    # In the caller's thread --------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send bytes. Waits only while several MiB are on their way; an error of earlier bytes is raised here."""
        self._hand_over(bytes(data))

    def send_eof(self) -> None:
        """Say that no more data will come, once everything sent before has left."""
        self._hand_over(None)
        self.flush()

    def flush(self) -> None:
        """Wait until everything sent so far has been taken by the stream."""
        with self._sent:
            while self._unsent and self._failure is None:
                self._sent.wait()
            self._check()

    def _hand_over(self, data: bytes | None) -> None:
        if self._closed:
            raise ClosedResourceError
        size = len(data) if data is not None else 0
        with self._sent:
            while self._unsent >= _AHEAD and self._failure is None:
                self._sent.wait()
            self._check()
            self._unsent += size
            self._outgoing.append(data)
        self._loop.call_soon_threadsafe(self._start_writing)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def receive(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, at most ``max_bytes``. Raises `anyio.EndOfStream` at the end."""
        data, self._rest = self._rest, b""
        if not data:
            data = self._next()
        if max_bytes is not None and len(data) > max_bytes:
            data, self._rest = data[:max_bytes], data[max_bytes:]
        return data

    def _next(self) -> bytes:
        if self._closed:
            raise ClosedResourceError
        if self._end is not None:
            raise self._end
        if self._reader is None:
            self._loop.call_soon_threadsafe(self._start_reading)
        item = self._received.get()
        if isinstance(item, BaseException):
            self._end = item
            raise item
        self._bytes_taken += len(item)
        if self._reader_waits and self._bytes_read - self._bytes_taken < _AHEAD:
            self._loop.call_soon_threadsafe(self._read_on.set)
        return item

    def close(self) -> None:
        """Close both directions; what was sent before still leaves."""
        if self._closed:
            return
        self._closed = True

        async def finish() -> None:
            if self._writer is not None and not self._writer.done():
                await asyncio.wait([self._writer])
            if self._reader is not None and not self._reader.done():
                # Cancelling a read cancels the call, and with it what the peer has not read yet.
                if patience := getattr(self.stream, "farewell", 0.0):
                    try:
                        await self.stream.send_eof()
                    except BrokenResourceError:
                        pass  # the peer has closed
                    await asyncio.wait([self._reader], timeout=patience)
                self._reader.cancel()
            await self.stream.aclose()

        self.portal.call(finish)

    def __iter__(self) -> Iterator[bytes]:
        while True:
            try:
                yield self.receive()
            except EndOfStream:
                return
