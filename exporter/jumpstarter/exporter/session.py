# SPDX-License-Identifier: Apache-2.0
"""One session: a driver tree, served to clients.

The session answers ExporterService, RouterService.Stream (driver byte streams and resources) and, for peers that know
it, LabService. How it is reached (unix socket, TCP, tunnel) is the business of `jumpstarter.exporter.server`.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import grpc

from jumpstarter.common.enums import ExporterStatus
from jumpstarter.driver.base import Driver
from jumpstarter.exporter.dispatch import CallError, DriverSlot, details_of, status_of, wants_json
from jumpstarter.exporter.holding import Holding
from jumpstarter.exporter.logging import LogHub
from jumpstarter.streams.common import forward_stream
from jumpstarter.streams.router import RouterStream
from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2, jumpstarter_pb2_grpc

if TYPE_CHECKING:
    from jumpstarter.config.exporter import ExporterConfigV1Alpha1

__all__ = ["LAB_HEADER", "Session"]

#: Sent with GetReport's answer: the peer speaks jumpstarter.lab.v1 and these codecs.
LAB_HEADER = "x-jumpstarter-lab"

logger = logging.getLogger(__name__)


class Session(jumpstarter_pb2_grpc.ExporterServiceServicer):
    """A driver tree with status, logs and the servicers that clients talk to.

    root_device: the root of the tree. name: the exporter's name, for messages. motd: shown to interactive users.
    power_off_on_end: switch off, when the session ends or its holder leaves, every power driver that was switched on.

    Use it as context manager: entering resets the drivers, leaving ends the session.
    """

    def __init__(
        self,
        *,
        root_device: Driver,
        name: str = "",
        uuid: UUID | None = None,
        labels: dict[str, str] | None = None,
        motd: str | None = None,
        power_off_on_end: bool = True,
    ) -> None:
        self.root_device = root_device
        self.name = name
        self.uuid = uuid or uuid4()
        self.labels = dict(labels or {})
        self.motd = motd or ""
        self.power_off_on_end = power_off_on_end
        self.logs = LogHub()
        self.lease_context: Any = None
        self.holding = Holding(self._give_back)
        self._executor = ThreadPoolExecutor(max_workers=256, thread_name_prefix="driver")
        self._slots: dict[str, DriverSlot] = {}
        self._status = ExporterStatus.AVAILABLE
        self._status_message = ""
        self._status_version = 0
        self._status_seen = asyncio.Event()
        self._status_changed = asyncio.Event()
        self._previous: ExporterStatus | None = None
        self._giving_back = asyncio.Lock()  # a holder's leaving and the session's end switch off one after the other
        self._ended = False

    @classmethod
    def from_config(cls, config: ExporterConfigV1Alpha1, root: Driver) -> Session:
        """The session an exporter configuration asks for, with the drivers made from it."""
        from jumpstarter.streams.presigned import allow_urls

        allow_urls(config.allowPresignedUrls)
        return cls(root_device=root, name=config.name, motd=config.motd, power_off_on_end=config.powerOffOnEnd)

    # Life cycle ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Session:
        self.logs.attach()
        try:
            self.root_device.reset()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the drivers; failures are logged. `end` comes first where an event loop runs."""
        if self._ended:
            return
        self._ended = True
        try:
            self.root_device.close()
        except Exception:  # the end of a session must go on whatever a driver does
            logger.exception("closing the drivers failed")
        self.logs.detach()
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def end(self) -> None:
        """Give the device back: power off what was switched on, then close the drivers."""
        async with self._giving_back:
            if not self._ended:
                await self._power_off()
                await asyncio.to_thread(self.close)

    async def recycle(self, keep: frozenset[str] = frozenset()) -> bool:
        """A holder left, or a lease ended, and the exporter stays: power off, and reset the drivers for the next one.

        keep: paths of drivers that stay on; then nothing is reset, what is on may depend on it. Returns whether the
        drivers were reset.
        """
        async with self._giving_back:
            if self._ended:
                return False
            await self._power_off(keep)
            if keep & self.switched_on():
                return False
            try:
                await asyncio.to_thread(self.root_device.reset)
            except Exception:
                logger.exception("resetting the drivers failed")
                return False
            return True

    async def power_off(self) -> None:
        """Switch off what is switched on."""
        async with self._giving_back:
            await self._power_off()

    async def _give_back(self, keep: frozenset[str]) -> None:
        await self.recycle(keep)

    def switched_on(self) -> frozenset[str]:
        """Paths of the power drivers that are switched on and will be switched off in the end."""
        if not self.power_off_on_end:
            return frozenset()
        return frozenset(slot.path for slot in self.slots().values() if slot.driver.switched_on)

    async def _power_off(self, keep: frozenset[str] = frozenset()) -> None:
        if not self.power_off_on_end:
            return
        for slot in self.slots().values():
            driver = slot.driver
            if not driver.switched_on or slot.path in keep:
                continue
            try:
                off = driver.off  # type: ignore[attr-defined]
                if inspect.iscoroutinefunction(inspect.unwrap(off.__func__)):
                    async with asyncio.timeout(10):
                        await off()
                else:
                    async with asyncio.timeout(10):
                        await asyncio.to_thread(off)
                driver.note_switched(False)
                logger.info('session end: driver "%s" switched off', slot.path)
            except Exception as error:  # noqa: BLE001 (the other drivers must be switched off all the same)
                logger.error('session end: driver "%s" could not be switched off: %s', slot.path, error)

    # Drivers ---------------------------------------------------------------------------------------------------

    def slots(self) -> dict[str, DriverSlot]:
        """Driver instances by uuid, made on first use: drivers may add children until then."""
        if not self._slots:
            paths: dict[UUID, str] = {}
            for uuid, parent, name, driver in self.root_device.enumerate():
                above = paths.get(parent.uuid, "") if parent is not None else ""
                path = f"{above}.{name}" if above and name else name or ""
                paths.setdefault(uuid, path)
                if str(uuid) not in self._slots:
                    self._slots[str(uuid)] = DriverSlot(driver, path, self._executor)
        return self._slots

    def _slot(self, uuid: str) -> DriverSlot:
        try:
            return self.slots()[uuid]
        except KeyError:
            raise CallError(
                grpc.StatusCode.NOT_FOUND, f"this exporter has no driver with id {uuid}; its report may have changed"
            ) from None

    def _gate(self) -> None:
        if not self._status.accepts_driver_calls:
            text = f"Exporter not ready for driver calls (status: {self._status.name})"
            raise CallError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"{text}: {self._status_message}" if self._status_message else text,
            )

    # Status ----------------------------------------------------------------------------------------------------

    @property
    def status(self) -> ExporterStatus:
        """Present status."""
        return self._status

    def update_status(self, status: ExporterStatus, message: str = "") -> None:
        """Set the status; the version grows with every call."""
        self._previous, self._status = self._status, ExporterStatus(status)
        self._status_message = message or ""
        self._status_version += 1
        self._status_seen.clear()
        self._status_changed.set()
        self._status_changed = asyncio.Event()

    @property
    def status_message(self) -> str:
        """What goes with the present status."""
        return self._status_message

    async def wait_status_seen(self) -> None:
        """Wait until a client has asked for the present status."""
        await self._status_seen.wait()

    async def wait_status(self, *wanted: ExporterStatus) -> ExporterStatus:
        """Wait for one of these statuses and return it."""
        while self._status not in wanted:
            await self._status_changed.wait()
        return self._status

    @property
    def holder(self) -> tuple[str, datetime] | None:
        """Who holds the session, since when."""
        return self.holding.holder

    # ExporterService -------------------------------------------------------------------------------------------

    async def GetReport(self, request: Any, context: Any) -> jumpstarter_pb2.GetReportResponse:
        """The driver tree. Never gated."""
        await context.send_initial_metadata(((LAB_HEADER, "v1 codec=json1"),))
        root = self.root_device
        reports = [d.report(root=root, parent=parent, name=name) for _, parent, name, d in root.enumerate()]
        labels = dict(self.labels)
        if self.name:
            labels.setdefault("jumpstarter.dev/name", self.name)
        response: jumpstarter_pb2.GetReportResponse = jumpstarter_pb2.GetReportResponse(
            uuid=str(self.uuid), labels=labels, reports=reports, motd=self.motd
        )
        return response

    async def DriverCall(self, request: Any, context: Any) -> jumpstarter_pb2.DriverCallResponse:
        """One call of an exported method."""
        slot: DriverSlot | None = None
        try:
            self._gate()
            slot = self._slot(request.uuid)
            result = await slot.call(request, wants_json(context))
        except Exception as error:  # noqa: BLE001 (becomes the call's status)
            await _abort(context, slot, request.method, error)
        response: jumpstarter_pb2.DriverCallResponse = jumpstarter_pb2.DriverCallResponse(
            uuid=request.uuid, result=result
        )
        return response

    async def StreamingDriverCall(
        self, request: Any, context: Any
    ) -> AsyncIterator[jumpstarter_pb2.StreamingDriverCallResponse]:
        """One call of an exported generator."""
        slot: DriverSlot | None = None
        try:
            self._gate()
            slot = self._slot(request.uuid)
            async for value in slot.stream(request, wants_json(context)):
                yield jumpstarter_pb2.StreamingDriverCallResponse(result=value)
        except Exception as error:  # noqa: BLE001 (becomes the call's status)
            await _abort(context, slot, request.method, error)

    async def LogStream(self, request: Any, context: Any) -> AsyncIterator[jumpstarter_pb2.LogStreamResponse]:
        """Log lines, live."""
        async for entry in self.logs.follow():
            yield entry

    async def GetStatus(self, request: Any, context: Any) -> jumpstarter_pb2.GetStatusResponse:
        """Present status with its version."""
        self._status_seen.set()
        response: jumpstarter_pb2.GetStatusResponse = jumpstarter_pb2.GetStatusResponse(
            status=self._status.to_proto(),
            message=self._status_message or None,
            status_version=self._status_version,
            previous_status=self._previous.to_proto() if self._previous is not None else None,
        )
        return response

    async def EndSession(self, request: Any, context: Any) -> jumpstarter_pb2.EndSessionResponse:
        """Ask the lease's owner task to end the session; it does so after this answer."""
        response: jumpstarter_pb2.EndSessionResponse
        if self.lease_context is None:
            response = jumpstarter_pb2.EndSessionResponse(success=False, message="No active lease context")
        else:
            self.lease_context.end_session_requested.set()
            response = jumpstarter_pb2.EndSessionResponse(success=True)
        return response

    # RouterService ---------------------------------------------------------------------------------------------

    async def Stream(self, request_iterator: Any, context: Any) -> None:
        """A byte stream of a driver, or a resource that a following call will use."""
        slot: DriverSlot | None = None
        method = "Stream"
        try:
            self._gate()
            wanted = _stream_request(context)
            slot = self._slot(str(wanted.get("uuid", "")))
            if wanted.get("kind") == "resource":
                method = "resource"
                await self._resource(slot, wanted, context)
            else:
                method = str(wanted.get("method", "connect"))
                await self._driver_stream(slot, method, context)
        except Exception as error:  # noqa: BLE001 (becomes the call's status)
            await _abort(context, slot, method, error)

    async def _driver_stream(self, slot: DriverSlot, method: str, context: Any) -> None:
        exported = slot.method(method, "bytes")
        async with getattr(slot.driver, exported.name)() as device:
            metadata = getattr(device, "metadata", None)
            items = metadata.items() if isinstance(metadata, dict) else ()
            await context.send_initial_metadata(tuple((str(k).lower(), str(v)) for k, v in items))
            async with forward_stream(RouterStream(context), device):
                pass

    async def _resource(self, slot: DriverSlot, wanted: dict[str, Any], context: Any) -> None:
        from jumpstarter.common.resources import ClientStreamResource

        encoding = wanted.get("x_jmp_content_encoding") or None
        accepted = ""
        if encoding is not None:
            from jumpstarter.streams.encoding import Compression

            accepted = str(encoding) if encoding in set(Compression) else ""
        handle = ClientStreamResource(uuid=uuid4(), x_jmp_content_encoding=accepted or None)
        stream = _ResourceEnd(context)
        slot.driver.resources[handle.uuid] = stream
        try:
            await context.send_initial_metadata(
                (("resource", handle.model_dump_json()), ("x_jmp_accept_encoding", accepted))
            )
            await stream.finished.wait()
        finally:
            slot.driver.resources.pop(handle.uuid, None)
            stream.finished.set()

    # LabService ------------------------------------------------------------------------------------------------

    async def Describe(self, request: Any, context: Any) -> Any:
        """Exported methods of every driver."""
        from jumpstarter.exporter.describe import describe

        return describe(self.slots())

    async def Hold(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Keep the session for one holder until its stream ends."""
        async for response in self.holding.hold(request, context, self.name, self.switched_on()):
            yield response


class _ResourceEnd(RouterStream):
    """A router stream used by a driver call while the Stream call's own handler waits for it."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self.finished = asyncio.Event()

    async def aclose(self) -> None:
        if not self.finished.is_set():
            await super().aclose()
            self.finished.set()


def _stream_request(context: Any) -> dict[str, Any]:
    for key, value in context.invocation_metadata() or ():
        if key == "request":
            try:
                wanted = json.loads(value)
            except ValueError:
                break
            if isinstance(wanted, dict):
                return wanted
    raise CallError(
        grpc.StatusCode.INVALID_ARGUMENT,
        'the metadata "request" must say what to open: {"kind": "driver", "uuid": ..., "method": ...} or '
        '{"kind": "resource", "uuid": ...}',
    )


async def _abort(context: Any, slot: DriverSlot | None, method: str, error: Exception) -> None:
    """End a call with the status its error stands for."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, BaseExceptionGroup):
        error = _first(error)
    code, _ = status_of(error)
    details = details_of(error)
    metadata = slot.error_metadata(error, method) if slot is not None else ()
    if code is grpc.StatusCode.UNKNOWN:
        logger.error("%s failed: %s", method, details, exc_info=error)
    await context.abort(code, details, metadata)


def _first(group: BaseExceptionGroup[Any]) -> Exception:
    for error in group.exceptions:
        found = _first(error) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, Exception):
            return found
    return RuntimeError(str(group))
