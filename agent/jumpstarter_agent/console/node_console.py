# SPDX-License-Identifier: Apache-2.0
"""A console driver of an exporter as a byte console."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from anyio import BrokenResourceError, ClosedResourceError, EndOfStream

from jumpstarter.common.exceptions import ConnectionError, JumpstarterException

from .transport import Chunk

if TYPE_CHECKING:
    from jumpstarter.client.aio import AsyncNode


class NodeConsole:
    """Reads and writes the console driver ``node``.

    An exporter of ours keeps a log with positions, so that nothing is missed between tasks and every gap is known,
    and takes writes under the name ``owner``. A Jumpstarter 0.9 exporter has one raw stream, used both ways.

    again: called when the connection to the exporter breaks; returns when it can be used as before, and then the log is
    read on from where it was. Raises when there is no such way back.
    """

    def __init__(
        self, node: AsyncNode, *, owner: str = "", again: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        self._node = node
        self._owner = owner
        self._again = again
        self._logged = node.has_method("follow") and node.has_method("write") and node.has_method("position")
        self._stack = AsyncExitStack()
        self._stream: Any = None
        self._opened = asyncio.Event()
        self._since = -1

    async def open(self) -> None:
        """Fix the position from which :meth:`chunks` reads, so that nothing said after this call is missed."""
        if self._logged:
            self._since = int((await self._node.call("position"))["seq"])
        elif self._stream is None:
            self._stream = await self._stack.enter_async_context(self._node.stream("connect"))

    async def chunks(self) -> AsyncIterator[Chunk]:
        """What the device says from :meth:`open` on, with the comings and goings of its port."""
        if self._logged:
            async for chunk in self._logged_chunks():
                yield chunk
            return
        seq = 0
        while True:
            try:
                data = await self._stream.receive()
            except EndOfStream:
                return
            except (BrokenResourceError, ClosedResourceError) as error:
                raise EOFError(f"the console stream broke: {error}") from error
            yield Chunk(seq, data)
            seq += len(data)

    async def _logged_chunks(self) -> AsyncIterator[Chunk]:
        while True:
            try:
                async for item in self._node.streamingcall("follow", self._since):
                    seq, data = int(item["seq"]), item["data"]
                    self._since = max(self._since, seq + len(data))
                    yield Chunk(seq, data, str(item.get("event") or ""))
                return
            except ConnectionError:
                if self._again is None:
                    raise
                await self._again()

    async def write(self, data: bytes) -> None:
        """Send bytes to the device."""
        if self._logged:
            try:
                await self._node.call("write", data, self._owner)
            except JumpstarterException as error:
                # Port away, held by somebody else, exporter gone: its own words, as the error of any byte stream.
                raise OSError(str(error)) from error
            return
        try:
            await self._stream.send(data)
        except (BrokenResourceError, ClosedResourceError) as error:
            raise EOFError(f"the console stream broke: {error}") from error

    async def aclose(self) -> None:
        """Close the stream, if one is open."""
        await self._stack.aclose()
