# SPDX-License-Identifier: Apache-2.0
"""From a service of the protocol and an object with its methods to what a gRPC server takes.

A method ``GetLease`` is served by the object's ``get_lease(request, context)``: a unary one returns the response, a
streaming one writes to the context. `Refused` becomes its status; anything else is logged, and an internal error.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from sqlalchemy.exc import DataError

from jumpstarter_controller.errors import Refused, invalid, one_line
from jumpstarter_controller.identity.calls import why_cancelled
from jumpstarter_controller.state.outage import Unavailable

__all__ = ["Calls"]

logger = logging.getLogger(__name__)

#: Seconds for telling streams that the server ends, at most: some callers may not read any more.
_TELL_SECONDS = 10.0
_STOPPING = Refused(grpc.StatusCode.UNAVAILABLE, "the controller is stopping; connect again")


class Calls:
    """Makes handlers, and knows the calls that they serve."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._streams: set[asyncio.Task[Any]] = set()
        self._stopped: set[asyncio.Task[Any]] = set()
        self._stopping = False

    async def stop(self) -> None:
        """The server ends: streams are told so, in a way that lets their callers try another controller.

        Returns when all of them were: the server's own grace would cut off those whose turn comes later.
        """
        self._stopping = True
        self._stopped = set(self._streams)
        for task in self._stopped:
            task.cancel()
        if self._stopped:
            await asyncio.wait(self._stopped, timeout=_TELL_SECONDS)

    async def ended(self) -> None:
        """Return when no call runs: one that was cancelled may still have something to write down."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def bind(self, service: Any, target: object) -> grpc.GenericRpcHandler:
        """A handler for every method of ``service`` (a descriptor). Raises AttributeError for one that target lacks."""
        handlers: dict[str, Any] = {}
        for method in service.methods:
            message = GetMessageClass(method.input_type)
            parse = _parsing_each if method.client_streaming else _parsing
            behavior = parse(message, getattr(target, _snake(method.name)))
            behavior = self.guarded(behavior, f"{service.name}.{method.name}", stream=method.server_streaming)
            handlers[method.name] = _MAKERS[method.client_streaming, method.server_streaming](
                behavior,
                response_serializer=GetMessageClass(method.output_type).SerializeToString,
            )
        return grpc.method_handlers_generic_handler(service.full_name, handlers)

    def guarded(
        self, behavior: Callable[[Any, Any], Any], name: str, *, stream: bool = True
    ) -> Callable[[Any, Any], Any]:
        """``behavior`` with its errors turned into statuses. stream: it may go on for ever, and is ended by `stop`."""

        async def call(request: Any, context: Any) -> Any:
            task = asyncio.current_task()
            assert task is not None
            for tasks in (self._tasks, self._streams) if stream else (self._tasks,):
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            headers = _send_headers(context) if stream else None
            try:
                if headers is not None:
                    await asyncio.wait({headers})
                if self._stopping:
                    raise _STOPPING
                return await behavior(request, context)
            except asyncio.CancelledError:
                reason = why_cancelled(task) or (_STOPPING if task in self._stopped else None)
                if reason is None:
                    raise
                task.uncancel()
                code, message = reason.code, reason.message
            except Refused as refused:
                code, message = refused.code, refused.message
                if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                    logger.warning("%s refused for %s: %s", name, context.peer(), one_line(message))
            except Unavailable as unavailable:
                code, message = grpc.StatusCode.UNAVAILABLE, str(unavailable)
            except DataError as error:
                # Such as a character 0 in a text, which PostgreSQL does not store.
                logger.info("%s: %s", name, error.orig)
                code, message = grpc.StatusCode.INVALID_ARGUMENT, "the request has a value that cannot be stored"
            except Exception:
                logger.exception("%s failed", name)
                code, message = grpc.StatusCode.INTERNAL, "internal error; the controller's log has the details"
            if headers is not None:
                await asyncio.wait({headers})
            await context.abort(code, one_line(message))

        return call


_MAKERS: dict[tuple[bool, bool], Any] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _send_headers(context: Any) -> asyncio.Future[None]:
    """Send the headers of a stream now, by themselves; to be waited for without cancelling it.

    grpc.aio would send them with the first message, and takes them for unsent when that write is cancelled midway. The
    status would then carry them a second time, core refuses that, and the caller waits for a status that never comes.
    """
    headers: asyncio.Future[None] = asyncio.ensure_future(context.send_initial_metadata(()))
    # It fails when the caller has gone: so will everything else that is sent to it, and that is reported.
    headers.add_done_callback(lambda sent: sent.cancelled() or sent.exception())
    return headers


def _parsing(message: Any, behavior: Callable[[Any, Any], Any]) -> Callable[[bytes, Any], Any]:
    """``behavior`` for a request in bytes. gRPC would answer UNKNOWN to those that are no message."""

    async def call(data: bytes, context: Any) -> Any:
        try:
            request = message.FromString(data)
        except DecodeError:
            raise invalid(f"the request is not a {message.DESCRIPTOR.full_name}") from None
        return await behavior(request, context)

    return call


def _parsing_each(message: Any, behavior: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """``behavior`` for a stream of requests: it is given an iterator of messages."""

    async def call(requests: Any, context: Any) -> Any:
        async def parsed() -> AsyncIterator[Any]:
            async for data in requests:
                try:
                    request = message.FromString(data)
                except DecodeError:
                    raise invalid(f"the request is not a {message.DESCRIPTOR.full_name}") from None
                yield request

        return await behavior(parsed(), context)

    return call


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
