# SPDX-License-Identifier: Apache-2.0
"""The exporter's connection to its controller.

The uplink registers, watches the Status stream, and carries everything else the exporter has to say. It knows nothing
of sessions: that a controller is away is no event for them. It tries again for ever, at first quickly, then every few
seconds, and after each return registers anew and tells the present status again.

What the controller said last stays true until it says something else. The protocol does not tell exporters when a
lease ends by its time, so a lease whose end falls into an outage ends when the controller is back (and its tunnels,
which need a router that knows, end before that).

Two things are no outage. A controller that refuses the exporter (deleted, token revoked or expired) at the first
attempt is an error; later it is logged, and tried again slowly, because an administrator may mend it: a new token in
the configuration's file is used, without a restart. A controller that says ABORTED ("superseded") on the Status stream
has given this exporter's place to another process: that is an error at any time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc

from jumpstarter.common.controller import open_channel, presented_tls
from jumpstarter.common.enums import ExporterStatus
from jumpstarter.common.exceptions import ConnectionError, JumpstarterException
from jumpstarter.exporter.backoff import Backoff
from jumpstarter_protocol.jumpstarter.lab.v1 import controller_pb2, controller_pb2_grpc
from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2, jumpstarter_pb2_grpc

if TYPE_CHECKING:
    from jumpstarter.config.exporter import ExporterConfigV1Alpha1

__all__ = ["Assignment", "RegistrationRefused", "Superseded", "Uplink", "is_transient"]

logger = logging.getLogger(__name__)

_CALL_SECONDS = 15.0

#: Seconds between two attempts while the controller refuses this exporter.
_REFUSED_SECONDS = 30.0

_TRANSIENT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
    }
)
_REFUSALS = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
#: 0.9 controllers refuse with UNKNOWN; these are their words.
_REFUSING_WORDS = ("token", "not found", "permission denied", "authenticat")


class RegistrationRefused(JumpstarterException):
    """The controller does not take this exporter: wrong token, deleted, not an exporter at all."""


class Superseded(JumpstarterException):
    """Another process runs as this exporter, and the controller talks to that one now."""


@dataclass(frozen=True)
class Assignment:
    """Who the controller gave the exporter to. lease: None for nobody."""

    lease: str | None = None
    client: str = ""
    context: dict[str, str] = field(default_factory=dict, compare=False)


def is_transient(error: Any) -> bool:
    """Whether a failed call says nothing but that the controller cannot be reached now."""
    return error.code() in _TRANSIENT


class Uplink:
    """One exporter's view of its controller. `run` keeps it up; everything else waits for it.

    register: makes the request that announces the exporter. on_assignment: called with every new answer to the
    question who holds the exporter.
    """

    def __init__(
        self,
        config: ExporterConfigV1Alpha1,
        register: Callable[[], jumpstarter_pb2.RegisterRequest],
        on_assignment: Callable[[Assignment], None],
    ) -> None:
        self._config = config
        self._register = register
        self._on_assignment = on_assignment
        self._where = f"exporter {config.name}: controller {config.endpoint}"
        self._stubs: tuple[Any, Any] | None = None
        self._attached = asyncio.Event()
        self._wanted: tuple[ExporterStatus, str] | None = None
        self._told: tuple[ExporterStatus, str] | None = None
        self._to_tell = asyncio.Event()
        self._away_since: float | None = None
        self._complaint = ""
        #: Whether the controller offers jumpstarter.lab services; as it was when last attached.
        self.lab = False
        #: Whether this exporter was ever registered.
        self.registered = False
        #: What the controller said last; None before it said anything.
        self.assignment: Assignment | None = None

    @property
    def attached(self) -> bool:
        """Whether the controller is there: registered, and the Status stream is up."""
        return self._attached.is_set()

    async def wait_attached(self) -> None:
        """Wait until the controller is there."""
        await self._attached.wait()

    # Keeping up ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the connection up. Raises `RegistrationRefused`, `Superseded`; otherwise returns never."""
        backoff = Backoff()
        reporting = asyncio.create_task(self._reporting())
        try:
            while True:
                try:
                    async with self._channel() as channel:
                        await self._attend(channel, backoff)
                except grpc.RpcError as error:
                    await self._failed(error, backoff)
                except ConnectionError as error:  # who it is could not be asked (tls.insecure)
                    self._away(str(error))
                    await backoff.wait()
                except JumpstarterException:
                    raise
                except Exception as error:
                    # Nobody thought of this one; the sessions are worth more than an early end.
                    logger.exception("%s: the connection failed", self._where)
                    self._away(f"{type(error).__name__}: {error}")
                    await backoff.wait()
        finally:
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[Any]:
        # A new one for each attempt: it starts with no backoff of its own and resolves the name again.
        channel = open_channel(self._config, tls=await presented_tls(self._config))
        try:
            yield channel
        finally:
            self._attached.clear()
            self._stubs = None
            await channel.close()

    async def _attend(self, channel: Any, backoff: Backoff) -> None:
        """Register and follow the Status stream, again whenever it just ends. Raises RpcError."""
        stub = jumpstarter_pb2_grpc.ControllerServiceStub(channel)
        lab = controller_pb2_grpc.LabControllerServiceStub(channel)
        while True:
            await stub.Register(self._register(), timeout=_CALL_SECONDS)
            self.registered = True
            self.lab = await self._offers_lab(lab)
            self._stubs = (stub, lab)
            began = time.monotonic()
            stream = stub.Status(jumpstarter_pb2.StatusRequest())
            try:
                async for message in stream:
                    self._present()
                    self._assigned(message)
            finally:
                self._attached.clear()
                stream.cancel()
                backoff.worked(time.monotonic() - began)
            self._away("it ended the Status stream")
            await backoff.wait()

    async def _offers_lab(self, lab: Any) -> bool:
        try:
            await lab.GetInfo(controller_pb2.GetInfoRequest(), timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            if is_transient(error):
                raise
            # UNIMPLEMENTED from 0.9; whatever else it says, it does not offer them to us.
            return False
        return True

    def _present(self) -> None:
        if self._attached.is_set():
            return
        if self._away_since is not None:
            logger.info("%s is back after %.1f s", self._where, time.monotonic() - self._away_since)
        else:
            logger.info("%s: registered", self._where)
        self._away_since, self._complaint = None, ""
        self._attached.set()
        self._told = None
        if self._wanted is not None:
            self._to_tell.set()

    def _assigned(self, message: Any) -> None:
        known = Assignment()
        if message.leased and message.lease_name:
            known = Assignment(message.lease_name, message.client_name, dict(message.context))
        self.assignment = known
        self._on_assignment(known)

    async def _failed(self, error: Any, backoff: Backoff) -> None:
        """Judge why the connection failed; wait, or raise what cannot be waited for."""
        code, details = error.code(), " ".join((error.details() or "").split())
        if code is grpc.StatusCode.ABORTED and "superseded" in details:
            raise Superseded(
                f"{self._where}: another process has registered as exporter {self._config.name} and took this one's "
                f"place ({details}); stop one of them, or give them names of their own"
            ) from None
        if _refuses(code, details):
            line = f"{self._where} refuses this exporter: {details or code.name} ({code.name})"
            if not self.registered:
                raise RegistrationRefused(f"{line}; check endpoint, token and tls in {self._config.where}") from None
            if line != self._complaint:
                logger.error("%s; sessions go on, trying again every %g s", line, _REFUSED_SECONDS)
                self._complaint = line
            self._away_since = self._away_since or time.monotonic()
            if not self._took_new_token():
                await asyncio.sleep(_REFUSED_SECONDS)
            return
        self._away(details or code.name)
        await backoff.wait()

    def _took_new_token(self) -> bool:
        """Whether somebody has saved another token in the configuration's file; it is used from now on."""
        config = self._config
        if config.path is None:
            return False
        try:
            saved = type(config).load_path(config.path).token
        except (JumpstarterException, OSError) as error:
            logger.warning("exporter %s: no new token: %s", config.name, error)
            return False
        if not saved or saved == config.token:
            return False
        logger.info("exporter %s: using the new token of %s", config.name, config.path)
        config.token = saved
        return True

    def _away(self, why: str) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
            then = "sessions go on without it" if self.registered else "waiting for it"
            logger.warning("%s is away (%s); %s", self._where, why, then)

    # Telling the controller --------------------------------------------------------------------------------------

    def report(self, status: ExporterStatus, message: str = "") -> None:
        """Tell the exporter's status, as soon as possible; of several that wait only the last is told."""
        self._wanted = (status, message)
        self._to_tell.set()

    async def _reporting(self) -> None:
        while True:
            await self._to_tell.wait()
            await self._attached.wait()
            self._to_tell.clear()
            wanted = self._wanted
            if wanted is None or wanted == self._told:
                continue
            status, message = wanted
            request = jumpstarter_pb2.ReportStatusRequest(status=status.to_proto(), message=message)
            try:
                await self.call("ReportStatus", request)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                    logger.warning("%s does not take status %s: %s", self._where, status.name, error.details())
            except Exception:  # the next status must be told all the same
                logger.exception("%s: status %s could not be told", self._where, status.name)
            self._told = wanted

    async def call(self, method: str, request: Any, *, lab: bool = False) -> Any:
        """A call of ControllerService (or LabControllerService), made again until the controller answers it.

        Raises AioRpcError when it refuses.
        """
        backoff = Backoff()
        while True:
            await self._attached.wait()
            if self._stubs is not None:
                try:
                    return await getattr(self._stubs[lab], method)(request, timeout=_CALL_SECONDS)
                except grpc.aio.AioRpcError as error:
                    if not is_transient(error):
                        raise
                    logger.debug("%s: %s: %s", self._where, method, error.details())
                except asyncio.CancelledError:
                    _raise_if_cancelled()
                except grpc.aio.UsageError as error:  # the channel was closed under the call
                    logger.debug("%s: %s: %s", self._where, method, error)
            await backoff.wait()

    async def listen(self, lease: str) -> AsyncIterator[Any]:
        """The answers of one Listen stream, until it ends or breaks. Raises AioRpcError when it is refused."""
        await self._attached.wait()
        if self._stubs is None:
            return
        stream = self._stubs[0].Listen(jumpstarter_pb2.ListenRequest(lease_name=lease))
        try:
            async for response in stream:
                yield response
        except grpc.aio.AioRpcError as error:
            if not is_transient(error):
                raise
            logger.debug("%s: Listen: %s", self._where, error.details())
        except asyncio.CancelledError:
            _raise_if_cancelled()
        except grpc.aio.UsageError as error:
            logger.debug("%s: Listen: %s", self._where, error)
        finally:
            stream.cancel()

    async def leave(self, reason: str) -> None:
        """Tell the controller that the exporter is going. Returns when it knows; wrap it in a timeout."""
        if not self.registered:
            return
        self._wanted = None
        status = ExporterStatus.OFFLINE.to_proto()
        for method, request in (
            ("ReportStatus", jumpstarter_pb2.ReportStatusRequest(status=status, message=reason)),
            ("Unregister", jumpstarter_pb2.UnregisterRequest(reason=reason)),
        ):
            try:
                await self.call(method, request)
            except grpc.aio.AioRpcError as error:
                logger.warning("%s: %s: %s", self._where, method, error.details() or error.code().name)


def _refuses(code: grpc.StatusCode, details: str) -> bool:
    if code in _REFUSALS:
        return True
    if code is grpc.StatusCode.UNAVAILABLE:
        return "CERTIFICATE_VERIFY_FAILED" in details
    return code is grpc.StatusCode.UNKNOWN and any(word in details.lower() for word in _REFUSING_WORDS)


def _raise_if_cancelled() -> None:
    """Called in ``except CancelledError``: calls on a channel that is closed raise it too, though nobody cancelled."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise
