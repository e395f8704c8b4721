# SPDX-License-Identifier: Apache-2.0
"""An exporter's driver tree for code that lives in an event loop. No client classes are imported.

async with connect("/run/exporter.sock") as session:
    await session.node("power").call("on")
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import grpc
from google.protobuf import empty_pb2

from jumpstarter.client.rpc import Connection, DriverRpc
from jumpstarter.common.enums import ExporterStatus
from jumpstarter.common.exceptions import (
    ConnectionError,
    DriverNotFound,
    ExporterNotReady,
    ExporterRefusedError,
    ExporterUnreachableError,
    JumpstarterException,
)
from jumpstarter.common.grpc import PASSPHRASE_HEADER, TLS, Target, channel_options
from jumpstarter.streams.router import RouterStream
from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2

__all__ = ["AsyncNode", "MethodInfo", "Parameter", "RemoteSession", "connect", "open_connection"]

LAB_HEADER = "x-jumpstarter-lab"
_KINDS: dict[int, Literal["call", "stream", "bytes"]] = {1: "call", 2: "stream", 3: "bytes"}


@dataclass(frozen=True)
class Parameter:
    """A parameter of an exported method. type: as Python writes it. default: None when required."""

    name: str
    type: str
    required: bool
    default: Any = None


@dataclass(frozen=True)
class MethodInfo:
    """An exported method. readonly: it changes nothing on the device."""

    name: str
    kind: Literal["call", "stream", "bytes"]
    readonly: bool
    params: tuple[Parameter, ...]
    doc: str
    returns: str

    def __str__(self) -> str:
        params = ", ".join(
            f"{p.name}: {p.type}" + ("" if p.required or p.name.startswith("*") else f" = {p.default!r}")
            for p in self.params
        )
        return f"{self.name}({params}) -> {self.returns}"


@dataclass(eq=False)
class AsyncNode:
    """One driver of an exporter.

    path: dotted path from the root, empty for the root itself. methods: by name; None when the peer does not describe
    its drivers (Jumpstarter 0.9).
    """

    path: str
    name: str
    uuid: str
    labels: dict[str, str]
    description: str
    rpc: DriverRpc
    parent: AsyncNode | None = None
    children: dict[str, AsyncNode] = field(default_factory=dict)
    driver_type: str = ""
    methods: dict[str, MethodInfo] | None = None
    methods_description: dict[str, str] = field(default_factory=dict)

    @property
    def client_class(self) -> str:
        """Dotted path of the client class the exporter names."""
        return self.labels.get("jumpstarter.dev/client", "")

    def has_method(self, name: str) -> bool:
        """True when the exporter describes such a method; False for every method of a 0.9 peer."""
        return self.methods is not None and name in self.methods

    def walk(self) -> Iterator[AsyncNode]:
        """This node and all below it."""
        yield self
        for child in self.children.values():
            yield from child.walk()

    async def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Invoke a driver call. Raises `DriverError` and its subclasses."""
        return await self.rpc.call(method, args, kwargs)

    async def streamingcall(self, method: str, /, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Invoke a streaming driver call."""
        async for item in self.rpc.streamingcall(method, args, kwargs):
            yield item

    def stream(self, method: str = "connect") -> AbstractAsyncContextManager[RouterStream]:
        """Open a byte stream."""
        return self.rpc.stream(method)

    def resource_stream(
        self, encoding: str | None = None
    ) -> AbstractAsyncContextManager[tuple[RouterStream, dict[str, Any]]]:
        """Open a resource; yields our end and the handle."""
        return self.rpc.resource_stream(encoding)

    def resource(self, source: Any, encoding: str | None = None) -> AbstractAsyncContextManager[dict[str, Any]]:
        """Lend an anyio byte stream to a driver call; yields the handle."""
        return self.rpc.resource(source, encoding)


class RemoteSession:
    """A connected exporter."""

    def __init__(self, connection: Connection, report: jumpstarter_pb2.GetReportResponse) -> None:
        self.connection = connection
        self.uuid: str = report.uuid
        self.labels = dict(report.labels)
        self.motd: str = report.motd
        self.report = report
        self.nodes: dict[str, AsyncNode] = {}
        self.root = self._build(report)

    @property
    def lab(self) -> bool:
        """The exporter speaks jumpstarter.lab.v1."""
        return self.connection.lab

    @property
    def name(self) -> str:
        """The exporter's name, or empty."""
        return self.labels.get("jumpstarter.dev/name", "")

    def _build(self, report: jumpstarter_pb2.GetReportResponse) -> AsyncNode:
        last: dict[str, AsyncNode] = {}
        root: AsyncNode | None = None
        for entry in report.reports:
            parent = last.get(entry.parent_uuid) if entry.parent_uuid else None
            name = entry.labels.get("jumpstarter.dev/name", "")
            path = f"{parent.path}.{name}" if parent is not None and parent.path else name
            node = AsyncNode(
                path=path,
                name=name,
                uuid=entry.uuid,
                labels=dict(entry.labels),
                description=entry.description,
                rpc=DriverRpc(self.connection, entry.uuid, path),
                parent=parent,
                methods_description=dict(entry.methods_description),
            )
            # An alias (Proxy) reports its target again; what follows below it belongs to the latest one.
            last[entry.uuid] = node
            self.nodes[path] = node
            if parent is not None:
                parent.children[name] = node
            elif root is None:
                root = node
        if root is None:
            raise JumpstarterException(f"{self.connection.where} reports no drivers")
        return root

    def node(self, path: str) -> AsyncNode:
        """The driver at a dotted path. Raises `DriverNotFound` with the paths there are."""
        try:
            return self.nodes[path]
        except KeyError:
            paths = sorted(p for p in self.nodes if p)
            raise DriverNotFound(
                f'{self.connection.where} has no driver "{path}"; it has: {", ".join(paths) or "none"}',
                path=path,
                paths=paths,
            ) from None

    async def describe(self) -> None:
        """Fill in what the exporter tells about methods; does nothing for a 0.9 peer."""
        if not self.lab:
            return
        from jumpstarter_protocol.jumpstarter.lab.v1 import lab_pb2, lab_pb2_grpc

        stub = lab_pb2_grpc.LabServiceStub(self.connection.channel)
        self.describe_from(await stub.Describe(lab_pb2.DescribeRequest(), metadata=self.connection.metadata))

    def describe_from(self, answer: Any) -> None:
        """Fill in methods from a DescribeResponse."""
        known = {d.uuid: d for d in answer.drivers}
        for node in self.nodes.values():
            described = known.get(node.uuid)
            if described is None:
                continue
            node.driver_type = described.driver_type
            node.methods = {m.name: _method(m) for m in described.methods}

    @asynccontextmanager
    async def hold(self, holder: str) -> AsyncIterator[None]:
        """Hold the exporter's session while the context is open.

        When it closes, or this process ends, the exporter switches off what was switched on and resets its drivers.
        Raises `ExporterNotReady` naming the holder when somebody else holds it. Does nothing on a 0.9 peer.
        """
        if not self.lab:
            yield
            return
        from jumpstarter_protocol.jumpstarter.lab.v1 import lab_pb2, lab_pb2_grpc

        stub = lab_pb2_grpc.LabServiceStub(self.connection.channel)
        call = stub.Hold(lab_pb2.HoldRequest(holder=holder), metadata=self.connection.metadata)
        try:
            try:
                first = await call.read()
            except grpc.aio.AioRpcError as error:
                raise _held(error, self.connection.where) from None
            if first is grpc.aio.EOF:
                raise ConnectionError(f"{self.connection.where} ended the session as soon as it was held")
            yield
        finally:
            call.cancel()

    async def status(self) -> tuple[ExporterStatus, str]:
        """Present status and its message. A peer too old to tell is ready."""
        try:
            answer = await self.connection.stub.GetStatus(
                jumpstarter_pb2.GetStatusRequest(), metadata=self.connection.metadata
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return ExporterStatus.LEASE_READY, ""
            raise ConnectionError(f"{self.connection.where} went away: {error.details()}") from None
        return ExporterStatus.from_proto(answer.status), answer.message

    async def logs(self) -> AsyncIterator[jumpstarter_pb2.LogStreamResponse]:
        """Log lines of the exporter, until it goes away."""
        call = self.connection.stub.LogStream(empty_pb2.Empty(), metadata=self.connection.metadata)
        try:
            async for entry in call:
                yield entry
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE):
                raise ConnectionError(f"log stream of {self.connection.where}: {error.details()}") from None
        finally:
            call.cancel()


def _held(error: grpc.aio.AioRpcError, where: str) -> JumpstarterException:
    if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
        return ExporterNotReady(error.details() or "held by somebody else", code="FAILED_PRECONDITION")
    return ConnectionError(f"{where} went away: {error.details()}")


def _method(described: Any) -> MethodInfo:
    return MethodInfo(
        name=described.name,
        kind=_KINDS.get(described.kind, "call"),
        readonly=described.readonly,
        params=tuple(
            Parameter(p.name, p.type, p.required, json.loads(p.default) if p.default else None)
            for p in described.params
        ),
        doc=described.doc,
        returns=described.returns,
    )


def open_connection(
    target: str,
    *,
    tls: TLS | None = None,
    insecure: bool = False,
    passphrase: str | None = None,
    grpc_options: dict[str, str | int] | None = None,
) -> Connection:
    """A connection to a unix socket or host:port. Nothing is sent yet. Needs a running event loop."""
    where = Target.parse(target)
    options = channel_options(grpc_options)
    return Connection(
        where.open(grpc.aio, tls, insecure, options),
        open_blocking=lambda: where.open(grpc, tls, insecure, options),
        where=f"the exporter at {where.address}",
        metadata=((PASSPHRASE_HEADER, passphrase),) if passphrase and not where.is_unix else (),
        direct=where if where.is_unix or insecure else None,
    )


async def fetch_report(connection: Connection, timeout: float = 30) -> jumpstarter_pb2.GetReportResponse:
    """The exporter's report; notes whether the peer is one of ours. timeout: seconds.

    Raises `ExporterUnreachableError` when nobody answers, `ConnectionError` when the answer is a refusal.
    """
    call = connection.stub.GetReport(empty_pb2.Empty(), metadata=connection.metadata, timeout=timeout)
    try:
        report: jumpstarter_pb2.GetReportResponse = await call
    except grpc.aio.AioRpcError as error:
        raise report_error(error, connection.where) from None
    learn_from(connection, await call.initial_metadata())
    return report


def report_error(error: Any, where: str) -> JumpstarterException:
    """The exception for a GetReport that failed."""
    code, details = error.code(), error.details()
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return ExporterUnreachableError(f"{where} does not answer: {details}")
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return ExporterRefusedError(f"{where} refused us: {details}")
    return ConnectionError(f"{where}: {code.name}: {details}")


def learn_from(connection: Connection, metadata: Any) -> None:
    """Note, from the initial metadata of GetReport's answer, whether the peer is one of ours."""
    for key, value in metadata or ():
        if key == LAB_HEADER and str(value).startswith("v1") and "codec=json1" in str(value):
            connection.learn(lab=True)


@asynccontextmanager
async def connect(
    target: str,
    *,
    tls: TLS | None = None,
    insecure: bool = False,
    passphrase: str | None = None,
    grpc_options: dict[str, str | int] | None = None,
    timeout: float = 30,
) -> AsyncIterator[RemoteSession]:
    """Connect to an exporter: a unix socket's path or ``host:port``.

    TCP is TLS (``tls`` names authority and own certificate) unless ``insecure``. timeout: seconds for the first answer.
    """
    connection = open_connection(target, tls=tls, insecure=insecure, passphrase=passphrase, grpc_options=grpc_options)
    try:
        session = RemoteSession(connection, await fetch_report(connection, timeout))
        await session.describe()
        yield session
    finally:
        await connection.aclose()
