# SPDX-License-Identifier: Apache-2.0
"""The port of a console that is a WebSocket whose address is good for one connection."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, Final

from jumpstarter.common.exceptions import JumpstarterException
from jumpstarter_driver_network.driver import WebsocketNetwork
from jumpstarter_driver_pyserial.ports import Gone, Port, PortFactory, Receiver, call_in_thread

__all__ = ["ConsolePortFactory"]

#: Seconds for which the API is not asked again when it had no console to offer.
_PAUSE: Final = 30.0


class ConsolePortFactory(PortFactory):
    """Connects to the console. url: blocks, and tells where it is; raises when there is none.

    refusal: why there is none, "" when that is not known.
    """

    def __init__(self, name: str, url: Callable[[], str]) -> None:
        self.name = name
        self.refusal = ""
        self._url = url
        self._offered: Port | None = None
        self._next_look = 0.0

    def look_again(self) -> None:
        """Ask at the next attempt: there may be a console now."""
        self._next_look = 0.0

    async def offer(self) -> None:
        """Connect now, for the next `open` to take. Raises what the API or the console says."""
        port = await self._connect()
        self.close()
        self._offered = port

    async def open(self) -> Port:
        """Connect. When there was no console, the API is not asked again for a while: it is not ours."""
        if (port := self._offered) is None:
            if time.monotonic() < self._next_look:
                raise OSError(self.refusal)
            try:
                port = await self._connect()
            except (OSError, ValueError, JumpstarterException) as error:
                self.refusal = str(error)
                self._next_look = time.monotonic() + _PAUSE
                raise OSError(self.refusal) from None
        self._offered = None
        self.refusal = ""
        return port

    def close(self) -> None:
        """Close what was offered and not taken."""
        port, self._offered = self._offered, None
        if port is not None:
            port.close()

    async def _connect(self) -> Port:
        url = await call_in_thread(self._url, _forget)
        stack = AsyncExitStack()
        try:
            stream = await stack.enter_async_context(WebsocketNetwork(url=url).connect())
        except OSError as error:
            raise ConnectionError(str(error).replace(url, "its console")) from None  # it holds a secret
        return _StreamPort(stream, stack)


class _StreamPort(Port):
    """A stream. One task reads and closes it."""

    def __init__(self, stream: Any, stack: AsyncExitStack) -> None:
        self._stream, self._stack = stream, stack
        self._loop = asyncio.get_running_loop()
        self._begin: asyncio.Future[tuple[Receiver, Gone]] = self._loop.create_future()
        self._task = self._loop.create_task(self._run(), name="corellium console")

    def start(self, receive: Receiver, gone: Gone) -> None:
        """Read from now on."""
        self._begin.set_result((receive, gone))

    async def _run(self) -> None:
        from anyio import BrokenResourceError, ClosedResourceError, EndOfStream

        async with self._stack:
            receive, gone = await self._begin
            try:
                while True:
                    receive(await self._stream.receive())
            except (EndOfStream, ClosedResourceError):
                gone("disconnected")
            except (BrokenResourceError, OSError) as error:
                gone(str(error) or "disconnected")

    async def write(self, data: bytes) -> None:
        """Send one message."""
        from anyio import BrokenResourceError, ClosedResourceError

        try:
            await self._stream.send(data)
        except (BrokenResourceError, ClosedResourceError) as error:
            raise OSError(errno.EPIPE, str(error) or "disconnected") from error

    def close(self) -> None:
        """Stop reading and close."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._task.cancel)


def _forget(_: str) -> None:
    """An address that comes too late is not used."""
