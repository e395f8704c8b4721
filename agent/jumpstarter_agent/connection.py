# SPDX-License-Identifier: Apache-2.0
"""From a reach to an open, exclusively held exporter session."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .config_lock import ConfigLock
from .direct_errors import explain_refusal
from .errors import AgentError, as_agent_error
from .exporter_child import StopBudget, exporter_child
from .reach import ControllerReach, DirectReach, LocalReach, Reach

if TYPE_CHECKING:
    from .lease import LeaseOptions, Place

__all__ = ["Connection", "Observer", "Tell", "follow_logs", "open_connection", "stop_task"]

Tell = Callable[[str], None]
"""Shows one line to whoever waits."""


class Observer(Protocol):
    """Is told what happens to a connection."""

    def note(self, text: str, **data: Any) -> None:
        """One line for whoever waits for the lease."""

    def record(self, kind: str, **data: Any) -> None:
        """An event of the host's recording."""

    def session_changed(self) -> None:
        """The exporter has a new session: whatever was opened in the old one has to be opened again."""


driver_log = logging.getLogger("jumpstarter_agent.exporter_log")

_REAP_SECONDS = 2.0

CONNECT_SECONDS = 20.0
"""An endpoint that has not answered by then is reported as unreachable."""


class Connection:
    """An exporter session that is ours alone.

    session: `jumpstarter.client.aio.Session`. exporter: how messages call it. host_socket: unix socket that speaks
    ExporterService (jumpstarter_host). lost: gets the reason when the lease is over without our doing.
    """

    def __init__(self, session: Any, exporter: str, host_socket: Path) -> None:
        self.session = session
        self.exporter = exporter
        self.host_socket = host_socket
        self.lost: asyncio.Future[AgentError] = asyncio.get_running_loop().create_future()
        self.broken = asyncio.Event()
        """Set while the exporter is away from a lease that goes on without it."""
        self.reattached = False
        """The lease was there before."""

    @property
    def name(self) -> str | None:
        """The name of the lease at the controller that granted it."""
        return None

    @property
    def expires_at(self) -> float | None:
        """When the lease ends by itself (seconds since 1970), as whoever granted it says."""
        return None

    def shell_command(self) -> str | None:
        """What a person types to get at the device while the lease is held."""
        return None

    def facts(self) -> dict[str, Any]:
        """What a lease reports beyond what all of them have."""
        return {}

    async def ready(self, tell: Tell) -> None:
        """Wait until the exporter can be used. `AgentError` "exporter_lost" when it stays away."""

    async def extend(self, seconds: float) -> bool:
        """Let whoever granted the lease move its end to `seconds` from now; False when it has no say in it."""
        return False

    async def give_back(self) -> None:
        """Let the lease end with the connection, also one that was to outlive the run."""

    async def again(self, session: Any) -> None:
        """Wait until `session`, whose connection broke, can be used again; `AgentError` when it never can."""
        raise AgentError("exporter_lost", f"{self.exporter} went away")

    def lose(self, error: AgentError) -> None:
        """Tell that the lease is over; the first reason counts."""
        if not self.lost.done():
            self.lost.set_result(error)


@contextlib.asynccontextmanager
async def open_connection(
    reach: Reach, place: Place, lease_id: str, host: str, budget: StopBudget, options: LeaseOptions, observer: Observer
) -> AsyncIterator[Connection]:
    """Reach the exporter and hold it for the block. Every failure is an `AgentError` that names the exporter."""
    socket = place.directory / f"x-{lease_id}.sock"
    holder = f"{place.holder}, host {host}"
    if isinstance(reach, ControllerReach):
        from .controller_lease import controller_connection

        async with controller_connection(reach, place, host, socket, options, observer) as leased:
            yield leased
    elif isinstance(reach, LocalReach):
        log_path = place.directory / f"exporter-{lease_id}.log"
        async with (
            ConfigLock(place.base, reach.config, holder) as lock,
            exporter_child(reach.config, socket, log_path, keep_fds=(lock.fd,), budget=budget) as child,
        ):
            exporter = f"exporter {reach.config} (pid {child.pid})"
            async with _hold(str(socket), exporter, holder, socket, child.ended) as connection:
                yield connection
    else:
        from .host_socket import serve_host_socket

        exporter = f"exporter {reach.endpoint}"
        async with (
            _hold(reach.endpoint, exporter, holder, socket, reach, **_credentials(reach)) as connection,
            serve_host_socket(connection.session.connection, socket),
        ):
            yield connection


@contextlib.asynccontextmanager
async def _hold(
    target: str, exporter: str, holder: str, socket: Path, origin: asyncio.Future[str] | DirectReach, **options: Any
) -> AsyncIterator[Connection]:
    """origin: the end of the exporter's process when it is ours, else where somebody else's is."""
    from jumpstarter.client.aio import connect

    ended = None if isinstance(origin, DirectReach) else origin
    async with contextlib.AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                session = await stack.enter_async_context(connect(target, timeout=CONNECT_SECONDS, **options))
                # Messages of the client library name the exporter as the user knows it, not by its socket.
                session.connection.where = exporter
                await stack.enter_async_context(session.hold(holder=holder))
        except TimeoutError:
            raise AgentError("exporter_lost", f"{exporter} did not answer within {CONNECT_SECONDS:g} s") from None
        except Exception as error:
            known = await explain_refusal(origin, error) if isinstance(origin, DirectReach) else as_agent_error(error)
            raise _open_error(exporter, known) from error
        connection = Connection(session, exporter, socket)
        watch = asyncio.create_task(_watch(connection, ended), name=f"watch {exporter}")
        stack.push_async_callback(stop_task, watch)
        yield connection


async def _watch(connection: Connection, ended: asyncio.Future[str] | None) -> None:
    """Set `connection.lost` as soon as the exporter is gone: its process, or the log stream that it keeps open."""
    logs = asyncio.create_task(follow_logs(connection))
    try:
        if ended is None:
            reason = await logs
        else:
            await asyncio.wait([logs, ended], return_when=asyncio.FIRST_COMPLETED)
            # The connection breaks a moment before the process is reaped, and the process has the better reason.
            await asyncio.wait([ended], timeout=_REAP_SECONDS)
            reason = ended.result() if ended.done() else logs.result()
    finally:
        await stop_task(logs)
    connection.lose(AgentError("exporter_lost", f"{connection.exporter} {reason}"))


async def follow_logs(connection: Connection) -> str:
    """Copy the exporter's log lines to ours until it goes away; says how it went."""
    from jumpstarter.common.exceptions import JumpstarterException

    try:
        async for entry in connection.session.logs():
            driver_log.info("%s: %s", connection.exporter, entry.message)
    except JumpstarterException as error:
        return f"broke the connection: {error}"
    return "went away"


async def stop_task(task: asyncio.Task[Any]) -> None:
    """Cancel `task` and wait for its end."""
    task.cancel()
    await asyncio.wait([task])


def _open_error(exporter: str, known: AgentError) -> AgentError:
    if known.code == "refused" and "held by" in known.message:
        known = AgentError("busy", known.message, known.data)
    return known if exporter in known.message else known.prefixed(exporter)


def _credentials(reach: DirectReach) -> dict[str, Any]:
    from jumpstarter.common.grpc import TLS

    options: dict[str, Any] = {"insecure": reach.insecure}
    if not reach.insecure:
        options["tls"] = TLS.from_files(reach.tls_ca, reach.tls_cert, reach.tls_key)
    if reach.passphrase_file is not None:
        options["passphrase"] = _read_passphrase(reach.passphrase_file)
    return options


def _read_passphrase(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise AgentError("invalid", f"passphrase_file {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise AgentError("invalid", f"passphrase_file {path}: is not UTF-8 text") from None
