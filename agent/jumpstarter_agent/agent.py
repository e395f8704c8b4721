# SPDX-License-Identifier: Apache-2.0
"""The agent process: serves requests, watches the playbook, ends everything when it has to."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import logging
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import detached
from .consoles import restart_log, start_log
from .context import Context
from .controllers import Controllers
from .durations import format_duration
from .errors import AgentError
from .lease import HostLease, Place
from .lease_table import LeaseTable
from .operations import OperationTable
from .paths import SOCKET_NAME, detached_dir, make_private
from .presence import Presence
from .procwatch import wait_gone
from .recording import Recording
from .request import Request
from .server import Peer, Server
from .start_lock import remove_start_lock
from .sweep import sweep

__all__ = ["Agent", "Watched"]

log = logging.getLogger(__name__)

RECORDING_VARIABLE = "JUMPSTARTER_RECORDING_DIR"
"""Set by the recording callback: its report directory."""

SHUTDOWN_SECONDS = 2.9
"""The end of the agent takes at most this long, by force if it has to. Exporters that are slower finish alone."""

_UNUSED_SECONDS = 60.0
"""A detached agent to which nobody gave a lease by then ends."""

_CANCEL_SECONDS = 0.5
_RELEASE_SECONDS = 2.0


@dataclass(frozen=True)
class Watched:
    """The playbook process. started: start time as /proc gives it, so that a reused pid is not taken for it."""

    pid: int
    started: str


class Agent:
    """One agent. With `watched` it belongs to a playbook run, with `name` it holds one detached lease."""

    def __init__(self, directory: Path, watched: Watched | None, name: str | None) -> None:
        self.watched = watched
        self.is_detached = watched is None
        self.controllers = Controllers()
        self.place = Place(directory.parent, directory, _holder(watched, name), self.controllers)
        self.recording = Recording(directory / "rec")
        if report := os.environ.get(RECORDING_VARIABLE):
            # Set before the agent is started: no first lease can come before it.
            self.recording.set_root(Path(report))
            self.recording.has_callback = True
        self.leases = LeaseTable(self.place, self.recording)
        self.leases.on_empty = self._stop_when_unused
        self.leases.on_held = lambda lease: self.background(start_log(self.recording, lease))
        self.leases.on_session = lambda lease: self.background(restart_log(self.recording, lease))
        self.operations = OperationTable()
        self.links = detached.Links(self.place)
        self.started_at = time.time()
        self._name = name
        self._homes: list[Path] = []
        self._server = Server(self.handle)
        self._stop = asyncio.Event()
        self._stop_reason = ""
        self._background: set[asyncio.Future[Any]] = set()
        self._requests = 0
        self._kept: dict[str, float] = {}
        self._limit: threading.Timer | None = None

    # -- life

    async def serve(self, ready_fd: int | None) -> None:
        """Serve until told to stop, then end everything within `SHUTDOWN_SECONDS`."""
        directory = make_private(self.place.directory)
        with Presence(directory, self.watched):
            try:
                await self._server.listen(directory / SOCKET_NAME)
                self._install_signals()
                if self.watched is not None:
                    self.background(self._watch(self.watched))
                log.info("serving %s for %s", directory / SOCKET_NAME, self.place.holder)
                _signal_ready(ready_fd)
                self.background(asyncio.to_thread(sweep, self.place.base, directory))
                self.background(asyncio.to_thread(_import_runtime))
                asyncio.get_running_loop().call_later(_UNUSED_SECONDS, self._stop_when_unused)
                await self._stop.wait()
                log.info("ending: %s", self._stop_reason)
                await self._shut_down()
                await self._serve_kept()
            finally:
                await self._remove_traces()

    def has_ended(self) -> None:
        """To be called when the event loop is closed: nothing is left that could hang."""
        if self._limit is not None:
            self._limit.cancel()

    def stop(self, reason: str) -> None:
        """End the agent. The first reason counts."""
        if not self._stop.is_set():
            self._stop_reason = reason
            self._stop.set()

    def background(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run `work` beside everything else; an exception is logged."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background_done)

    # -- requests

    async def handle(self, request: Request, peer: Peer) -> dict[str, Any] | None:
        """Run one request; the server's handler."""
        self._requests += 1
        try:
            return await self._dispatch(request, peer)
        finally:
            self._requests -= 1
            self._stop_when_unused()

    def _stop_when_unused(self) -> None:
        """A detached agent is there for its leases only. Requests in progress are let finish (each ends up here)."""
        if self.is_detached and not self._requests and self.leases.is_empty and not self.operations.running:
            self.stop("no lease is left")

    async def _dispatch(self, request: Request, peer: Peer) -> dict[str, Any] | None:
        from .ops import BACKGROUND, OPERATIONS

        function = OPERATIONS.get(request.op)
        if function is None:
            known = ", ".join(sorted(OPERATIONS))
            raise AgentError("invalid", f"unknown operation {request.op!r}; known: {known}")
        if not self.is_detached and await self.links.route(request, peer):
            return None
        if request.op in BACKGROUND and "wait" in request.args:
            wait = request.args["wait"]
            if not isinstance(wait, bool):
                raise AgentError("invalid", f"argument 'wait' is {wait!r}, not true or false")
            request = replace(request, args={key: value for key, value in request.args.items() if key != "wait"})
            if not wait:
                operation = self.operations.new(request.op, request.host.name if request.host else "")
                operation.start(Context(self, request, operation).run(function))
                return {"changed": False, "operation": operation.describe()}
        return await Context(self, request, peer, peer).run(function)

    # -- hold on failure

    def announce_held(self, failed: bool) -> list[dict[str, Any]]:
        """Which leases will be kept when this run ends now, and how to get them back."""
        kept = [
            (lease, seconds) for lease in self.leases.held.values() if (seconds := self._keep_seconds(lease, failed))
        ]
        self._kept = {lease.host: seconds for lease, seconds in kept}
        return [
            {
                "host": lease.host,
                "name": lease.name,
                "seconds": seconds,
                "until": _when(time.time() + seconds),
                "reattach": detached.how_to_reattach(lease.name),
                "shell": lease.connection.shell_command(),
            }
            for lease, seconds in kept
        ]

    def _keep_seconds(self, lease: HostLease, failed: bool) -> float:
        wanted = lease.options.hold_on_failure
        if not wanted or not (failed and not self.recording.failed_hosts or lease.host in self.recording.failed_hosts):
            return 0.0
        return wanted

    async def _serve_kept(self) -> None:
        """Go on as a detached agent for the leases that a failed run leaves for inspection."""
        held = self.leases.held
        if not held:
            return
        self._stop.clear()
        self.is_detached = True
        self._server = Server(self.handle)
        for lease in held.values():
            home = make_private(detached_dir(self.place.base, lease.name))
            self._homes.append(home)
            await self._server.listen(home / SOCKET_NAME)
            log.info("%s stays held as %r for %s", lease.host, lease.name, format_duration(self._kept[lease.host]))
        with contextlib.ExitStack() as presences:
            for home in self._homes:
                presences.enter_context(Presence(home, None))
            await self._stop.wait()
            log.info("ending: %s", self._stop_reason)
            self._kept = {}
            await self._shut_down()

    # -- the end

    async def _watch(self, watched: Watched) -> None:
        self.stop(await wait_gone(watched.pid, watched.started))

    def _force_end(self) -> None:
        """Run by a timer thread when the event loop, or a thread it waits for, does not come to an end."""
        log.error("the end took more than %g s: forced", SHUTDOWN_SECONDS)
        for directory in (self.place.directory, *self._homes):
            shutil.rmtree(directory, ignore_errors=True)
        os._exit(1)

    async def _shut_down(self) -> None:
        self._limit = threading.Timer(SHUTDOWN_SECONDS, self._force_end)
        self._limit.daemon = True
        self._limit.start()
        if not self._kept:
            self.announce_held(failed=bool(self.recording.failed_hosts))
        if self._stop_reason.startswith("signal"):
            self._kept = {}
        for host, seconds in self._kept.items():
            lease = self.leases.get(host)
            if lease is not None:
                self.background(lease.become_detached(seconds))
        with contextlib.suppress(FileNotFoundError):
            (self.place.directory / SOCKET_NAME).unlink()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._server.close(_CANCEL_SECONDS))
            group.create_task(self._cancel_operations())
        await self.leases.release_all(_RELEASE_SECONDS, keep=frozenset(self._kept))
        if self._kept:
            # The process goes on, for the leases it keeps.
            self._limit.cancel()
        else:
            await self.controllers.aclose()

    async def _cancel_operations(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CANCEL_SECONDS):
                await self.operations.cancel_all()

    async def _remove_traces(self) -> None:
        for task in self._background:
            task.cancel()
        for directory in (self.place.directory, *self._homes):
            shutil.rmtree(directory, ignore_errors=True)
        for directory in (*((self.place.directory,) if self.is_detached else ()), *self._homes):
            remove_start_lock(directory)
        if self.watched is not None:
            # Nobody starts another agent for a process that has ended, so its lock file is of no use any more.
            from .procwatch import is_alive

            if not is_alive(self.watched.pid, self.watched.started):
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{self.place.directory}.lock").unlink()

    def _install_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self.stop, f"signal {signal.Signals(number).name}")

    def _background_done(self, task: asyncio.Future[Any]) -> None:
        self._background.discard(task)
        error = None if task.cancelled() else task.exception()
        # A connection error is a caller that went away while an event was on its way to it.
        if error is not None and not isinstance(error, ConnectionError):
            log.error("background work failed: %r", error, exc_info=error)


def _holder(watched: Watched | None, name: str | None) -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    what = f"ansible-playbook pid {watched.pid}" if watched is not None else f"detached lease {name!r}"
    return f"{user}@{socket.gethostname()}, {what}, agent pid {os.getpid()}"


def _signal_ready(ready_fd: int | None) -> None:
    if ready_fd is None:
        return
    # The starter may have given up meanwhile; then it does not read.
    with contextlib.suppress(BrokenPipeError):
        os.write(ready_fd, b"R")
    os.close(ready_fd)


def _import_runtime() -> None:
    """Import gRPC while the first task is still on its way; the first lease does not wait for it."""
    import jumpstarter.client.aio  # noqa: F401


def _when(seconds: float) -> str:
    import datetime

    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
