# SPDX-License-Identifier: Apache-2.0
"""Clients and exporters of the wire, without anything of ours in between: stubs, tokens and TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import yaml
from controller_harness import LabFiles
from google.protobuf.duration_pb2 import Duration

from jumpstarter.common.enums import ExporterStatus
from jumpstarter_controller.config import ControllerConfig
from jumpstarter_controller.server import RunningController, running_controller
from jumpstarter_protocol import client_pb2_grpc, jumpstarter_pb2_grpc
from jumpstarter_protocol.jumpstarter.client.v1 import client_pb2
from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2

HOME = "namespaces/default"
FRAMES = "/jumpstarter.v1.RouterService/Stream"


@asynccontextmanager
async def controller(lab: LabFiles) -> AsyncIterator[RunningController]:
    """A controller in this process."""
    async with running_controller(ControllerConfig.load(lab.config)) as running:
        lab.endpoint = running.endpoint
        yield running


class Peer:
    """One identity. kind: what it says it is."""

    def __init__(self, lab: LabFiles, config: Path, kind: str) -> None:
        data = yaml.safe_load(config.read_text())
        self.lab, self.name, self.token = lab, data["metadata"]["name"], data["token"]
        self.metadata = [
            ("jumpstarter-kind", kind),
            ("jumpstarter-namespace", "default"),
            ("jumpstarter-name", self.name),
        ]
        self.channel = self.open(self.token)
        self.controller = jumpstarter_pb2_grpc.ControllerServiceStub(self.channel)
        self.client = client_pb2_grpc.ClientServiceStub(self.channel)

    def open(self, token: str, endpoint: str | None = None) -> grpc.aio.Channel:
        """A channel that shows this token; to the controller, or to this endpoint."""
        credentials = grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(self.lab.ca), grpc.access_token_call_credentials(token)
        )
        return grpc.aio.secure_channel(endpoint or self.lab.endpoint, credentials)

    async def call(self, method: str, **fields: Any) -> Any:
        """A call of ControllerService."""
        request = getattr(jumpstarter_pb2, f"{method}Request")(**fields)
        return await getattr(self.controller, method)(request, metadata=self.metadata, timeout=60)

    async def ask(self, method: str, **fields: Any) -> Any:
        """A call of ClientService."""
        request = getattr(client_pb2, f"{method}Request")(**fields)
        return await getattr(self.client, method)(request, metadata=self.metadata, timeout=60)

    async def lease(self, selector: str = "board=x", seconds: float = 600, **fields: Any) -> Any:
        """Create a lease."""
        duration = Duration()
        duration.FromNanoseconds(round(seconds * 1e9))
        lease = client_pb2.Lease(selector=selector, duration=duration, **fields)
        return await self.ask("CreateLease", parent=HOME, lease=lease)

    @asynccontextmanager
    async def tunnel(self, token: str, endpoint: str | None = None) -> AsyncIterator[Any]:
        """One end of a tunnel: a call that takes and gives bytes."""
        async with self.open(token, endpoint) as channel:
            call = channel.stream_stream(FRAMES)()
            try:
                yield call
            finally:
                call.cancel()

    async def close(self) -> None:
        await self.channel.close()


class ExporterPeer(Peer):
    """An exporter that registers and holds its Status stream; `told` is what came on it."""

    def __init__(self, lab: LabFiles, config: Path) -> None:
        super().__init__(lab, config, "Exporter")
        self.told: asyncio.Queue[Any] = asyncio.Queue()
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Register, be available, watch; returns when the first Status message is there."""
        reports = [jumpstarter_pb2.DriverInstanceReport(uuid="root")]
        await self.call("Register", labels={"jumpstarter.dev/name": self.name, "mine": "no"}, reports=reports)
        await self.status(ExporterStatus.AVAILABLE)
        self._watch = asyncio.create_task(self._read())
        assert not (await self.next()).leased

    async def status(self, status: ExporterStatus, **fields: Any) -> None:
        """Report a status."""
        await self.call("ReportStatus", status=status.value, **fields)

    async def next(self) -> Any:
        """The next message of the Status stream."""
        async with asyncio.timeout(60):
            return await self.told.get()

    async def _read(self) -> None:
        stream = self.controller.Status(jumpstarter_pb2.StatusRequest(), metadata=self.metadata)
        async for message in stream:
            self.told.put_nowait(message)

    def listen(self, lease: str) -> Any:
        """A Listen call."""
        return self.controller.Listen(jumpstarter_pb2.ListenRequest(lease_name=lease), metadata=self.metadata)

    async def stop_watching(self) -> None:
        """Break the Status stream."""
        assert self._watch is not None
        self._watch.cancel()
        await asyncio.gather(self._watch, return_exceptions=True)

    async def close(self) -> None:
        if self._watch is not None:
            await self.stop_watching()
        await super().close()


@asynccontextmanager
async def lab_of(lab: LabFiles, *, exporters: int = 1, clients: int = 1) -> AsyncIterator[Any]:
    """A controller, exporters e0.. with board=x, clients c0..: (controller, exporters, clients)."""
    async with controller(lab) as running:
        boards = [ExporterPeer(lab, lab.exporter(f"e{i}", "-l", "board=x", "-l", f"n={i}")) for i in range(exporters)]
        people = [Peer(lab, lab.client(f"c{i}"), "Client") for i in range(clients)]
        try:
            for board in boards:
                await board.start()
            yield running, boards, people
        finally:
            for peer in [*boards, *people]:
                await peer.close()


def short(name: str) -> str:
    """The last part of a resource's name."""
    return name.rpartition("/")[2]


async def refusal(awaitable: Any) -> tuple[str, str]:
    """Code and text that a call is refused with."""
    try:
        await awaitable
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    raise AssertionError("the call was not refused")


async def refused_soon(ask: Callable[[], Awaitable[Any]]) -> tuple[str, str]:
    """What a call is refused with, once the controller knows of the reason: PostgreSQL tells it after the commit."""
    async with asyncio.timeout(60):
        while True:
            try:
                await ask()
            except grpc.aio.AioRpcError as error:
                return error.code().name, error.details() or ""


async def first(stream: Any) -> Any:
    """The first message of a stream. Raises the error that it ends with."""
    async for message in stream:
        return message
    raise AssertionError("the stream ended without a message")
