# SPDX-License-Identifier: Apache-2.0
"""One held device: a state machine with a task of its own.

free -> acquiring -> held -> releasing -> ended, or held -> lost (exporter gone, time over). Everything that belongs to
the lease (exporter process, connection, exclusive hold, consoles, forwards) is opened and closed inside that one task,
so it is always closed, in order, whoever asked for the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from .connection import Connection, open_connection
from .controllers import Controllers
from .durations import format_duration
from .errors import AgentError, as_agent_error
from .exporter_child import StopBudget
from .lease_wish import Wish
from .reach import ControllerReach, Reach

__all__ = ["HostLease", "LeaseOptions", "LeaseUser", "Place"]

log = logging.getLogger(__name__)

LIFETIMES = ("run", "play", "detached")

DETACHED_SECONDS = 3600.0
"""How long a detached lease lives when the task says nothing."""

_LOSS_SECONDS = 3.0
"""How long a failed call waits to learn that the exporter died: its end is noticed a moment after its connections."""

_USER_GRACE_SECONDS = 1.0
_RESOURCE_GRACE_SECONDS = 1.0

State = Literal["free", "acquiring", "held", "releasing", "lost", "ended"]


class LeaseUser(Protocol):
    """A running operation that needs the lease."""

    def abort(self, error: AgentError) -> None:
        """End with this error: the lease is gone."""

    @property
    def finished(self) -> asyncio.Future[None]:
        """Done when the operation has unwound."""


@dataclass(frozen=True)
class LeaseOptions:
    """What the user asked for. Durations in seconds; None means no limit of its own (the run is the limit).

    wish: what only controllers know; without effect elsewhere.
    """

    name: str | None = None
    lifetime: str = "run"
    duration: float | None = None
    hold_on_failure: float | None = None
    play: str | None = None
    wish: Wish = field(default_factory=Wish)


@dataclass(frozen=True)
class Place:
    """Where and as whom the agent works: `base` all agents of the user, `directory` this agent's own."""

    base: Path
    directory: Path
    holder: str
    controllers: Controllers = field(default_factory=Controllers)


@dataclass(eq=False)
class HostLease:
    """The lease of one host. Made by the lease table, used once: after its end a new object takes its place.

    asked: the reach as the host's variables say it; `reach` may be another one that a task asked for instead.
    """

    host: str
    reach: Reach
    asked: Reach
    options: LeaseOptions
    place: Place
    recording_dir: Path
    on_end: Callable[[HostLease], None]
    on_note: Callable[[str, dict[str, Any]], object] | None = None
    on_event: Callable[[str, dict[str, Any]], object] | None = None
    on_session: Callable[[HostLease], object] | None = None
    id: str = field(default_factory=lambda: secrets.token_hex(4))
    state: State = "free"
    budget: StopBudget = field(default_factory=StopBudget)
    acquired_at: float = 0.0
    expires_at: float | None = None
    loss: AgentError | None = None
    users: set[LeaseUser] = field(default_factory=set)
    resources: dict[tuple[str, ...], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.options.lifetime == "detached" and self.options.duration is None:
            self.options = replace(self.options, duration=DETACHED_SECONDS)
        self._deadline: float | None = None
        self._end_wanted = asyncio.Event()
        self._changed = asyncio.Event()
        self.lost_event = asyncio.Event()
        self._ready: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._connection: Connection | None = None
        self._closers: dict[tuple[str, ...], Callable[[], Awaitable[object]]] = {}
        self._locks: dict[tuple[str, ...], asyncio.Lock] = {}

    # -- what operations use

    @property
    def connection(self) -> Connection:
        """The open connection; `AgentError` when the lease is not held any more."""
        if self._connection is None or self.state != "held":
            raise self.loss or AgentError("lease_lost", f"the lease of {self.host} has ended")
        return self._connection

    @property
    def known_hosts(self) -> Path:
        """ssh host keys seen during this lease: they change with each image."""
        return self.place.directory / f"known_hosts-{self.id}"

    @property
    def name(self) -> str:
        """The user's name for the lease, or one made from the host's."""
        granted = self._connection.name if self._connection is not None else None
        return granted or self.options.name or self.label

    @property
    def ends_at(self) -> float | None:
        """When it ends by itself (seconds since 1970), None when it lasts as long as the run."""
        granted = self._connection.expires_at if self._connection is not None else None
        return min((end for end in (granted, self.expires_at) if end is not None), default=None)

    @property
    def label(self) -> str:
        """The name made from the host's, for files: the user's own may come from a task with no_log."""
        return f"{self.host}-{self.id}"

    async def reason_of_loss(self, seen: AgentError) -> AgentError:
        """Why an operation really failed that `seen` failed: the end of an exporter is noticed a moment after."""
        connection = self._connection
        if "lease" in seen.data:
            return seen  # it comes from the lease itself
        events = [self.lost_event, *([connection.broken] if connection is not None else [])]
        watches = [asyncio.create_task(event.wait()) for event in events]
        try:
            await asyncio.wait(watches, timeout=_LOSS_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for watch in watches:
                watch.cancel()
        if self.loss is not None:
            return self.loss
        if connection is None or not connection.broken.is_set() or connection.name is None:
            return seen
        text = f"{seen.message}; lease {connection.name} is still held, the next task waits for {connection.exporter}"
        return AgentError(seen.code, text, {**seen.data, "lease": connection.name})

    # -- what its connection tells

    def note(self, text: str, **data: Any) -> None:
        """Show a line to the task that waits for the lease."""
        self.record("note", text=text, **data)
        if self.on_note is not None:
            self.on_note(text, data)

    def record(self, kind: str, **data: Any) -> None:
        """Add an event to the host's recording."""
        if self.on_event is not None:
            self.on_event(kind, data)

    def session_changed(self) -> None:
        """The exporter was started anew: what was opened in it is opened again."""
        if self.on_session is not None:
            self.on_session(self)

    async def resource(
        self,
        key: tuple[str, ...],
        make: Callable[[], Awaitable[Any]],
        close: Callable[[Any], Awaitable[object]],
    ) -> Any:
        """The object kept under `key` for the time of the lease, made by the first caller, closed at the end."""
        async with self._locks.setdefault(key, asyncio.Lock()):
            if key not in self.resources:
                made = await make()
                if self.state != "held":
                    await close(made)
                    raise self.loss or AgentError("lease_lost", f"the lease of {self.host} has ended")
                self.resources[key] = made
                self._closers[key] = lambda: close(made)
            return self.resources[key]

    def lock(self, *key: str) -> asyncio.Lock:
        """The lock of this name: for what two tasks of one lease (``delegate_to``) must not do at once."""
        return self._locks.setdefault(("lock", *key), asyncio.Lock())

    async def drop_resource(self, key: tuple[str, ...]) -> bool:
        """Close and forget the object under `key`; False when there is none."""
        async with self._locks.setdefault(key, asyncio.Lock()):
            closer = self._closers.pop(key, None)
            self.resources.pop(key, None)
            if closer is None:
                return False
            await closer()
            return True

    # -- life

    async def acquire(self) -> None:
        """Open everything and hold the device, or raise why not with nothing left behind."""
        self.state = "acquiring"
        self._ready = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(), name=f"lease {self.host}")
        try:
            await asyncio.shield(self._ready)
        except asyncio.CancelledError:
            self._task.cancel()
            await asyncio.wait([self._task])
            if self._ready.done() and not self._ready.cancelled():
                self._ready.exception()
            raise

    async def extend(self, duration: float | None) -> bool:
        """Let the lease end `duration` seconds from now, if that is later than now planned. Tells whether it moved."""
        if duration is None:
            return False
        if await self.connection.extend(duration):
            return True
        if self._deadline is None or time.monotonic() + duration <= self._deadline:
            return False
        self.limit(duration)
        return True

    def update(self, options: LeaseOptions) -> None:
        """Take over what a later `lease` task asks for: name, lifetime, what happens on failure."""
        lifetime = options.lifetime if self.options.lifetime != "detached" else "detached"
        self.options = replace(
            self.options,
            name=options.name or self.options.name,
            lifetime=lifetime,
            hold_on_failure=options.hold_on_failure or self.options.hold_on_failure,
            play=options.play or self.options.play,
        )

    def limit(self, duration: float) -> None:
        """Let the lease end `duration` seconds from now, whatever was planned."""
        self._end_in(duration)
        self.options = replace(self.options, duration=duration)
        self._changed.set()

    async def become_detached(self, seconds: float) -> None:
        """Outlive the run by `seconds`, under the lease's name; by less when a controller does not grant more."""
        connection = self.connection
        self.options = replace(self.options, lifetime="detached", name=self.name)
        self.limit(seconds)
        try:
            await connection.extend(seconds)
        except AgentError as error:
            log.warning("%s: %s", self.host, error.message)

    async def release(self) -> None:
        """Give the device back; returns when it is."""
        self._end_wanted.set()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        ready = self._ready
        assert ready is not None
        try:
            async with open_connection(
                self.reach, self.place, self.id, self.host, self.budget, self.options, self
            ) as connection:
                self._connection = connection
                self.acquired_at = time.time()
                # A controller ends its leases itself: it may have granted another time than was asked for.
                if self.options.duration is not None and not isinstance(self.reach, ControllerReach):
                    self._end_in(self.options.duration)
                self.state = "held"
                if not ready.done():
                    ready.set_result(None)
                try:
                    await self._until_end(connection)
                finally:
                    await self._close_inside()
        except asyncio.CancelledError:
            if not ready.done():
                ready.set_exception(AgentError("canceled", f"acquiring {self.reach.target} was canceled"))
            raise
        except Exception as error:  # noqa: BLE001 - whoever waits for the lease gets it
            if not ready.done():
                ready.set_exception(as_agent_error(error))
            elif self.loss is None:
                log.warning("%s: closing the lease: %s", self.host, as_agent_error(error).message)
        finally:
            self._connection = None
            if self.state != "lost":
                self.state = "ended"
            with contextlib.suppress(OSError):
                self.known_hosts.unlink(missing_ok=True)
            self.on_end(self)

    async def _until_end(self, connection: Connection) -> None:
        wanted = asyncio.create_task(self._end_wanted.wait())
        try:
            while True:
                self._changed.clear()
                changed = asyncio.create_task(self._changed.wait())
                left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
                watched: list[asyncio.Future[Any]] = [wanted, changed, connection.lost]
                try:
                    done, _ = await asyncio.wait(watched, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
                if connection.lost in done:
                    error = connection.lost.result()
                    self._lose(AgentError(error.code, error.message, {"exporter": self.reach.target, **error.data}))
                elif wanted in done:
                    self._abort_users(AgentError("lease_lost", f"the lease of {self.host} was given back"))
                elif changed in done:
                    continue
                else:
                    self._expire()
                return
        finally:
            wanted.cancel()

    def _end_in(self, duration: float) -> None:
        # What people see is wall clock; what counts is a clock that nobody sets.
        self.expires_at = time.time() + duration
        self._deadline = time.monotonic() + duration

    def _expire(self) -> None:
        after = format_duration(self.options.duration or 0)
        self._lose(
            AgentError(
                "lease_lost",
                f"the lease of {self.host} ended after {after}; take it again with a longer duration",
                {"lease": self.name},
            )
        )

    def _lose(self, error: AgentError) -> None:
        log.warning("%s: %s", self.host, error.message)
        self.loss = error
        self.state = "lost"
        self.lost_event.set()
        self._abort_users(error)

    def _abort_users(self, error: AgentError) -> None:
        if self.state == "held":
            self.state = "releasing"
        for user in self.users:
            user.abort(error)

    async def _close_inside(self) -> None:
        if self.state == "held":
            self.state = "releasing"
        waiting = [user.finished for user in self.users]
        if waiting:
            await asyncio.wait(waiting, timeout=self.budget.left(_USER_GRACE_SECONDS))
        closers: list[asyncio.Future[object]] = [asyncio.ensure_future(closer()) for closer in self._closers.values()]
        self._closers.clear()
        if closers:
            done, stuck = await asyncio.wait(closers, timeout=self.budget.left(_RESOURCE_GRACE_SECONDS))
            for task in stuck:
                task.cancel()
            for task in done:
                if not task.cancelled() and (error := task.exception()) is not None:
                    log.info("%s: closing: %s", self.host, as_agent_error(error).message)
