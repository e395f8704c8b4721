# SPDX-License-Identifier: Apache-2.0
"""Work that outlives its request: started with ``wait: false``, looked at, waited for or cancelled by id."""

from __future__ import annotations

import asyncio
import datetime
import itertools
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from .errors import AgentError, as_agent_error

__all__ = ["BackgroundOperation", "OperationTable"]

_KEEP_FINISHED = 200
_CANCEL_SECONDS = 5.0


class BackgroundOperation:
    """One running or finished operation. It is the event sink of the work it runs."""

    def __init__(self, identity: str, op: str, host: str) -> None:
        self.id = identity
        self.op = op
        self.host = host
        self.state = "running"
        self.text = ""
        self.progress: dict[str, Any] | None = None
        self.result: dict[str, Any] | None = None
        self.error: AgentError | None = None
        self._started_at = time.time()
        self._started = time.monotonic()
        self._seconds: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._listeners: set[asyncio.Queue[tuple[str, dict[str, Any]] | None]] = set()

    async def event(self, event: str, data: dict[str, Any]) -> None:
        """Keep the newest state and hand the event to everybody who waits."""
        self.text = str(data.get("text", ""))
        if event == "progress":
            self.progress = data
        for queue in self._listeners:
            queue.put_nowait((event, data))

    def start(self, work: Coroutine[Any, Any, dict[str, Any] | None]) -> None:
        """Run `work` to its end, whatever becomes of the request that started it."""
        self._task = asyncio.create_task(self._run(work), name=f"operation {self.id}")

        def never_begun(_: object) -> None:
            # Cancelled before its first step: then nothing in it runs, its end must be told here.
            if self.state == "running":
                work.close()
                self._end("canceled", AgentError("canceled", f"{self.host}: {self.op}: canceled"))

        self._task.add_done_callback(never_begun)

    async def wait(self, on_event: Callable[[str, dict[str, Any]], Awaitable[None]]) -> None:
        """Return when the operation has ended, handing on its events until then."""
        queue: asyncio.Queue[tuple[str, dict[str, Any]] | None] = asyncio.Queue()
        if self.state != "running":
            return
        self._listeners.add(queue)
        try:
            while (item := await queue.get()) is not None:
                await on_event(*item)
        finally:
            self._listeners.discard(queue)

    async def cancel(self) -> bool:
        """Cancel the work and wait until it has unwound; False when it had ended already."""
        if self._task is None or self._task.done():
            return False
        self._task.cancel()
        await asyncio.wait([self._task], timeout=_CANCEL_SECONDS)
        return True

    def describe(self) -> dict[str, Any]:
        """The ``operation`` object of results."""
        seconds = self._seconds if self._seconds is not None else time.monotonic() - self._started
        started = datetime.datetime.fromtimestamp(self._started_at, datetime.UTC)
        return {
            "id": self.id,
            "op": self.op,
            "host": self.host,
            "state": self.state,
            "started_at": started.isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
            "text": self.text,
            "progress": self.progress,
            "result": self.result,
            "error": self.error.as_dict() if self.error is not None else None,
        }

    async def _run(self, work: Coroutine[Any, Any, dict[str, Any] | None]) -> None:
        try:
            self.result = await work
        except asyncio.CancelledError:
            self._end("canceled", AgentError("canceled", f"{self.host}: {self.op}: canceled"))
        except Exception as error:  # noqa: BLE001 - kept as the operation's error
            self._end("failed", as_agent_error(error))
        else:
            self._end("succeeded", None)

    def _end(self, state: str, error: AgentError | None) -> None:
        self.state, self.error = state, error
        self._seconds = time.monotonic() - self._started
        for queue in self._listeners:
            queue.put_nowait(None)


class OperationTable:
    """All operations of this agent; finished ones are kept for a while so that their result can be fetched."""

    def __init__(self) -> None:
        self._operations: dict[str, BackgroundOperation] = {}
        self._numbers = itertools.count(1)

    @property
    def running(self) -> list[BackgroundOperation]:
        """Operations that have not ended."""
        return [operation for operation in self._operations.values() if operation.state == "running"]

    def new(self, op: str, host: str) -> BackgroundOperation:
        """A new operation, to be started by the caller."""
        finished = [key for key, operation in self._operations.items() if operation.state != "running"]
        for key in finished[: max(0, len(finished) - _KEEP_FINISHED)]:
            del self._operations[key]
        operation = BackgroundOperation(f"{op}-{next(self._numbers)}", op, host)
        self._operations[operation.id] = operation
        return operation

    def get(self, identity: str) -> BackgroundOperation:
        """The operation with this id; `AgentError` "not_found" lists the known ones."""
        try:
            return self._operations[identity]
        except KeyError:
            known = ", ".join(self._operations) or "none"
            raise AgentError("not_found", f"no operation {identity!r} in this run; known: {known}") from None

    async def cancel_all(self) -> None:
        """Cancel everything that runs."""
        await asyncio.gather(*(operation.cancel() for operation in self.running))
