# SPDX-License-Identifier: Apache-2.0
"""Driver clients for blocking code."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from anyio.from_thread import BlockingPortal

from jumpstarter.client.core import AsyncDriverClient
from jumpstarter.common.enums import ExporterStatus
from jumpstarter.common.exceptions import MissingDriverError
from jumpstarter.streams.blocking import BlockingStream

__all__ = ["DriverClient", "StubDriverClient"]


@dataclass(kw_only=True)
class DriverClient(AsyncDriverClient):
    """Base class for driver clients.

    Client methods can be implemented as regular functions, and call the `call` or `streamingcall` helpers internally to
    invoke exported methods on the driver.

    children: clients of the drivers below, by name. portal: the event loop that streams and adapters use. stack: what
    lives as long as the connection.
    """

    children: dict[str, DriverClient] = field(default_factory=dict)
    portal: BlockingPortal = field(repr=False)
    stack: ExitStack = field(repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._streams: list[AbstractContextManager[BlockingStream]] = []

    def _blocking(self) -> bool:
        if threading.get_ident() == getattr(self.portal, "_event_loop_thread_id", None):
            raise RuntimeError("a blocking driver call inside the event loop would wait for itself: use call_async")
        return self.rpc.connection.blocking() is not None

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Invoke a driver call.

        method: name of the exported method. args, kwargs: its arguments. Returns the driver call's result; raises
        `DriverError` and its subclasses.
        """
        if self._blocking():
            return self.rpc.call_blocking(method, *self._bind(method, args, kwargs))
        return self.portal.call(lambda: self.call_async(method, *args, **kwargs))

    def streamingcall(self, method: str, /, *args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        """Invoke a streaming driver call; the call is cancelled when the generator is closed."""
        if self._blocking():
            yield from self.rpc.streamingcall_blocking(method, *self._bind(method, args, kwargs))
            return
        items = self.streamingcall_async(method, *args, **kwargs)
        try:
            while True:
                try:
                    item = self.portal.call(_next, items)
                except StopAsyncIteration:
                    return
                yield item
        finally:
            self.portal.call(items.aclose)

    @contextmanager
    def stream(self, method: str = "connect") -> Iterator[BlockingStream]:
        """Open a blocking stream session with a context manager. method: name of the exported stream."""
        with self.portal.wrap_async_context_manager(self.stream_async(method)) as stream:
            blocking = BlockingStream(stream, self.portal)
            try:
                yield blocking
            finally:
                blocking.close()

    def open_stream(self, method: str = "connect") -> BlockingStream:
        """Open a blocking stream session without a context manager; `close` (or the end of the connection) ends it."""
        context = self.stream(method)
        stream = context.__enter__()
        self._streams.append(context)
        self.stack.callback(self._close_stream, context)
        return stream

    def close(self) -> None:
        """Close the streams opened by `open_stream`."""
        for context in list(self._streams):
            self._close_stream(context)

    def _close_stream(self, context: AbstractContextManager[BlockingStream]) -> None:
        if context in self._streams:
            self._streams.remove(context)
            context.__exit__(None, None, None)

    @contextmanager
    def log_stream(self, show_all_logs: bool = True) -> Iterator[None]:
        """Show the exporter's log lines while the context is open."""
        with self.portal.wrap_async_context_manager(self.log_stream_async(show_all_logs)):
            yield

    @contextmanager
    def resource(self, stream: Any, content_encoding: str | None = None) -> Iterator[dict[str, Any]]:
        """Lend an async byte stream to the driver; yields the handle to pass to a call."""
        with self.portal.wrap_async_context_manager(self.resource_async(stream, content_encoding)) as handle:
            yield handle

    def get_status(self) -> ExporterStatus | None:
        """Status of the exporter, None when it is too old to tell."""
        return self.portal.call(self.get_status_async)

    def end_session(self) -> bool:
        """Ask the exporter to end the session; True when it will."""
        return self.portal.call(self.end_session_async)


@dataclass(kw_only=True)
class StubDriverClient(DriverClient):
    """Stands for a driver whose client class is not installed here: the rest of the tree stays usable.

    Any use raises `MissingDriverError` (an ImportError tells tools the same) with what to install.
    """

    problem: str = ""

    def _missing(self) -> MissingDriverError:
        wanted = self.labels.get("jumpstarter.dev/client", "?")
        return MissingDriverError(f'driver "{self.path}" cannot be used here: {self.problem}', wanted)

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Refused: the client class is missing."""
        raise self._missing()

    def streamingcall(self, method: str, /, *args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        """Refused: the client class is missing."""
        raise self._missing()

    @contextmanager
    def stream(self, method: str = "connect") -> Iterator[BlockingStream]:
        """Refused: the client class is missing."""
        raise self._missing()
        yield


async def _next(items: AsyncGenerator[Any, None]) -> Any:
    return await anext(items)
