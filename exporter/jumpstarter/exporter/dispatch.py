# SPDX-License-Identifier: Apache-2.0
"""From a driver call on the wire to the method of a driver instance, and back.

Rules that hold for every driver:

* Unary calls of one instance run one after the other, unless the method is exported as concurrent or readonly.
* Plain functions and generators run in worker threads, coroutines and async generators in the event loop. Nothing a
  driver does in a plain function can hold up other clients.
* A caller that goes away cancels coroutines at once; a plain function sees `call_cancelled()`, and its turn ends when
  it returns.
* Errors keep type, message and the driver's path: gRPC status by the exception's class, the rest in the trailing
  metadata ``x-jumpstarter-lab-error`` (0.9 peers ignore it).
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import logging
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import struct_pb2

from jumpstarter.common.exceptions import DriverError
from jumpstarter.common.extras import install_command_for
from jumpstarter.common.serde import CODEC_HEADER, CODEC_JSON, decode_json, decode_value, encode_json, encode_value
from jumpstarter.driver.base import Driver
from jumpstarter.driver.cancellation import CANCELLED
from jumpstarter.driver.decorators import ExportMark, mark_of
from jumpstarter.driver.signature import Signature, signature_of
from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2

__all__ = ["ERROR_HEADER", "CallError", "DriverSlot", "Exported", "exported_methods", "status_of"]

ERROR_HEADER = "x-jumpstarter-lab-error"

logger = logging.getLogger(__name__)

#: Items of a plain generator that wait for the client; the generator's thread pauses beyond.
_GENERATOR_AHEAD = 64


class CallError(Exception):
    """A call that ends with a gRPC status."""

    def __init__(self, code: grpc.StatusCode, details: str, *, kind: str = "", operation: str = "") -> None:
        super().__init__(details)
        self.code = code
        self.details = details
        self.kind = kind
        self.operation = operation


@dataclass(frozen=True)
class Exported:
    """One exported method of a driver class."""

    name: str
    mark: ExportMark
    function: Callable[..., Any]
    signature: Signature | None
    is_async: bool


def exported_methods(cls: type[Driver]) -> dict[str, Exported]:
    """The exported methods of a driver class by name."""
    cached = cls.__dict__.get("_jumpstarter_exported")
    if cached is not None:
        result: dict[str, Exported] = cached
        return result
    methods: dict[str, Exported] = {}
    for name in dir(cls):
        if name.startswith("__"):
            continue
        function = inspect.getattr_static(cls, name)
        mark = mark_of(function)
        if mark is None:
            continue
        inner = inspect.unwrap(function)
        methods[name] = Exported(
            name=name,
            mark=mark,
            function=function,
            signature=None if mark.kind == "bytes" else signature_of(function),
            is_async=inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner),
        )
    cls._jumpstarter_exported = methods  # type: ignore[attr-defined]
    return methods


def status_of(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """gRPC status and operation result (for logs) that an exception of a driver stands for."""
    if isinstance(error, CallError):
        return error.code, error.operation or "error"
    if isinstance(error, DriverError) and error.code in grpc.StatusCode.__members__:
        return grpc.StatusCode[error.code], "driver_error"
    if isinstance(error, NotImplementedError):
        return grpc.StatusCode.UNIMPLEMENTED, "not_implemented"
    if isinstance(error, ValueError):
        return grpc.StatusCode.INVALID_ARGUMENT, "validation_error"
    if isinstance(error, TimeoutError):
        return grpc.StatusCode.DEADLINE_EXCEEDED, "timeout"
    if isinstance(error, ConnectionError):
        return grpc.StatusCode.UNAVAILABLE, "connection_error"
    if isinstance(error, OSError):
        return grpc.StatusCode.INTERNAL, "device_error"
    if isinstance(error, ImportError):
        return grpc.StatusCode.INTERNAL, "missing_dependency"
    return grpc.StatusCode.UNKNOWN, "internal_error"


def details_of(error: BaseException) -> str:
    """What an exception of a driver says, with the way to mend it where one is known."""
    text = str(error).strip() or type(error).__name__
    command = install_command_for(error) if isinstance(error, ImportError) and "pip install" not in text else ""
    return f"{text}; on the exporter host: {command}" if command else text


class DriverSlot:
    """A driver instance of a session with what calling it needs."""

    def __init__(self, driver: Driver, path: str, executor: ThreadPoolExecutor) -> None:
        self.driver = driver
        self.path = path
        self.methods = exported_methods(type(driver))
        self._executor = executor
        self._turn = asyncio.Lock()

    @property
    def where(self) -> str:
        """The driver as error messages name it."""
        return f'driver "{self.path}"' if self.path else "the root driver"

    def method(self, name: str, kind: str) -> Exported:
        """The exported method. Raises CallError NOT_FOUND when there is none of that name and kind."""
        exported = self.methods.get(name)
        if exported is None:
            dynamic = getattr(self.driver, name, None) if not name.startswith("_") else None
            mark = mark_of(dynamic)
            if mark is not None and dynamic is not None:  # methods a driver delegates or makes at run time
                function = getattr(dynamic, "__func__", dynamic)
                inner = inspect.unwrap(function)
                is_async = inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner)
                exported = Exported(name, mark, function, None, is_async)
        if exported is None or exported.mark.kind != kind:
            have = sorted(n for n, m in self.methods.items() if m.mark.kind == kind)
            what = {"call": "method", "stream": "streaming method", "bytes": "byte stream"}[kind]
            raise CallError(
                grpc.StatusCode.NOT_FOUND,
                f'{self.where} ({type(self.driver).__name__}) has no {what} "{name}"; '
                f"it has: {', '.join(have) or 'none'}",
                kind="NotFound",
            )
        return exported

    async def call(self, request: jumpstarter_pb2.DriverCallRequest, json_codec: bool) -> struct_pb2.Value:
        """Run a unary call and return its encoded result."""
        exported = self.method(request.method, "call")
        args, kwargs = self._arguments(exported, request.args, json_codec)
        started = time.monotonic()
        try:
            if exported.mark.concurrent:
                result = await self._run(exported, args, kwargs, None)
            else:
                await self._turn.acquire()
                result = await self._run(exported, args, kwargs, self._turn)
            value = _encode(result, json_codec)
        except BaseException as error:
            self._log(exported.name, error, started)
            raise
        self._log(exported.name, None, started)
        return value

    async def _run(self, exported: Exported, args: Any, kwargs: Any, turn: asyncio.Lock | None) -> Any:
        if exported.is_async:
            try:
                return await self._bound(exported)(*args, **kwargs)
            finally:
                if turn is not None:
                    turn.release()
        event = threading.Event()
        context = contextvars.copy_context()
        context.run(CANCELLED.set, event)
        future = asyncio.get_running_loop().run_in_executor(
            self._executor, lambda: context.run(self._bound(exported), *args, **kwargs)
        )
        if turn is not None:
            # The turn lasts as long as the thread, also when the caller does not wait for it.
            future.add_done_callback(lambda _: turn.release())
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            event.set()
            future.add_done_callback(lambda f: f.cancelled() or f.exception())  # nobody is left to be told
            raise

    def _bound(self, exported: Exported) -> Callable[..., Any]:
        bound: Callable[..., Any] = getattr(self.driver, exported.name)
        return bound

    def _arguments(self, exported: Exported, values: Any, json_codec: bool) -> tuple[Any, dict[str, Any]]:
        kwargs: dict[str, Any] = {}
        try:
            if json_codec:
                message = decode_json(values[0].string_value) if values else {}
                args, kwargs = message.get("a", []), message.get("k", {})
            else:
                args = [decode_value(value) for value in values]
            if exported.signature is not None:
                args, kwargs = exported.signature.bind(args, kwargs)
        except (ValueError, AttributeError, TypeError) as error:
            where = f"{self.path}.{exported.name}" if self.path else exported.name
            raise CallError(
                grpc.StatusCode.INVALID_ARGUMENT, f"{where}: {details_of(error)}", kind="ValueError"
            ) from error
        return args, kwargs

    async def stream(
        self, request: jumpstarter_pb2.StreamingDriverCallRequest, json_codec: bool
    ) -> AsyncIterator[struct_pb2.Value]:
        """Run a streaming call and yield its encoded results."""
        exported = self.method(request.method, "stream")
        args, kwargs = self._arguments(exported, request.args, json_codec)
        started = time.monotonic()
        items: AsyncGenerator[Any, None]
        if exported.is_async:
            items = self._bound(exported)(*args, **kwargs)
        else:
            items = _iterate_in_thread(lambda: iter(self._bound(exported)(*args, **kwargs)), self._executor)
        try:
            async for item in items:
                yield _encode(item, json_codec)
        except BaseException as error:
            if not isinstance(error, GeneratorExit):
                self._log(exported.name, error, started)
            raise
        finally:
            await items.aclose()
        self._log(exported.name, None, started)

    def _log(self, name: str, error: BaseException | None, started: float) -> None:
        log = self.driver.logger
        level = logging.DEBUG if error is None else logging.WARNING
        if not log.isEnabledFor(level):
            return
        extra: dict[str, Any] = {"operation": name, "driver_type": self.driver.driver_type, "driver_path": self.path}
        took = time.monotonic() - started
        where = f"{self.path}.{name}" if self.path else name
        if error is None:
            log.debug("%s done in %.3f s", where, took, extra={**extra, "result": "success"})
            return
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            log.info("%s abandoned by its client after %.3f s", where, took, extra={**extra, "result": "cancelled"})
            return
        extra |= {"result": "failure", "error_type": status_of(error)[1]}
        log.warning("%s failed: %s", where, details_of(error), extra=extra)

    def error_metadata(self, error: BaseException, method: str) -> tuple[tuple[str, str], ...]:
        """Trailing metadata that describes a failed call to peers that look for it."""
        kind = error.kind if isinstance(error, CallError) and error.kind else type(error).__name__
        # ASCII JSON: metadata values may hold nothing else.
        return ((ERROR_HEADER, json.dumps({"type": kind, "driver": self.path, "method": method})),)


def _encode(result: Any, json_codec: bool) -> struct_pb2.Value:
    return struct_pb2.Value(string_value=encode_json(result)) if json_codec else encode_value(result)


def wants_json(context: Any) -> bool:
    """True when the caller announced the json codec."""
    metadata = context.invocation_metadata()
    return metadata is not None and any(key == CODEC_HEADER and value == CODEC_JSON for key, value in metadata)


class _Done:
    """End of a generator that runs in a thread, with the error that ended it."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


async def _iterate_in_thread(
    start: Callable[[], Iterator[Any]], executor: ThreadPoolExecutor
) -> AsyncGenerator[Any, None]:
    """Iterate a plain generator in one thread; results that are ready together cross over together."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    items: list[Any] = []
    lock = threading.Lock()
    space = threading.Semaphore(_GENERATOR_AHEAD)
    cancelled = threading.Event()

    def put(item: Any) -> None:
        with lock:
            items.append(item)
            first = len(items) == 1
        if first:
            try:
                loop.call_soon_threadsafe(ready.set)
            except RuntimeError:
                cancelled.set()  # the loop is closed: nobody will take the items

    def work() -> None:
        CANCELLED.set(cancelled)
        try:
            iterator = start()
            try:
                for item in iterator:
                    while not space.acquire(timeout=0.2):
                        if cancelled.is_set():
                            return
                    if cancelled.is_set():
                        return
                    put(item)
            finally:
                close = getattr(iterator, "close", None)
                if close is not None:
                    close()
        except BaseException as error:  # noqa: BLE001 (carried over to the loop, raised there)
            put(_Done(error))
        else:
            put(_Done())

    context = contextvars.copy_context()
    future = loop.run_in_executor(executor, context.run, work)
    future.add_done_callback(lambda f: f.cancelled() or f.exception())
    try:
        while True:
            await ready.wait()
            with lock:
                batch = items.copy()
                items.clear()
                ready.clear()
            for item in batch:
                if isinstance(item, _Done):
                    if item.error is not None:
                        raise item.error
                    return
                space.release()
                yield item
    finally:
        cancelled.set()
        space.release()
