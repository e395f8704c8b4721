# SPDX-License-Identifier: Apache-2.0
"""The unix socket of a lease: every connection to it is a tunnel of its own to the lease's exporter."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import empty_pb2

from jumpstarter.client.backoff import Backoff
from jumpstarter.common.enums import ExporterStatus
from jumpstarter.common.exceptions import (
    AuthenticationError,
    ConnectionError,
    ControllerError,
    ExporterOfflineError,
    ExporterUnreachableError,
    JumpstarterException,
    LeaseError,
)
from jumpstarter.common.grpc import channel_options
from jumpstarter.streams.sockets import SocketStream, accept
from jumpstarter.streams.tunnel import Routers, bridge_tunnel
from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2, jumpstarter_pb2_grpc

if TYPE_CHECKING:
    from jumpstarter.client.lease import HeldLease

__all__ = ["LeaseSocket", "lease_socket"]

logger = logging.getLogger(__name__)

_BACKLOG = 128
_CALL_SECONDS = 10.0
#: For the afterLease hook.
_END_SECONDS = 300.0
#: For log lines after a failure, at most.
_LOG_SECONDS = 2.0
#: From a dial that is refused because of the lease until its loss is known, at most.
_LOSS_SECONDS = 5.0
_HOOK_WARNING = "[HOOK_WARNING] "
#: Connection errors that trying again does not change.
_HOPELESS = (ExporterOfflineError, AuthenticationError)
_OVER = {
    ExporterStatus.AFTER_LEASE_HOOK: "is ending the lease",
    ExporterStatus.AFTER_LEASE_HOOK_FAILED: "has ended the lease",
    ExporterStatus.OFFLINE: "is offline",
}


class LeaseSocket:
    """A socket that leads to the exporter of a lease, and what its holder asks the exporter.

    warning: what the exporter warned of when it got ready or ended the session (its hook), "" for nothing.
    """

    def __init__(self, held: HeldLease, path: Path, routers: Routers) -> None:
        self.path = path
        self.warning = ""
        self._held = held
        self._routers = routers
        self._connections: set[asyncio.Task[None]] = set()
        #: Done when the exporter cannot be reached, whatever one waits; a new one when somebody asks for it again.
        self._hopeless: asyncio.Future[JumpstarterException] = asyncio.get_running_loop().create_future()
        self._channel = grpc.aio.insecure_channel(
            f"unix:{path}",
            options=channel_options(
                {
                    "grpc.initial_reconnect_backoff_ms": 100,
                    "grpc.max_reconnect_backoff_ms": 1000,
                    # An attempt to connect includes the dial, and that may wait for the exporter.
                    "grpc.min_reconnect_backoff_ms": int(held.dial_timeout * 1000) + 5000,
                }
            ),
        )
        self._logged = asyncio.Event()
        self._stub: Any = jumpstarter_pb2_grpc.ExporterServiceStub(self._channel)

    # --- connections -------------------------------------------------------------------------------------------

    async def accept(self, listener: socket.socket) -> None:
        """Take connections until cancelled; then break off those that there are."""
        try:
            while True:
                connection = await accept(listener)
                task = asyncio.create_task(self._tunnel(SocketStream(connection)))
                self._connections.add(task)
                task.add_done_callback(self._connections.discard)
        finally:
            listener.close()  # who still comes is refused, and does not wait for nobody
            tasks = list(self._connections)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _tunnel(self, stream: SocketStream) -> None:
        name = self._held.name
        # What becomes of this dial says nothing to those who ask for the exporter anew while it is under way.
        hopeless = self._hopeless
        try:
            endpoint, token = await self._dial()
            await bridge_tunnel(stream, endpoint, token, routers=self._routers)
        except JumpstarterException as error:
            if self._held.lost.done():
                return  # that is why
            logger.info("tunnel of lease %s: %s", name, error)
            passing = isinstance(error, ConnectionError) and not isinstance(error, _HOPELESS)
            if not passing and not hopeless.done():
                hopeless.set_result(error)
        except Exception:
            logger.exception("tunnel of lease %s failed", name)
        finally:
            await stream.aclose()

    async def _dial(self) -> tuple[str, str]:
        """Ask for a tunnel, again and again while the exporter gets ready or the controller is away."""
        held, backoff = self._held, Backoff(0.1, 2.0)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + held.dial_timeout
        while True:
            try:
                return await held.controller.dial(held.name)
            except AuthenticationError:
                raise
            except (ConnectionError, LeaseError) as error:
                final = _final(error, held)
                if final is not None:
                    raise final from None
                if loop.time() > deadline:
                    raise ExporterUnreachableError(
                        f"exporter {held.info.exporter} cannot be reached within {held.dial_timeout:g} s: {error}"
                    ) from None
            await backoff.wait()

    # --- the exporter ------------------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Return when the exporter takes driver calls."""
        # Not too seldom: some exporters show the failure of a hook for a second only.
        held, backoff = self._held, Backoff(0.02, 0.3)
        loop = asyncio.get_running_loop()
        self._hope_again()
        deadline = loop.time() + held.dial_timeout
        while True:
            found = await self._or_lost(self._status(held.dial_timeout + 5))
            if found is not None:
                status, message = found
                exporter = f"exporter {held.info.exporter}"
                if status in (ExporterStatus.LEASE_READY, ExporterStatus.UNSPECIFIED):
                    self._warn(message)
                    return
                if status is ExporterStatus.BEFORE_LEASE_HOOK_FAILED:
                    raise _offline(f"{exporter}: its beforeLease hook failed: {message}", status)
                if status in _OVER:
                    raise _offline(f"{exporter} {_OVER[status]}" + (f": {message}" if message else ""), status)
                if status is ExporterStatus.BEFORE_LEASE_HOOK:
                    deadline = loop.time() + held.dial_timeout  # it has its own time limit
            if loop.time() > deadline:
                raise ExporterUnreachableError(
                    f"exporter {held.info.exporter} is not ready after {held.dial_timeout:g} s"
                    + (f" (status: {found[0].name})" if found else ": no connection to it lasted")
                )
            await backoff.wait()

    async def _status(self, timeout: float) -> tuple[ExporterStatus, str] | None:
        """Status and message; None when the connection broke."""
        try:
            answer = await self._stub.GetStatus(
                jumpstarter_pb2.GetStatusRequest(), timeout=timeout, wait_for_ready=True
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return ExporterStatus.LEASE_READY, ""
            logger.debug("GetStatus: %s", error.details())
            return None
        return ExporterStatus.from_proto(answer.status), answer.message

    async def _or_lost(self, work: Any) -> Any:
        """The result of ``work``, unless the lease is lost, or the exporter out of reach, before."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self._held.lost, self._hopeless}, return_when=asyncio.FIRST_COMPLETED)
            hopeless = self._hopeless.result() if self._hopeless.done() and not task.done() else None
            if isinstance(hopeless, LeaseError):
                # A dial was refused for the lease: who watches it is about to learn, and will know why.
                await asyncio.wait({self._held.lost}, timeout=_LOSS_SECONDS)
            if self._held.lost.done():
                raise await self._loss()
            if hopeless is not None:
                raise hopeless
            return await task
        finally:
            task.cancel()

    def _hope_again(self) -> None:
        """An exporter that was out of reach may be back: ask anew."""
        if self._hopeless.done():
            self._hopeless = asyncio.get_running_loop().create_future()

    async def _loss(self) -> JumpstarterException:
        """Why the lease was lost. An exporter that gave it back may have said why."""
        held = self._held
        if held.info.exporter:
            try:
                exporter = await held.controller.get_exporter(held.info.exporter)
            except (ConnectionError, ControllerError) as error:
                logger.debug("exporter %s cannot be asked for: %s", held.info.exporter, error)
            else:
                if exporter.status is ExporterStatus.BEFORE_LEASE_HOOK_FAILED:
                    return _offline(
                        f"exporter {exporter.name}: its beforeLease hook failed: {exporter.status_message}",
                        exporter.status,
                    )
        return LeaseError(held.lost.result(), code="ABORTED")

    def _warn(self, message: str) -> None:
        if message.startswith(_HOOK_WARNING):
            self.warning = message.removeprefix(_HOOK_WARNING)

    async def follow_logs(self, on_log: Callable[[Any], None]) -> None:
        """Pass on what the exporter logs, through broken connections as well."""
        backoff = Backoff(0.1, 2.0)
        while True:
            call = self._stub.LogStream(empty_pb2.Empty(), wait_for_ready=True)
            try:
                async for entry in call:
                    backoff.reset()
                    on_log(entry)
                    self._logged.set()
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    return
                logger.debug("log stream: %s", error.details())
            finally:
                call.cancel()
            await backoff.wait()

    async def settle(self) -> None:
        """Give log lines that are under way a moment: they say more than the status of a hook that failed."""
        try:
            async with asyncio.timeout(_LOG_SECONDS):
                while True:
                    self._logged.clear()
                    async with asyncio.timeout(_LOG_SECONDS / 4):
                        await self._logged.wait()
        except TimeoutError:
            return

    async def end_session(self, timeout: float = _END_SECONDS) -> None:
        """Ask the exporter to end the session and wait until its afterLease hook is done; `warning` is its complaint.

        Does nothing when the lease is lost or the exporter cannot be reached: then it ends without being asked.
        """
        held, backoff = self._held, Backoff(0.02, 1.0)
        self.warning = ""
        self._hope_again()
        try:
            async with asyncio.timeout(timeout):
                if not await self._or_lost(self._end()):
                    return
                while True:
                    found = await self._or_lost(self._status(_CALL_SECONDS))
                    if found is not None:
                        status, message = found
                        self._warn(message)
                        if status is ExporterStatus.AFTER_LEASE_HOOK_FAILED:
                            self.warning = message or "its afterLease hook failed"
                        if status in (ExporterStatus.AVAILABLE, ExporterStatus.AFTER_LEASE_HOOK_FAILED):
                            return
                    await backoff.wait()
        except TimeoutError:
            self.warning = f"exporter {held.info.exporter} has not ended the session after {timeout:g} s"
        except JumpstarterException as error:
            logger.debug("end of the session: %s", error)  # the lease is over, and that was the purpose

    async def _end(self) -> bool:
        try:
            answer = await self._stub.EndSession(jumpstarter_pb2.EndSessionRequest(), timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            logger.debug("EndSession: %s", error.details())
            return False
        return bool(answer.success)

    async def close(self) -> None:
        """Close the connection of our own."""
        await self._channel.close()


def _offline(message: str, status: ExporterStatus) -> ExporterOfflineError:
    error = ExporterOfflineError(message)
    error.code = status.name
    return error


def _final(error: JumpstarterException, held: HeldLease) -> JumpstarterException | None:
    """The error to give up with, or None when dialling again may help."""
    if held.lost.done():
        return LeaseError(held.lost.result(), code="ABORTED")
    if not isinstance(error, LeaseError):
        return None
    exporter, details = f"exporter {held.info.exporter}", error.details
    if "Failed" in details:
        why = details.partition("): ")[2] or details
        return _offline(f"{exporter}: its beforeLease hook failed: {why}", ExporterStatus.BEFORE_LEASE_HOOK_FAILED)
    if error.code == "RESOURCE_EXHAUSTED" or "not ready" in details or "not listening" in details:
        return None
    if "offline" in details:
        return _offline(f"{exporter} is offline", ExporterStatus.OFFLINE)
    return error


def _listen(path: Path) -> socket.socket:
    """A listening socket that only its owner can connect to."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        old = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(old)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


@asynccontextmanager
async def lease_socket(held: HeldLease, path: Path, on_log: Callable[[Any], None] | None) -> AsyncIterator[str]:
    """See `HeldLease.serve_unix`."""
    config = held.controller.config
    async with AsyncExitStack() as stack:
        routers = await stack.enter_async_context(Routers(config.tls, config.grpcOptions))
        listener = stack.enter_context(_listen(path))
        stack.callback(path.unlink, missing_ok=True)
        served = LeaseSocket(held, path, routers)
        accepting = asyncio.create_task(served.accept(listener))
        stack.push_async_callback(_stop, accepting)
        stack.push_async_callback(served.close)
        held.lost.add_done_callback(lambda _: accepting.cancel())
        if on_log is not None:
            stack.push_async_callback(_stop, asyncio.create_task(served.follow_logs(on_log)))
        try:
            await served.ready()
        except ExporterOfflineError:
            if on_log is not None:
                await served.settle()
            raise
        held.socket = served
        yield str(path)


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
