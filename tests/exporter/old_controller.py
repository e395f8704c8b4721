# SPDX-License-Identifier: Apache-2.0
"""What an exporter sees of a Jumpstarter 0.9 controller and router, played by the test: no jumpstarter.lab services."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from controller_harness import LabFiles
from exporter_harness import until

from jumpstarter.common.enums import ExporterStatus
from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2, jumpstarter_pb2_grpc

FRAMES = "jumpstarter.v1.RouterService"


class _Calls(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Notes which methods are called."""

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    async def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        self._calls.append(details.method)
        return await continuation(details)


@dataclass
class OldController(jumpstarter_pb2_grpc.ControllerServiceServicer):
    """The servicer. assign: give the exporter to a lease, or to nobody. calls: methods that were called, by path."""

    endpoint: str
    calls: list[str] = field(default_factory=list)
    statuses: list[tuple[ExporterStatus, str]] = field(default_factory=list)
    reports: list[Any] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    #: How calls are refused: by method, code and text.
    refuse: dict[str, tuple[grpc.StatusCode, str]] = field(default_factory=dict)
    revoked: set[str] = field(default_factory=set)
    #: Streams that end as soon as they are opened.
    ending: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._assignment = jumpstarter_pb2.StatusResponse(leased=False)
        self._changed = asyncio.Event()
        self._broken = asyncio.Event()
        self._dials: dict[str, asyncio.Queue[str | None]] = {}
        self._parked: dict[str, tuple[Any, asyncio.Future[None]]] = {}
        self._tokens = 0

    def assign(self, lease: str | None, client: str = "alice", tell: bool = True) -> None:
        """Change who holds the exporter. tell: on streams that are open, too."""
        self._assignment = jumpstarter_pb2.StatusResponse(
            leased=lease is not None, lease_name=lease, client_name=client if lease else None
        )
        if tell:
            self._wake()

    def drop_status_streams(self) -> None:
        """Break the Status streams."""
        self._broken.set()
        self._wake()
        self._broken = asyncio.Event()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def count(self, method: str) -> int:
        """How often a method was called."""
        return sum(call.endswith(f"/{method}") for call in self.calls)

    async def dial(self) -> str:
        """As Dial: a token for the router, which the exporter gets as well."""
        dials = await until(lambda: self._dials.get(self._assignment.lease_name))
        self._tokens += 1
        dials.put_nowait(f"token-{self._tokens}")
        return f"token-{self._tokens}"

    async def _check(self, method: str, context: Any) -> None:
        token = dict(context.invocation_metadata())["authorization"].removeprefix("Bearer ")
        if token in self.revoked:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "this token has been revoked")
        if method in self.refuse:
            await context.abort(*self.refuse[method])

    # What the exporter calls -------------------------------------------------------------------------------------

    async def Register(self, request: Any, context: Any) -> Any:
        await self._check("Register", context)
        self.reports.append(request)
        return jumpstarter_pb2.RegisterResponse(uuid="8a6f0a4e-6f5f-4f0e-9d30-3f4b4c6ff001")

    async def Unregister(self, request: Any, context: Any) -> Any:
        return jumpstarter_pb2.UnregisterResponse()

    async def ReportStatus(self, request: Any, context: Any) -> Any:
        self.statuses.append((ExporterStatus.from_proto(request.status), request.message))
        if request.release_lease:
            self.released.append(f"by status: {self._assignment.lease_name}")
            self.assign(None)
        return jumpstarter_pb2.ReportStatusResponse()

    async def ReleaseLease(self, request: Any, context: Any) -> Any:
        await self._check("ReleaseLease", context)
        self.released.append(request.name)
        self.assign(None)
        return jumpstarter_pb2.ReleaseLeaseResponse()

    async def Status(self, request: Any, context: Any) -> AsyncIterator[Any]:
        broken, last = self._broken, None
        while not broken.is_set():
            changed = self._changed
            if self._assignment != last:
                last = self._assignment
                yield last
            if "Status" in self.ending:
                return
            await changed.wait()
        await context.abort(grpc.StatusCode.UNKNOWN, "watch channel closed")

    async def Listen(self, request: Any, context: Any) -> AsyncIterator[Any]:
        if "Listen" in self.ending:
            return
        if request.lease_name in self._dials:
            self._dials[request.lease_name].put_nowait(None)  # superseded
        dials = self._dials[request.lease_name] = asyncio.Queue()
        try:
            while (token := await dials.get()) is not None:
                yield jumpstarter_pb2.ListenResponse(router_endpoint=self.endpoint, router_token=token)
        finally:
            if self._dials.get(request.lease_name) is dials:
                del self._dials[request.lease_name]

    async def stream(self, _: Any, context: Any) -> None:
        """The router: pairs whoever shows the same token."""
        token = dict(context.invocation_metadata())["authorization"].removeprefix("Bearer ")
        if token not in self._parked:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._parked[token] = (context, done)
            try:
                await done
            finally:
                if not done.done():
                    done.set_result(None)
            return
        other, done = self._parked.pop(token)

        async def carry(source: Any, sink: Any) -> None:
            while (message := await source.read()) is not grpc.aio.EOF:
                await sink.write(message)

        ways = [asyncio.create_task(carry(context, other)), asyncio.create_task(carry(other, context))]
        try:
            await asyncio.wait([*ways, done], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            if not done.done():
                done.set_result(None)


@asynccontextmanager
async def old_controller(lab: LabFiles) -> AsyncIterator[OldController]:
    """Serve one at the lab's address, with the lab's certificate."""
    old = OldController(lab.endpoint)
    server = grpc.aio.server(interceptors=[_Calls(old.calls)])
    jumpstarter_pb2_grpc.add_ControllerServiceServicer_to_server(old, server)
    router = grpc.stream_stream_rpc_method_handler(old.stream)  # bytes in, bytes out
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(FRAMES, {"Stream": router}),))
    pair = ((lab.folder / "server.key").read_bytes(), (lab.folder / "server.crt").read_bytes())
    assert server.add_secure_port(lab.endpoint, grpc.ssl_server_credentials([pair]))
    await server.start()
    try:
        yield old
    finally:
        await server.stop(0)
