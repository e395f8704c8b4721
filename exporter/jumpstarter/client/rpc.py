# SPDX-License-Identifier: Apache-2.0
"""Calls of one driver over a connection: what every kind of client is made of.

`Connection` is a gRPC channel to an exporter with what was learned about the peer; `DriverRpc` calls one driver
through it, from the event loop (`call`, `stream`, ...) or straight from the caller's thread (`call_blocking`, ...).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import grpc
from google.protobuf import struct_pb2

from jumpstarter.common.exceptions import (
    DriverError,
    DriverInvalidArgument,
    DriverMethodNotImplemented,
    ExporterGoneError,
    ExporterNotReady,
)
from jumpstarter.common.grpc import Target
from jumpstarter.common.serde import CODEC_HEADER, CODEC_JSON, decode_json, decode_value, encode_json, encode_value
from jumpstarter.streams.frames import decode_frame, encode_frame
from jumpstarter.streams.router import STREAM_METHOD, RouterStream
from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2, jumpstarter_pb2_grpc

__all__ = ["Connection", "DriverRpc"]

_ERROR_HEADER = "x-jumpstarter-lab-error"
_SERVICE = "/jumpstarter.v1.ExporterService"


class Connection:
    """An exporter reached over one gRPC channel.

    channel: grpc.aio channel. open_blocking: makes a blocking channel to the same exporter; without it blocking calls
    go through the event loop. where: how messages name the exporter. metadata: sent with every call.
    lab: the peer speaks jumpstarter.lab.v1, so typed values and keyword arguments travel.
    direct: the exporter's address when bulk data may travel there on a connection of its own, because this one is not
    encrypted either (a unix socket, or TCP that was declared insecure); None otherwise.
    """

    def __init__(
        self,
        channel: Any,
        *,
        open_blocking: Callable[[], grpc.Channel] | None = None,
        where: str = "the exporter",
        metadata: Sequence[tuple[str, str]] = (),
        direct: Target | None = None,
    ) -> None:
        self.channel = channel
        self.direct = direct
        self.where = where
        self.lab = False
        self._open_blocking = open_blocking
        self._blocking: grpc.Channel | None = None
        self._metadata = tuple(metadata)
        self.stub = jumpstarter_pb2_grpc.ExporterServiceStub(channel)
        self.streams = channel.stream_stream(
            STREAM_METHOD, request_serializer=encode_frame, response_deserializer=decode_frame
        )
        self._blocking_call: Any = None
        self._blocking_stream: Any = None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata for calls."""
        return self._metadata

    def learn(self, lab: bool) -> None:
        """Note what the peer said about itself."""
        if lab and not self.lab:
            self.lab = True
            self._metadata = (*self._metadata, (CODEC_HEADER, CODEC_JSON))

    def blocking(self) -> tuple[Any, Any] | None:
        """Blocking DriverCall and StreamingDriverCall, or None where only the event loop can call."""
        if self._blocking_call is None:
            if self._open_blocking is None:
                return None
            self._blocking = self._open_blocking()
            # Two methods by hand: a whole blocking stub would make ten.
            self._blocking_call = self._blocking.unary_unary(
                f"{_SERVICE}/DriverCall",
                request_serializer=jumpstarter_pb2.DriverCallRequest.SerializeToString,
                response_deserializer=jumpstarter_pb2.DriverCallResponse.FromString,
            )
            self._blocking_stream = self._blocking.unary_stream(
                f"{_SERVICE}/StreamingDriverCall",
                request_serializer=jumpstarter_pb2.StreamingDriverCallRequest.SerializeToString,
                response_deserializer=jumpstarter_pb2.StreamingDriverCallResponse.FromString,
            )
        return self._blocking_call, self._blocking_stream

    async def aclose(self) -> None:
        """Close the channels."""
        if self._blocking is not None:
            self._blocking.close()
        await self.channel.close()


def _rpc_error(error: grpc.RpcError, where: str, driver: str, method: str) -> DriverError:
    """The exception that stands for a failed call."""
    code = error.code()
    details = error.details() or ""
    described = False
    metadata: Any = error.trailing_metadata() or ()
    for key, value in metadata:
        if key == _ERROR_HEADER:
            try:
                known = json.loads(value)
            except ValueError:
                break
            driver = known.get("driver") or driver
            described = True
    name = f"{driver}.{method}" if driver else method
    message = details if details.startswith((f"{name}:", f"{driver}:")) else f"{name}: {details}"
    fields: dict[str, Any] = {"code": code.name, "driver": driver, "method": method, "details": details}
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return ExporterNotReady(message, **fields)
    if code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED):
        return DriverMethodNotImplemented(message, **fields)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return DriverInvalidArgument(message, **fields)
    if code is grpc.StatusCode.UNAVAILABLE and not described:
        return ExporterGoneError(f"{name}: {where} went away: {details or 'connection lost'}", **fields)
    return DriverError(message, **fields)


class DriverRpc:
    """Calls of one driver. path: dotted path for messages and errors."""

    __slots__ = ("connection", "path", "uuid")

    def __init__(self, connection: Connection, uuid: str, path: str) -> None:
        self.connection = connection
        self.uuid = uuid
        self.path = path

    def _values(self, method: str, args: Sequence[Any], kwargs: dict[str, Any]) -> list[struct_pb2.Value]:
        name = f"{self.path}.{method}" if self.path else method
        try:
            if self.connection.lab:
                if not args and not kwargs:
                    return []
                message = {"a": args, "k": kwargs} if kwargs else {"a": args}
                return [struct_pb2.Value(string_value=encode_json(message))]
            if kwargs:
                raise ValueError(
                    f"{self.connection.where} speaks Jumpstarter 0.9 and takes positional arguments only, "
                    f"got {', '.join(kwargs)}"
                )
            return [encode_value(arg) for arg in args]
        except ValueError as error:
            raise DriverInvalidArgument(
                f"{name}: {error}", code="INVALID_ARGUMENT", driver=self.path, method=method, details=str(error)
            ) from error

    def _result(self, value: struct_pb2.Value) -> Any:
        return decode_json(value.string_value) if self.connection.lab else decode_value(value)

    def _error(self, error: grpc.RpcError, method: str) -> DriverError:
        return _rpc_error(error, self.connection.where, self.path, method)

    def _request(self, method: str, args: Sequence[Any], kwargs: dict[str, Any]) -> jumpstarter_pb2.DriverCallRequest:
        return jumpstarter_pb2.DriverCallRequest(uuid=self.uuid, method=method, args=self._values(method, args, kwargs))

    # In the event loop -----------------------------------------------------------------------------------------

    async def call(self, method: str, args: Sequence[Any], kwargs: dict[str, Any], timeout: float | None = None) -> Any:
        """One call of an exported method."""
        request = self._request(method, args, kwargs)
        connection = self.connection
        try:
            response = await connection.stub.DriverCall(request, metadata=connection.metadata, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise self._error(error, method) from None
        return self._result(response.result)

    async def streamingcall(self, method: str, args: Sequence[Any], kwargs: dict[str, Any]) -> AsyncIterator[Any]:
        """One call of an exported generator."""
        request = jumpstarter_pb2.StreamingDriverCallRequest(
            uuid=self.uuid, method=method, args=self._values(method, args, kwargs)
        )
        connection = self.connection
        call = connection.stub.StreamingDriverCall(request, metadata=connection.metadata)
        try:
            async for response in call:
                yield self._result(response.result)
        except grpc.aio.AioRpcError as error:
            raise self._error(error, method) from None
        finally:
            call.cancel()

    async def _open(self, request: dict[str, Any], method: str) -> tuple[Any, dict[str, str]]:
        metadata = (*self.connection.metadata, ("request", json.dumps(request)))
        call = self.connection.streams(metadata=metadata)
        try:
            initial = await call.initial_metadata()
            # An error before the stream opened arrives as status, not as exception.
            if call.done():
                await _raise_status(call)
        except grpc.aio.AioRpcError as error:
            raise self._error(error, method) from None
        except BaseException:
            call.cancel()
            raise
        return call, dict(initial or ())

    @asynccontextmanager
    async def stream(self, method: str = "connect") -> AsyncIterator[RouterStream]:
        """Open a byte stream of the driver."""
        call, metadata = await self._open({"kind": "driver", "uuid": self.uuid, "method": method}, method)
        stream = _ClientStream(call, self, method, metadata)
        try:
            yield stream
        finally:
            with anyio.CancelScope(shield=True):
                await stream.aclose()

    @asynccontextmanager
    async def resource_stream(self, encoding: str | None = None) -> AsyncIterator[tuple[RouterStream, dict[str, Any]]]:
        """Open a resource: yields our end of it and the handle for the call that shall use it."""
        request = {"kind": "resource", "uuid": self.uuid, "x_jmp_content_encoding": encoding}
        call, metadata = await self._open(request, "resource")
        stream = _ClientStream(call, self, "resource", metadata)
        try:
            handle: dict[str, Any] = json.loads(metadata["resource"])
            accepted = metadata.get("x_jmp_accept_encoding", "")
            if encoding and accepted != encoding:
                raise DriverError(
                    f"{self.connection.where} does not take {encoding} data for {self.path}; send it uncompressed",
                    driver=self.path,
                    method="resource",
                )
            yield stream, handle
        finally:
            with anyio.CancelScope(shield=True):
                await stream.aclose()

    @asynccontextmanager
    async def resource(self, source: Any, encoding: str | None = None) -> AsyncIterator[dict[str, Any]]:
        """Lend a byte stream to the driver while the context is open; yields the handle to pass to a call."""
        from jumpstarter.streams.common import forward_stream

        async with self.resource_stream(encoding) as (stream, handle), forward_stream(stream, source):
            yield handle

    # In the caller's thread ------------------------------------------------------------------------------------

    def call_blocking(self, method: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """`call` without event loop. Only where `Connection.blocking` is available."""
        blocking = self.connection.blocking()
        assert blocking is not None
        request = self._request(method, args, kwargs)
        try:
            response = blocking[0](request, metadata=self.connection.metadata)
        except grpc.RpcError as error:
            raise self._error(error, method) from None
        return self._result(response.result)

    def streamingcall_blocking(self, method: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Any]:
        """`streamingcall` without event loop."""
        blocking = self.connection.blocking()
        assert blocking is not None
        request = jumpstarter_pb2.StreamingDriverCallRequest(
            uuid=self.uuid, method=method, args=self._values(method, args, kwargs)
        )
        call = blocking[1](request, metadata=self.connection.metadata)
        try:
            for response in call:
                yield self._result(response.result)
        except grpc.RpcError as error:
            raise self._error(error, method) from None
        finally:
            call.cancel()


async def _raise_status(call: Any) -> None:
    code = await call.code()
    if code is not grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(
            code, await call.initial_metadata(), await call.trailing_metadata(), await call.details()
        )


class _ClientStream(RouterStream):
    """The client's end; a stream the exporter refused or broke says why."""

    def __init__(self, call: Any, rpc: DriverRpc, method: str, metadata: dict[str, str]) -> None:
        super().__init__(call)
        self._rpc = rpc
        self._method = method
        self.metadata = metadata

    async def error(self) -> DriverError | None:
        """Why the exporter ended the call, or None while it runs or when it ended well."""
        call: Any = self._call
        if not call.done():
            return None
        code = await call.code()
        if code in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED) or (
            # A 0.9 exporter ends every stream so.
            code is grpc.StatusCode.ABORTED and "aclose" in (await call.details() or "")
        ):
            return None
        error = grpc.aio.AioRpcError(
            code, await call.initial_metadata(), await call.trailing_metadata(), await call.details()
        )
        return self._rpc._error(error, self._method)
