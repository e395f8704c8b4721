# SPDX-License-Identifier: Apache-2.0
"""What clients of a lease see of a session.

Hooks use the session itself. Clients come through this door: their driver calls wait while the beforeLease hook runs,
are refused when there is no lease to use any more, and are noted for the audit. Reports, status and logs pass at any
time, so that a client can watch the hook work.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc

from jumpstarter.common.enums import ExporterStatus

if TYPE_CHECKING:
    from jumpstarter.exporter.session import Session

__all__ = ["ClientDoor"]

#: path, method, kind ("call", "stream", "bytes"), began (epoch seconds), seconds, gRPC status name
Note = Callable[[str, str, str, float, float, str], None]


class ClientDoor:
    """The session's services for the clients of one lease. note: called after each driver call."""

    def __init__(self, session: Session, note: Note) -> None:
        self._session = session
        self._note = note
        self.GetReport = session.GetReport
        self.GetStatus = session.GetStatus
        self.LogStream = session.LogStream
        self.EndSession = session.EndSession
        self.Reset = session.Reset
        self.Describe = session.Describe

    async def DriverCall(self, request: Any, context: Any) -> Any:
        """One call of an exported method."""
        await self._ready(context)
        with self._noted(request.uuid, request.method, "call", context):
            return await self._session.DriverCall(request, context)

    async def StreamingDriverCall(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """One call of an exported generator."""
        await self._ready(context)
        with self._noted(request.uuid, request.method, "stream", context):
            async for response in self._session.StreamingDriverCall(request, context):
                yield response

    async def Stream(self, request_iterator: Any, context: Any) -> None:
        """A byte stream of a driver, or a resource."""
        await self._ready(context)
        uuid, method = _wanted(context)
        if not method:  # a resource: the call that uses it is noted
            await self._session.Stream(request_iterator, context)
            return
        with self._noted(uuid, method, "bytes", context):
            await self._session.Stream(request_iterator, context)

    async def Hold(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Hold the session; answered when the exporter is ready."""
        await self._ready(context)
        async for response in self._session.Hold(request, context):
            yield response

    async def _ready(self, context: Any) -> None:
        session = self._session
        while session.status is ExporterStatus.BEFORE_LEASE_HOOK:
            await session.wait_status(*(status for status in ExporterStatus if status is not session.status))
        if session.status is not ExporterStatus.LEASE_READY:
            text = f"Exporter not ready for driver calls (status: {session.status.name})"
            message = session.status_message
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{text}: {message}" if message else text)

    @contextmanager
    def _noted(self, uuid: str, method: str, kind: str, context: Any) -> Iterator[None]:
        began, clock = time.time(), time.monotonic()
        code = "OK"
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            code = "CANCELLED"
            raise
        except BaseException:
            code = _name(context.code())
            raise
        finally:
            slot = self._session.slots().get(uuid)
            path = slot.path if slot is not None else uuid
            self._note(path, method, kind, began, time.monotonic() - clock, code)


def _name(code: Any) -> str:
    """Name of a status code; grpc.aio gives numbers as well as members."""
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next((each.name for each in grpc.StatusCode if each.value[0] == code), "UNKNOWN")


def _wanted(context: Any) -> tuple[str, str]:
    """Driver and method that a Stream call asks for; no method for a resource, or for what nobody understands."""
    for key, value in context.invocation_metadata() or ():
        if key == "request":
            try:
                wanted = json.loads(value)
            except ValueError:
                break
            if isinstance(wanted, dict) and wanted.get("kind") != "resource":
                return str(wanted.get("uuid", "")), str(wanted.get("method", "connect"))
    return "", ""
