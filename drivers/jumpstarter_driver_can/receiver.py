# SPDX-License-Identifier: Apache-2.0
"""The client's end of the stream of received frames: filled by a task in the event loop, emptied by any thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import can

from jumpstarter_driver_can.packing import unpack

if TYPE_CHECKING:
    from jumpstarter_driver_can.client import CanClient

__all__ = ["Receiver"]

#: Batches that wait here to be read. Beyond, the exporter keeps what comes, and drops the oldest when that is too much.
_AHEAD = 64


class Receiver:
    """Starts with the first `receive`. dropped: frames the exporter could not keep for us."""

    def __init__(self, client: CanClient) -> None:
        self.dropped = 0
        self._client = client
        self._filters: Sequence[Any] | None = None
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._batches: deque[dict[str, Any]] = deque()
        self._frames: Iterator[can.Message] = iter(())
        self._next: int | None = None
        self._failure: BaseException | None = None
        self._task: Future[None] | None = None
        self._space: asyncio.Event | None = None
        self._started = threading.Event()
        self._ended = threading.Event()
        self._closed = False
        self._loop_thread = 0

    def start(self, since: int | None = None) -> None:
        """Subscribe, and return when the exporter has. since: as of the driver's `frames`."""
        with self._lock:
            if self._task is not None and self._failure is None:
                return
            if self._failure is not None:
                since = self._next  # what comes after the failure; it was logged if nobody was reading
            self._failure = None
            self._started.clear()
            self._ended.clear()
            self._task = self._client.portal.start_task_soon(self._run, since)
        self._started.wait()

    def stop(self) -> None:
        """Unsubscribe; the next `receive` goes on where this ends."""
        with self._lock:
            task, self._task = self._task, None
        if task is not None:
            task.cancel()
            if threading.get_ident() != self._loop_thread:  # in there it would wait for itself
                self._ended.wait()

    def close(self) -> None:
        """Unsubscribe for good; whoever waits in `receive` gets an error."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.stop()

    def filter(self, filters: Sequence[Any] | None) -> None:
        """Let only these frames come. What is here already is for the caller to look through."""
        wanted = [dict(one) for one in filters] if filters else None
        if wanted == self._filters:
            return
        self._filters = wanted
        if self._task is not None:
            self.stop()
            self.start(self._next)

    def receive(self, timeout: float | None) -> can.Message | None:
        """The next frame, None after `timeout` seconds without one. Raises what ended the stream."""
        if self._task is None and not self._closed:
            self.start(self._next)
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while True:
                frame = next(self._frames, None)
                if frame is not None:
                    return frame
                if self._batches:
                    batch = self._batches.popleft()
                    self._frames = unpack(batch["frames"], batch["channel"])
                    if self._space is not None and len(self._batches) == _AHEAD // 2:
                        self._client.portal.start_task_soon(self._space.set)
                    continue
                if self._failure is not None:
                    self._task = None
                    raise self._failure
                if self._closed:
                    raise can.CanOperationError(f"{self._client.path or 'can'}: the bus was shut down")
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(left)

    async def _run(self, since: int | None) -> None:
        self._loop_thread = threading.get_ident()
        self._space = asyncio.Event()
        items = self._client.streamingcall_async("frames", self._filters, since)
        try:
            async for item in items:
                full = self._put(item)
                self._started.set()
                if full:
                    self._space.clear()
                    await self._space.wait()
            raise ConnectionError(f"{self._client.path}: the exporter ended the stream of frames")
        except Exception as error:  # noqa: BLE001 (the thread that reads raises it)
            self._client.logger.warning("%s: receiving ended: %s", self._client.path or "can", error)
            with self._changed:
                self._failure = error
                self._changed.notify_all()
        finally:
            self._started.set()
            try:
                await items.aclose()
            finally:
                self._ended.set()

    def _put(self, item: dict[str, Any]) -> bool:
        """Take a batch; tells whether no more shall come for now."""
        if item["dropped"]:
            self.dropped += int(item["dropped"])
            self._client.logger.warning(
                "%s: %d frames were lost: they came quicker than they were read", self._client.path, item["dropped"]
            )
        with self._changed:
            self._next = int(item["next"])
            if item["frames"]:
                self._batches.append(item)
                self._changed.notify_all()
            return len(self._batches) >= _AHEAD
