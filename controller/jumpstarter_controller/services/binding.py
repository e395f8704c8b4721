# SPDX-License-Identifier: Apache-2.0
"""From a service of the protocol and an object with its methods to what a gRPC server takes.

A method ``GetLease`` is served by the object's ``get_lease(request, context)``: a unary one returns the response, a
streaming one writes to the context. `Refused` becomes its status; anything else is logged, and an internal error.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from jumpstarter_controller.errors import Refused, invalid

__all__ = ["Calls"]

logger = logging.getLogger(__name__)


class Calls:
    """Makes handlers, and knows the calls that they serve."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def ended(self) -> None:
        """Return when no call runs: one that was cancelled may still have something to write down."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def bind(self, service: Any, target: object) -> grpc.GenericRpcHandler:
        """A handler for every method of ``service`` (a descriptor). Raises AttributeError for one that target lacks."""
        handlers: dict[str, Any] = {}
        for method in service.methods:
            message = GetMessageClass(method.input_type)
            behavior = _parsing(message, getattr(target, _snake(method.name)))
            behavior = self.guarded(behavior, f"{service.name}.{method.name}")
            streams = method.server_streaming
            make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
            handlers[method.name] = make(
                behavior,
                response_serializer=GetMessageClass(method.output_type).SerializeToString,
            )
        return grpc.method_handlers_generic_handler(service.full_name, handlers)

    def guarded(self, behavior: Callable[[Any, Any], Any], name: str) -> Callable[[Any, Any], Any]:
        """``behavior`` with its errors turned into statuses."""

        async def call(request: Any, context: Any) -> Any:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            try:
                return await behavior(request, context)
            except Refused as refused:
                code, message = refused.code, refused.message
                if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                    logger.warning("%s refused for %s: %s", name, context.peer(), message)
            except Exception:
                logger.exception("%s failed", name)
                code, message = grpc.StatusCode.INTERNAL, "internal error; the controller's log has the details"
            await context.abort(code, message)

        return call


def _parsing(message: Any, behavior: Callable[[Any, Any], Any]) -> Callable[[bytes, Any], Any]:
    """``behavior`` for a request in bytes. gRPC would answer UNKNOWN to those that are no message."""

    async def call(data: bytes, context: Any) -> Any:
        try:
            request = message.FromString(data)
        except DecodeError:
            raise invalid(f"the request is not a {message.DESCRIPTOR.full_name}") from None
        return await behavior(request, context)

    return call


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
