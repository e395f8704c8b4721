# SPDX-License-Identifier: Apache-2.0
"""The part of a driver client that lives in the event loop."""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import grpc
from google.protobuf import empty_pb2

from jumpstarter.client.rpc import Connection, DriverRpc
from jumpstarter.common.enums import ExporterStatus, LogSource
from jumpstarter.common.exceptions import DriverInvalidArgument
from jumpstarter.common.metadata import Metadata
from jumpstarter.streams.router import RouterStream
from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2

__all__ = ["AsyncDriverClient"]


@dataclass(kw_only=True)
class AsyncDriverClient(Metadata):
    """Base of all driver clients.

    stub: the ExporterService stub. connection: how calls travel. path: dotted path of the driver, empty for the root.
    methods: names and descriptions of the exported methods, None for a 0.9 peer.
    interface: class whose signatures this client follows; keyword arguments are bound against it.
    """

    interface: ClassVar[type | None] = None

    stub: Any = None
    connection: Connection | None = field(default=None, repr=False)
    path: str = ""
    log_level: str = "INFO"
    description: str | None = None
    methods_description: dict[str, str] = field(default_factory=dict)
    methods: dict[str, Any] | None = field(default=None, repr=False)
    logger: logging.Logger = field(init=False, repr=False)
    rpc: DriverRpc = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parent = getattr(super(), "__post_init__", None)
        if parent is not None:
            parent()
        self.logger = logging.getLogger(type(self).__name__)
        self.logger.setLevel(self.log_level)
        if self.connection is None:
            name = type(self).__name__
            raise TypeError(f"{name} needs a connection: clients come from client_from_path() or serve()")
        self.rpc = DriverRpc(self.connection, str(self.uuid), self.path)

    def has_method(self, name: str) -> bool:
        """True when the exporter describes such a method; False for every method of a 0.9 peer."""
        return self.methods is not None and name in self.methods

    def _bind(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Turn keyword arguments into positional ones, as far as the interface is known here."""
        function = getattr(self.interface, method, None) if self.interface is not None else None
        if not kwargs or function is None:
            return args, kwargs
        try:
            bound = inspect.signature(function).bind(self, *args, **kwargs)
        except TypeError as error:
            raise DriverInvalidArgument(
                f"{self.path}.{method}: {error}", driver=self.path, method=method, details=str(error)
            ) from None
        bound.apply_defaults()
        return bound.args[1:], bound.kwargs

    async def call_async(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Invoke a driver call from the event loop."""
        return await self.rpc.call(method, *self._bind(method, args, kwargs))

    async def streamingcall_async(self, method: str, /, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """Invoke a streaming driver call from the event loop."""
        async for item in self.rpc.streamingcall(method, *self._bind(method, args, kwargs)):
            yield item

    @asynccontextmanager
    async def stream_async(self, method: str = "connect") -> AsyncIterator[RouterStream]:
        """Open a byte stream of the driver."""
        async with self.rpc.stream(method) as stream:
            yield stream

    @asynccontextmanager
    async def resource_async(self, stream: Any, content_encoding: str | None = None) -> AsyncIterator[dict[str, Any]]:
        """Lend ``stream`` (an anyio byte or object stream) to the driver; yields the handle to pass to a call.

        content_encoding: gzip, xz, bz2 or zstd when the stream's bytes are compressed so; the driver sees plain ones.
        """
        async with self.rpc.resource(stream, content_encoding) as handle:
            yield handle

    async def get_status_async(self) -> ExporterStatus | None:
        """Status of the exporter, None when it is too old to tell."""
        try:
            answer = await self.stub.GetStatus(jumpstarter_pb2.GetStatusRequest(), metadata=self._metadata())
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return None
            raise
        return ExporterStatus.from_proto(answer.status)

    async def end_session_async(self) -> bool:
        """Ask the exporter to end the session; True when it will."""
        answer = await self.stub.EndSession(jumpstarter_pb2.EndSessionRequest(), metadata=self._metadata())
        return bool(answer.success)

    @asynccontextmanager
    async def log_stream_async(self, show_all_logs: bool = True) -> AsyncIterator[None]:
        """Pass the exporter's log lines to the loggers ``exporter:*`` of this process while the context is open.

        Hook output is always passed on; lines of drivers and of the exporter itself only with ``show_all_logs``.
        """
        import anyio

        async with anyio.create_task_group() as tg:
            tg.start_soon(self._follow_logs, show_all_logs)
            try:
                yield
            finally:
                tg.cancel_scope.cancel()

    async def _follow_logs(self, show_all_logs: bool) -> None:
        loggers = {
            LogSource.BEFORE_LEASE_HOOK: logging.getLogger("exporter:beforeLease"),
            LogSource.AFTER_LEASE_HOOK: logging.getLogger("exporter:afterLease"),
            LogSource.DRIVER: logging.getLogger("exporter:driver"),
        }
        system = logging.getLogger("exporter:system")
        hooks = (LogSource.BEFORE_LEASE_HOOK, LogSource.AFTER_LEASE_HOOK)
        call = self.stub.LogStream(empty_pb2.Empty(), metadata=self._metadata())
        try:
            async for entry in call:
                source = LogSource.from_proto(entry.source)
                if show_all_logs or source in hooks:
                    level = logging.getLevelNamesMapping().get(entry.severity, logging.INFO)
                    loggers.get(source, system).log(level, "%s", entry.message)
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNIMPLEMENTED):
                self.logger.warning("the exporter's log stream ended: %s", error.details())
        finally:
            call.cancel()

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return self.rpc.connection.metadata
