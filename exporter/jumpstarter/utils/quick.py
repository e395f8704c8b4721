# SPDX-License-Identifier: Apache-2.0
"""Connect blocking code to an exporter without an event loop, until something needs one.

A short command (`j power on`) makes three calls and ends. Event loop, thread and asynchronous channel cost more than
these calls, so they are made on first use: by byte streams, resources and adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import empty_pb2

from jumpstarter.client.aio import RemoteSession, learn_from, report_error
from jumpstarter.client.client import build_tree
from jumpstarter.client.rpc import Connection
from jumpstarter.common.grpc import PASSPHRASE_HEADER, Target, channel_options
from jumpstarter_protocol.jumpstarter.lab.v1 import lab_pb2
from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

    from jumpstarter.utils.env import Reach

__all__ = ["quick_client"]

_TIMEOUT_SECONDS = 30


@contextmanager
def quick_client(reach: Reach) -> Iterator[Any]:
    """The client of the root driver at `reach`. Raises what `jumpstarter.client.aio.fetch_report` raises."""
    where = Target.parse(reach.host)
    settings = reach.options()
    options = channel_options(None)

    def open_with(module: Any) -> Any:
        return where.open(module, settings["tls"], settings["insecure"], options)

    with ExitStack() as stack:
        channel = open_with(grpc)
        stack.callback(channel.close)
        portal = _LazyPortal()
        stack.callback(portal.stop)
        asynchronous = _LazyChannel(lambda: open_with(grpc.aio))
        stack.callback(lambda: portal.call(asynchronous.close) if asynchronous.opened else None)
        passphrase = settings["passphrase"]
        connection = Connection(
            asynchronous,
            open_blocking=lambda: channel,
            where=f"the exporter at {where.address}",
            metadata=((PASSPHRASE_HEADER, passphrase),) if passphrase and not where.is_unix else (),
        )
        session = _greet(connection, channel)
        lent = stack.enter_context(ExitStack())
        yield build_tree(session, portal, lent, reach.allow, reach.unsafe)  # type: ignore[arg-type]


def _greet(connection: Connection, channel: grpc.Channel) -> RemoteSession:
    """Ask for the driver tree and, at the same time, for what our own exporters tell on top of it."""
    get_report = channel.unary_unary(
        "/jumpstarter.v1.ExporterService/GetReport",
        request_serializer=empty_pb2.Empty.SerializeToString,
        response_deserializer=jumpstarter_pb2.GetReportResponse.FromString,
    )
    describe = channel.unary_unary(
        "/jumpstarter.lab.v1.LabService/Describe",
        request_serializer=lab_pb2.DescribeRequest.SerializeToString,
        response_deserializer=lab_pb2.DescribeResponse.FromString,
    )
    options: dict[str, Any] = {"metadata": connection.metadata, "timeout": _TIMEOUT_SECONDS}
    report = get_report.future(empty_pb2.Empty(), **options)
    description = describe.future(lab_pb2.DescribeRequest(), **options)
    try:
        session_report = report.result()
        learn_from(connection, report.initial_metadata())
        session = RemoteSession(connection, session_report)
        if session.lab:
            session.describe_from(description.result())
    except grpc.RpcError as error:
        raise report_error(error, connection.where) from None
    finally:
        # A 0.9 exporter does not know the second question; nobody waits for its answer.
        description.cancel()
    return session


class _LazyPortal:
    """A blocking portal whose thread and loop start with the first use of them."""

    def __init__(self) -> None:
        self._context: AbstractContextManager[BlockingPortal] | None = None
        self._portal: BlockingPortal | None = None

    @property
    def _event_loop_thread_id(self) -> int | None:
        # Asked before each blocking call: no reason to start.
        return None if self._portal is None else self._portal._event_loop_thread_id

    def __getattr__(self, name: str) -> Any:
        if self._portal is None:
            from anyio.from_thread import start_blocking_portal

            self._context = start_blocking_portal()
            self._portal = self._context.__enter__()
        return getattr(self._portal, name)

    def stop(self) -> None:
        """End the loop, if there is one."""
        if self._context is not None:
            self._context.__exit__(None, None, None)


class _LazyChannel:
    """A grpc.aio channel that is made by the first call through it, which is in the event loop."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._channel: Any = None

    @property
    def opened(self) -> bool:
        """Whether there is a channel to close."""
        return self._channel is not None

    def _kind(self, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
        made: list[Any] = []

        def call(*call_args: Any, **call_kwargs: Any) -> Any:
            if not made:
                if self._channel is None:
                    self._channel = self._make()
                made.append(getattr(self._channel, kind)(*args, **kwargs))
            return made[0](*call_args, **call_kwargs)

        return call

    def unary_unary(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """As a channel's."""
        return self._kind("unary_unary", args, kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """As a channel's."""
        return self._kind("unary_stream", args, kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """As a channel's."""
        return self._kind("stream_unary", args, kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """As a channel's."""
        return self._kind("stream_stream", args, kwargs)

    async def close(self) -> None:
        """Close the channel, if there is one."""
        if self._channel is not None:
            await self._channel.close()
