# SPDX-License-Identifier: Apache-2.0
"""A long operation in a thread of its own, with its events in the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Generic, TypeVar

__all__ = ["Operation", "outlast"]

T = TypeVar("T")

_JOIN: Final = 3.0
"""Seconds a cancelled operation gets to end its current write; one stuck in the kernel longer is left to the kernel."""


class Operation(Generic[T]):
    """Runs ``work(notify)`` in a thread; `events` yields what it notifies until it ends, then `result` has its value.

    ``cancel`` is called when the operation is to stop early; ``work`` must then end soon.
    """

    def __init__(self, name: str, work: Callable[[Callable[[dict[str, Any]], None]], T], cancel: Callable[[], None]):
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._work = work
        self._cancel = cancel
        self._done = asyncio.Event()
        self._value: T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """What the work notifies, until it ends."""
        while (event := await self._events.get()) is not None:
            yield event

    def result(self) -> T:
        """The work's value, or what it raised; only after `events` ended."""
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # set whenever no error is

    async def stop(self) -> None:
        """End the work if it still runs and wait for its thread, even when the caller is being cancelled."""
        if not self._done.is_set():
            self._cancel()
        await outlast(asyncio.create_task(self._ended()))

    async def _ended(self) -> None:
        """Wait for the thread, but not longer than a moment."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_JOIN):
                await self._done.wait()

    def abandon(self) -> None:
        """End the work from any thread; whoever iterates `events` sees the end."""
        self._cancel()
        self._thread.join(_JOIN)

    def _run(self) -> None:
        try:
            self._value = self._work(self._notify)
        except BaseException as error:  # noqa: BLE001 - handed to whoever asks for the result
            self._error = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            self._loop.call_soon_threadsafe(self._end)

    def _notify(self, event: dict[str, Any]) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def _end(self) -> None:
        self._events.put_nowait(None)
        self._done.set()


async def outlast(work: asyncio.Future[Any]) -> None:
    """Wait until it has ended, even when the caller is being cancelled; the cancellation comes afterwards.

    What the work raised is for who asks it.
    """
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError as error:
            cancelled = error
    if not work.cancelled():
        work.exception()
    if cancelled is not None:
        raise cancelled
