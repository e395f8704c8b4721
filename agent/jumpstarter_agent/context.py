# SPDX-License-Identifier: Apache-2.0
"""One running operation: its arguments, its lease, where its events go, and how it is ended from outside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

from .errors import AgentError, as_agent_error
from .request import Args, HostRef, Request

if TYPE_CHECKING:
    from .agent import Agent
    from .lease import HostLease
    from .server import Peer

__all__ = ["Context", "EventSink", "OperationFunction", "amount"]

_LOCAL_PHASES = ("downloading", "hashing", "checking")
"""Phases of a flash in which nothing has left this machine yet."""


class EventSink(Protocol):
    """Takes the events of an operation."""

    async def event(self, event: str, data: dict[str, Any]) -> None:
        """Deliver one event."""


class Context:
    """What an operation function gets. `progress` is the data of the last progress event."""

    def __init__(self, agent: Agent, request: Request, sink: EventSink, peer: Peer | None = None) -> None:
        self.agent = agent
        self._loop = asyncio.get_running_loop()
        self._peer = peer
        self.request = request
        self.args = Args(request.args)
        self.check = request.check
        self.progress: dict[str, Any] = {}
        self._sink = sink
        self._lease: HostLease | None = None
        self._abort: AgentError | None = None
        self._task: asyncio.Task[dict[str, Any] | None] | None = None

    # -- for operations

    @property
    def host(self) -> HostRef:
        """The host of the request; `AgentError` when it named none."""
        if self.request.host is None:
            raise AgentError("invalid", "the request names no host")
        return self.request.host

    @property
    def peer(self) -> Peer:
        """The connection itself, for operations that use it raw; a background operation has none."""
        if self._peer is None:
            raise AgentError("invalid", f"{self.request.op} cannot run in the background")
        return self._peer

    async def lease(self) -> HostLease:
        """The lease of the request's host, acquired when there is none. The operation ends when the lease does."""
        if self._lease is None:
            lease = await self.agent.leases.ensure(self.host, self.request.play, self.tell)
            self.bind(lease)
            await lease.connection.ready(lambda text: self.note("note", text))
        assert self._lease is not None
        return self._lease

    def bind(self, lease: HostLease) -> None:
        """Tie this operation to `lease`."""
        self._lease = lease
        lease.users.add(self)

    async def node(self, path: str) -> Any:
        """The driver at `path` of the leased exporter (`AsyncNode`)."""
        lease = await self.lease()
        return lease.connection.session.node(path)

    async def event(self, event: str, text: str, **data: Any) -> None:
        """Tell the caller something while the operation runs. `text` is the line for people."""
        if event == "progress":
            self.progress = data
        await self._sink.event(event, {**data, "text": text})

    def tell(self, text: str, data: dict[str, Any]) -> None:
        """A note of the lease that this operation waits for."""
        self.note("note", text, **data)

    def note(self, event: str, text: str, **data: Any) -> None:
        """Like `event`, from synchronous code; delivered in order, without waiting for the reader."""
        if event == "progress":
            self.progress = data
        # Progress is also reported by threads that read or hash an image.
        document = {**data, "text": text}
        self._loop.call_soon_threadsafe(lambda: self.agent.background(self._sink.event(event, document)))

    # -- LeaseUser

    def abort(self, error: AgentError) -> None:
        """End the operation with this error: its lease is gone."""
        if self._abort is None and self._task is not None and not self._task.done():
            self._abort = error
            self._task.cancel()

    @property
    def finished(self) -> asyncio.Future[None]:
        """Done when the operation has unwound."""
        return asyncio.shield(asyncio.ensure_future(self._wait_finished()))

    # -- for the dispatcher

    async def run(self, function: OperationFunction) -> dict[str, Any] | None:
        """Run the operation; every failure is an `AgentError` that starts with host and operation."""
        started = time.monotonic()
        task = asyncio.ensure_future(function(self))
        self._task = task
        outcome: dict[str, Any] = {"error": "canceled"}
        try:
            value = await self._outcome(task)
            outcome = {"changed": bool((value or {}).get("changed"))}
            return value
        except AgentError as error:
            final = self._final(error, time.monotonic() - started)
            outcome = {"error": final.message, "code": final.code}
            raise final from error
        finally:
            if self._lease is not None:
                self._lease.users.discard(self)
                self._record(started, outcome)

    def _record(self, started: float, outcome: dict[str, Any]) -> None:
        # What was done, by which task, how it went. Not the arguments: there may be passwords among them.
        recording = self.agent.recording
        if not recording.has_callback and outcome.get("code") not in (None, "canceled"):
            # With the callback, Ansible itself says which hosts failed; it knows what was rescued or ignored.
            recording.failed_hosts.add(self.host.name)
        if self.request.task.get("no_log") and "error" in outcome:
            outcome = {**outcome, "error": "hidden by no_log"}  # messages quote what they were given
        recording.event(
            self.host.name,
            "operation",
            op=self.request.op,
            task=self.request.task.get("name"),
            seconds=round(time.monotonic() - started, 3),
            **outcome,
        )

    async def _outcome(self, task: asyncio.Task[dict[str, Any] | None]) -> dict[str, Any] | None:
        try:
            return await task
        except asyncio.CancelledError:
            if self._abort is not None and task.done():
                raise self._abort from None
            if not task.done():
                # We are cancelled (the caller went away): the work has to unwind before anybody says so.
                task.cancel()
                await asyncio.wait([task])
            raise
        except Exception as error:
            known = as_agent_error(error)
            if known.code == "internal":
                raise
            if known.code == "exporter_lost" and self._lease is not None:
                raise await self._lease.reason_of_loss(known) from error
            raise known from error

    def _final(self, error: AgentError, seconds: float) -> AgentError:
        data = dict(error.data)
        message = error.message
        if error.code in ("exporter_lost", "lease_lost"):
            data.setdefault("seconds", round(seconds, 3))
            message += self._how_far(data)
        host = self.request.host.name if self.request.host is not None else ""
        if self.request.task.get("no_log") and host in self.agent.recording.kept:
            # The message will not be shown: say at least where to look.
            data.setdefault("recording_dir", self.agent.recording.kept[host])
        return AgentError(error.code, message, data).prefixed(host, self.request.op)

    def _how_far(self, data: dict[str, Any]) -> str:
        """What to add to the news that the exporter is gone: how far the work got."""
        done, total = self.progress.get("done"), self.progress.get("total")
        if not isinstance(done, int):
            return ""
        if self.progress.get("phase") in _LOCAL_PHASES:
            return "; nothing was written"
        data["bytes_done"] = done
        data["bytes_total"] = total
        far = f"{amount(done)} of {amount(total)}" if total else amount(done)
        return f"; {far} were done" + (", the target is incomplete" if self.request.op == "flash" else "")

    async def _wait_finished(self) -> None:
        if self._task is not None and not self._task.done():
            await asyncio.wait([self._task])


OperationFunction = Callable[[Context], Awaitable[dict[str, Any] | None]]
"""Does one operation. Returns the result value, or None when it used the connection as a raw stream."""


def amount(size: int) -> str:
    """Bytes for people: 48.0 MiB."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.1f} {unit}" if unit != "B" else f"{size} B"
        value /= 1024
    return f"{value:.1f} TiB"
