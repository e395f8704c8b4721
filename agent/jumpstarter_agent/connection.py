# SPDX-License-Identifier: Apache-2.0
"""From a reach to an open, exclusively held exporter session."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config_lock import ConfigLock
from .direct_errors import explain_refusal
from .errors import AgentError, as_agent_error
from .exporter_child import StopBudget, exporter_child
from .reach import DirectReach, LocalReach, Reach

if TYPE_CHECKING:
    from .lease import Place

__all__ = ["Connection", "open_connection"]

driver_log = logging.getLogger("jumpstarter_agent.exporter_log")

_REAP_SECONDS = 2.0

CONNECT_SECONDS = 20.0
"""An endpoint that has not answered by then is reported as unreachable."""


@dataclass
class Connection:
    """An exporter session that is ours alone. `lost` gets one sentence when the exporter is gone.

    session: `jumpstarter.client.aio.Session`. host_socket: unix socket that speaks ExporterService (jumpstarter_host).
    """

    session: Any
    exporter: str
    host_socket: Path
    lost: asyncio.Future[str]


@contextlib.asynccontextmanager
async def open_connection(
    reach: Reach, place: Place, lease_id: str, host: str, budget: StopBudget
) -> AsyncIterator[Connection]:
    """Reach the exporter and hold it for the block. Every failure is an `AgentError` that names the exporter."""
    socket = place.directory / f"x-{lease_id}.sock"
    holder = f"{place.holder}, host {host}"
    if isinstance(reach, LocalReach):
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
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
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
        connection = Connection(session=session, exporter=exporter, host_socket=socket, lost=lost)
        watch = asyncio.create_task(_watch(connection, ended), name=f"watch {exporter}")
        stack.push_async_callback(_stop, watch)
        yield connection


async def _watch(connection: Connection, ended: asyncio.Future[str] | None) -> None:
    """Set `connection.lost` as soon as the exporter is gone: its process, or the log stream that it keeps open."""
    logs = asyncio.create_task(_follow_logs(connection))
    try:
        if ended is None:
            reason = await logs
        else:
            await asyncio.wait([logs, ended], return_when=asyncio.FIRST_COMPLETED)
            # The connection breaks a moment before the process is reaped, and the process has the better reason.
            await asyncio.wait([ended], timeout=_REAP_SECONDS)
            reason = ended.result() if ended.done() else logs.result()
    finally:
        await _stop(logs)
    if not connection.lost.done():
        connection.lost.set_result(f"{connection.exporter} {reason}")


async def _follow_logs(connection: Connection) -> str:
    from jumpstarter.common.exceptions import JumpstarterException

    try:
        async for entry in connection.session.logs():
            driver_log.info("%s: %s", connection.exporter, entry.message)
    except JumpstarterException as error:
        return f"broke the connection: {error}"
    return "went away"


async def _stop(task: asyncio.Task[Any]) -> None:
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
