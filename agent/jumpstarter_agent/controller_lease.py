# SPDX-License-Identifier: Apache-2.0
"""An exporter leased from a controller, as a connection: asked for, waited for, kept through outages, given back.

The lease and the session are two things here. The lease lasts until it is given back or the controller ends it; the
session inside it may break (a router that restarts, a network that is cut, an exporter that is started anew) and is
opened again by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .connection import Connection, Observer, Tell, follow_logs, stop_task
from .durations import format_duration
from .errors import AgentError, as_agent_error, as_controller_error, one_line
from .lease_wish import find_by_name, make_wish
from .reach import ControllerReach
from .waiting import Waiting

if TYPE_CHECKING:
    from .lease import LeaseOptions, Place

__all__ = ["controller_connection"]

log = logging.getLogger(__name__)

FIRST_ANSWER_SECONDS = 60.0
"""A leased exporter whose session has not answered by then is reported as unreachable."""

AWAY_SECONDS = 60.0
"""How long a task waits for an exporter that is away from its lease."""

CONTROLLER_SECONDS = 15.0
"""How long a controller that cannot be reached is tried: long enough for one that is being restarted."""

_RETRY_SECONDS = 0.5
_GIVE_BACK_SECONDS = 5.0
_SOON_SECONDS = 5.0
# Our end of the tunnel is a socket that always answers, and closes what leads nowhere: gRPC must not take that for a
# reason to wait for minutes.
_GRPC_OPTIONS: dict[str, str | int] = {
    "grpc.initial_reconnect_backoff_ms": 200,
    "grpc.max_reconnect_backoff_ms": 2000,
    # Time for one attempt, which includes the dial, and that waits for an exporter that gets ready.
    "grpc.min_reconnect_backoff_ms": 65_000,
}


class ControllerConnection(Connection):
    """A session with a leased exporter. held: `jumpstarter.client.lease.HeldLease`."""

    def __init__(
        self, session: Any, exporter: str, host_socket: Path, held: Any, reach: ControllerReach, ending: _Ending
    ) -> None:
        super().__init__(session, exporter, host_socket)
        self.held = held
        self.reach = reach
        self.labels: dict[str, str] = {}
        self.waited = 0.0
        self.renewed = False
        self._ending = ending
        self._online = asyncio.Event()
        self._online.set()
        self._away_since = 0.0
        self._away_reason = ""
        self._news: list[str] = []
        self._taken_at: object = None

    @property
    def name(self) -> str | None:
        """The name of the lease at the controller."""
        return str(self.held.info.name)

    @property
    def expires_at(self) -> float | None:
        """When the lease ends by itself, as the controller says; None when it is renewed as long as we live."""
        left = None if self.renewed else self.held.info.remaining
        return None if left is None else time.time() + float(left)

    def shell_command(self) -> str | None:
        """The `jmp shell` that uses this lease."""
        client = self.reach.client
        words = ["jmp", "shell"]
        if client.config is not None:
            words += ["--client-config", client.config]
        elif client.alias is not None:
            words += ["--client", client.alias]
        return shlex.join([*words, "--lease", str(self.name)])

    def facts(self) -> dict[str, Any]:
        """What the controller knows about the lease and its exporter."""
        info = self.held.info
        return {
            "exporter": info.exporter,
            "controller": self.held.controller.config.endpoint,
            "namespace": info.namespace,
            "client": info.client,
            "selector": info.selector,
            "labels": self.labels,
            "tags": dict(info.tags),
            "context": dict(info.context),
            "waited": round(self.waited, 3),
            "spot": self.held.state.spot,
        }

    async def ready(self, tell: Tell) -> None:
        """Wait for an exporter that is away; tells once what has happened since the last task."""
        if not self._online.is_set():
            tell(f"waiting for {self.exporter}, which is away: {self._away_reason}")
            await self._until_online(AWAY_SECONDS)
        news, self._news = self._news, []
        for text in news:
            tell(text)

    async def extend(self, seconds: float) -> bool:
        """Ask the controller to let the lease end `seconds` from now, if that is later than planned."""
        end = self.expires_at
        if end is None or time.time() + seconds <= end:
            return False
        try:
            await self.held.extend(seconds)
        except Exception as error:
            raise as_controller_error(error) from error
        return True

    async def again(self, session: Any) -> None:
        """Wait until the exporter is back with the same session."""
        # A stream notices a break before we do: then it is not known yet that the exporter is away.
        if self._online.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SOON_SECONDS):
                    await self.broken.wait()
        await self._until_online(None)
        if self.session is not session:
            raise AgentError("exporter_lost", f"{self.exporter} came back with a new session")

    async def give_back(self) -> None:
        """Let the lease end with the connection, also one that was to outlive the run."""
        self._ending.wanted = True

    async def keep(self, observer: Observer) -> None:
        """Watch the session and open it again whenever it breaks, until cancelled."""
        pause = _RETRY_SECONDS
        while True:
            began = time.monotonic()
            reason = await follow_logs(self)
            if self.lost.done():
                return
            self._went_away(reason)
            observer.record("exporter_away", exporter=self.exporter, reason=reason)
            # A peer without log stream ends it at once, again and again.
            pause = _RETRY_SECONDS if time.monotonic() - began > _SOON_SECONDS else min(pause * 2, _SOON_SECONDS)
            is_new = await self._reopen(pause)
            observer.record("exporter_back", exporter=self.exporter, new_session=is_new)
            log.info("%s (lease %s) is back", self.exporter, self.name)
            self.broken.clear()
            self._online.set()
            if is_new:
                observer.session_changed()

    async def _reopen(self, pause: float) -> bool:
        """Try until the exporter answers; tells whether its session is a new one."""
        from jumpstarter.client.aio import RemoteSession, fetch_report

        while True:
            before = self._away_reason
            try:
                await self.held.socket.ready()
                report = await fetch_report(self.session.connection, timeout=AWAY_SECONDS)
                if report.uuid == self.session.report.uuid:
                    return False
                fresh = RemoteSession(self.session.connection, report)
                await fresh.describe()
                self._take_new(fresh)
                return True
            except Exception as error:  # noqa: BLE001 - whatever it is, the lease is ours and the next try may work
                self._away_reason = one_line(error)
                if self._away_reason != before:
                    log.info("%s: %s", self.exporter, self._away_reason)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _SOON_SECONDS)

    def _went_away(self, reason: str) -> None:
        log.warning("%s (lease %s) %s", self.exporter, self.name, reason)
        self._away_since = time.monotonic()
        self._away_reason = reason
        self._online.clear()
        self.broken.set()

    def _take_new(self, session: Any) -> None:
        seconds = time.monotonic() - self._away_since
        self.session = session
        self._tell_next_task(
            f"{self.exporter} is back with a new session after {format_duration(round(seconds))}: what ran on it was "
            "lost, and its device was switched off"
        )

    def noticed(self, state: Any) -> None:
        """Take a `LeaseState` of the lease while it is held."""
        if state.preempted_at is None or state.preempted_at == self._taken_at:
            return
        self._taken_at = state.preempted_at
        when = state.preempted_at.isoformat(timespec="seconds")
        self._tell_next_task(f"lease {self.name} of {self.exporter} is taken away at {when}: {state.message}")

    def _tell_next_task(self, text: str) -> None:
        log.warning("%s", text)
        self._news.append(text)

    async def _until_online(self, seconds: float | None) -> None:
        online = asyncio.create_task(self._online.wait())
        try:
            watched: list[asyncio.Future[Any]] = [online, self.lost]
            await asyncio.wait(watched, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            online.cancel()
        if self.lost.done():
            raise self.lost.result()
        if not self._online.is_set():
            away = format_duration(round(time.monotonic() - self._away_since))
            raise AgentError(
                "exporter_lost",
                f"{self.exporter} has been away for {away}: {self._away_reason}; lease {self.name} is still held, the "
                "next task tries again",
                {"lease": self.name},
            )


@contextlib.asynccontextmanager
async def controller_connection(
    reach: ControllerReach, place: Place, host: str, socket: Path, options: LeaseOptions, observer: Observer
) -> AsyncIterator[ControllerConnection]:
    """Lease an exporter for the block. Every failure is an `AgentError` that says what was asked for."""
    from jumpstarter.client.aio import connect

    waiting = Waiting(reach.target, observer)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(waiting.over)
        controller = await _controller(reach, place, observer)
        held, found = await _take(stack, controller, reach, {"holder": place.holder, "host": host}, options, waiting)
        ending = _Ending(controller, held.name)
        stack.push_async_callback(ending.run)
        exporter = f"exporter {held.info.exporter}"
        try:
            path = await stack.enter_async_context(held.serve_unix(socket, on_log=lambda entry: _hook(entry, observer)))
            async with asyncio.timeout(FIRST_ANSWER_SECONDS):
                session = await stack.enter_async_context(
                    connect(str(path), timeout=FIRST_ANSWER_SECONDS, grpc_options=_GRPC_OPTIONS)
                )
        except TimeoutError:
            raise AgentError("exporter_lost", f"{exporter} did not answer within {FIRST_ANSWER_SECONDS:g} s") from None
        except Exception as error:
            known = as_agent_error(error)
            raise (known if exporter in known.message else known.prefixed(exporter)) from error
        if held.socket.warning:
            observer.note(f"{exporter} warns: {held.socket.warning}")
        # Messages of the client library name the exporter as the user knows it, not by its socket.
        session.connection.where = exporter
        connection = ControllerConnection(session, exporter, Path(path), held, reach, ending)
        connection.reattached = found
        connection.renewed = options.duration is None and not found
        connection.waited = waiting.seconds
        waiting.then = connection.noticed
        connection.labels = await _labels(controller, held.info.exporter)
        for work in (connection.keep(observer), _watch_lease(connection)):
            stack.push_async_callback(stop_task, asyncio.create_task(work, name=f"lease {held.info.name}"))
        yield connection


@dataclass
class _Ending:
    """The end of a lease that is not given back by itself: one that was to outlive the run, and was asked to end."""

    controller: Any
    name: str
    wanted: bool = False

    async def run(self) -> None:
        from jumpstarter.common.exceptions import LeaseError

        if not self.wanted:
            return
        try:
            async with asyncio.timeout(_GIVE_BACK_SECONDS):
                await self.controller.delete_lease(self.name)
        except LeaseError as error:
            log.info("%s", one_line(error))  # it has ended already
        except Exception as error:  # noqa: BLE001 - it ends by its duration
            log.warning("lease %s could not be given back: %s", self.name, one_line(error))


def _hook(entry: Any, observer: Observer) -> None:
    """Show what the exporter's hook says before the device is ours."""
    from jumpstarter.common.enums import LogSource

    if LogSource.from_proto(entry.source) is LogSource.BEFORE_LEASE_HOOK:
        observer.note(f"beforeLease hook: {entry.message}")


async def _controller(reach: ControllerReach, place: Place, observer: Observer) -> Any:
    """The open connection; a controller that is away for a moment is waited for."""
    deadline = time.monotonic() + CONTROLLER_SECONDS
    told = False
    while True:
        try:
            return await place.controllers.get(reach.client)
        except AgentError as error:
            if error.code != "controller_lost" or time.monotonic() > deadline:
                raise
            if not told:
                told = True
                observer.note(f"{error.message}; trying again for {CONTROLLER_SECONDS:g} s")
            await asyncio.sleep(_RETRY_SECONDS)


async def _take(
    stack: contextlib.AsyncExitStack,
    controller: Any,
    reach: ControllerReach,
    context: dict[str, str],
    options: LeaseOptions,
    waiting: Waiting,
) -> tuple[Any, bool]:
    """The held lease, and whether it was there before."""
    from jumpstarter.client.lease import hold_lease

    limit = options.wish.timeout
    if limit is None:
        limit = float(controller.config.leases.acquisition_timeout)
    if options.wish.begin_time is not None:
        limit += max(0.0, options.wish.begin_time.timestamp() - time.time())
    try:
        found = await find_by_name(controller, options.name) if options.name else None
        # A lease that was there before is not ours to give back, nor is one that is to stay.
        release = found is None and options.lifetime != "detached"
        wanted: Any = found or await make_wish(controller, reach, context, options)
        lasting, made = found is None and not release, None
        try:
            if lasting:
                made = await controller.create_lease(wanted)
            async with asyncio.timeout(limit):
                held = await stack.enter_async_context(
                    hold_lease(controller, made.name if made else wanted, release=release, on_state=waiting.state)
                )
                return held, found is not None
        except BaseException as error:
            # Nobody waits for it any more, and it would be granted to nobody. Cancelled while it was asked for, it may
            # be there all the same.
            if lasting and (made is not None or isinstance(error, asyncio.CancelledError)):
                await asyncio.shield(_Ending(controller, made.name if made else wanted.name, wanted=True).run())
            raise
    except TimeoutError:
        raise waiting.timed_out(limit) from None
    except Exception as error:
        raise waiting.refused(as_controller_error(error)) from error


async def _watch_lease(connection: ControllerConnection) -> None:
    """Tell the connection when the lease ends without our doing."""
    reason = await asyncio.shield(connection.held.lost)
    info = connection.held.info
    connection.lose(
        AgentError(
            "lease_lost",
            f"{connection.exporter} was lost: {reason}; take it again with jumpstarter.lab.lease",
            {"lease": info.name, "exporter": info.exporter, "reason": reason},
        )
    )


async def _labels(controller: Any, exporter: str) -> dict[str, str]:
    # Best effort: a client may be allowed to lease an exporter that it may not look at.
    try:
        return dict((await controller.get_exporter(exporter)).labels)
    except Exception as error:  # noqa: BLE001 - a lease is worth having without knowing its labels
        log.info("labels of exporter %s: %s", exporter, one_line(error))
        return {}
