# SPDX-License-Identifier: Apache-2.0
"""The exporter's end of a client's byte stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from anyio import BrokenResourceError, ClosedResourceError, EndOfStream

from jumpstarter.common.resources import PresignedRequestResource, parse_handle

if TYPE_CHECKING:
    from jumpstarter.driver.base import Driver

__all__ = ["ResourceStream", "open_resource"]


class ResourceStream:
    """Bytes from and to a client, as a driver sees them.

    Reading: ``async for chunk in stream`` or ``receive()``. Writing: ``send()``, then ``send_eof()`` when complete.
    ``received`` and ``sent`` count bytes on the driver's side of any compression. ``encoding``: compression that is
    undone on reading and applied on writing.
    """

    def __init__(self, stream: Any, encoding: str | None = None) -> None:
        self._stream = stream
        self._reader: Any = None
        self._writer: Any = None
        self._ended = False
        self.encoding = encoding or None
        self.received = 0
        self.sent = 0

    def raw(self) -> ResourceStream:
        """This stream without decompression: for drivers that decompress in a thread of their own."""
        if self.received or self.sent:
            raise RuntimeError("raw() must come before the first byte")
        return ResourceStream(self._stream)

    async def receive(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, never empty.

        Raises EndOfStream once the client ended its stream and everything in it was complete, BrokenResourceError when
        the client went away before that, ValueError when compressed data are damaged or stop too early.
        """
        if self._reader is None:
            self._reader = self._stream
            if self.encoding:
                from jumpstarter.streams.encoding import decompress_stream

                self._reader = decompress_stream(self._stream, self.encoding)
        data: bytes = await self._reader.receive()
        self.received += len(data)
        return data

    async def send(self, data: bytes) -> None:
        """Send bytes to the client."""
        await self._encoded().send(data)
        self.sent += len(data)

    async def send_eof(self) -> None:
        """Tell the client that it has everything."""
        if not self._ended:
            self._ended = True
            await self._encoded().send_eof()

    def _encoded(self) -> Any:
        if self._writer is None:
            self._writer = self._stream
            if self.encoding:
                from jumpstarter.streams.encoding import compress_stream

                self._writer = compress_stream(self._stream, self.encoding)
        return self._writer

    async def abandon(self) -> None:
        """Give up: the client must not take what it got for the whole."""
        reset = getattr(self._stream, "reset", None)
        if reset is not None and not self._ended:
            await reset()

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            try:
                yield await self.receive()
            except EndOfStream:
                return


@asynccontextmanager
async def open_resource(driver: Driver, handle: Any, timeout: float) -> AsyncIterator[ResourceStream]:
    """See `jumpstarter.driver.Driver.resource`."""
    resource = parse_handle(handle)
    if isinstance(resource, PresignedRequestResource):
        from jumpstarter.streams.presigned import open_presigned

        async with open_presigned(resource, timeout) as transfer:
            stream = ResourceStream(transfer)
            yield stream
            await stream.send_eof()  # the upload happens here, and not at all when the driver failed
        return
    try:
        raw = driver.resources.pop(resource.uuid)
    except KeyError:
        raise ValueError(
            f"resource {resource.uuid} is not open: a handle is good for one call of the driver it was opened for"
        ) from None
    stream = ResourceStream(raw, resource.x_jmp_content_encoding)
    try:
        yield stream
        try:
            await stream.send_eof()
        except (BrokenResourceError, ClosedResourceError):
            if stream.sent:
                raise
    except BaseException:
        await stream.abandon()
        raise
    finally:
        await stream.aclose()
