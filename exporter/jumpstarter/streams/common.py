# SPDX-License-Identifier: Apache-2.0
"""Copy between byte streams."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import anyio
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import AnyByteStream, ObjectStream
from anyio.streams.stapled import StapledObjectStream

from jumpstarter.streams.frames import MAX_PAYLOAD

__all__ = ["copy_stream", "create_memory_stream", "forward_stream", "pump", "receive_from"]

logger = logging.getLogger(__name__)


async def receive_from(stream: Any) -> bytes:
    """The next bytes of an anyio byte or object stream, as many as one frame holds where the stream lets us ask."""
    if isinstance(stream, ObjectStream):
        data: bytes = await stream.receive()
        return data
    try:
        return bytes(await stream.receive(MAX_PAYLOAD))
    except TypeError:  # an object stream by duck typing: receive() takes no size
        return bytes(await stream.receive())


async def pump(dst: Any, src: Any) -> NoReturn:
    """Copy until one of them raises. Sockets and router streams pass data on with one copy less each."""
    send_frame, receive_frame = getattr(dst, "send_frame", None), getattr(src, "receive_frame", None)
    if send_frame is not None and receive_frame is not None:
        while True:
            await send_frame(await receive_frame())
    receive_view = getattr(src, "receive_view", None)
    if receive_view is not None and getattr(dst, "takes_views", False):
        while True:
            await dst.send(await receive_view())
    while True:
        await dst.send(await receive_from(src))


async def copy_stream(dst: AnyByteStream, src: AnyByteStream) -> None:
    """Copy until ``src`` ends, then end ``dst``. A stream that breaks ends the copy; ``dst`` is reset if it can be."""
    try:
        await pump(dst, src)
    except EndOfStream:
        pass
    except (BrokenResourceError, ClosedResourceError, OSError) as error:
        logger.debug("stream copy interrupted: %r", error)
        reset = getattr(dst, "reset", None)
        if reset is not None:
            await reset()
            return
    try:
        await dst.send_eof()
    except (BrokenResourceError, ClosedResourceError, OSError, AttributeError, NotImplementedError):
        pass  # the other side closed first, or knows no half-close


@asynccontextmanager
async def forward_stream(a: AnyByteStream, b: AnyByteStream) -> AsyncIterator[None]:
    """Copy both ways while the context is open and until both directions have ended; close both at the end."""
    async with a, b:
        try:
            async with anyio.create_task_group() as tg:
                tg.start_soon(copy_stream, a, b)
                tg.start_soon(copy_stream, b, a)
                yield
        except BaseException as error:
            # Closing must not look like an end of data now: what the peer got is not complete.
            for stream in (a, b):
                abandon = getattr(stream, "abandon", None)
                if abandon is not None:
                    abandon()
            if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
                raise error.exceptions[0] from None  # the block's own error, not a group's
            raise


def create_memory_stream() -> tuple[StapledObjectStream[bytes], StapledObjectStream[bytes]]:
    """Two ends of an in-memory stream. At most two items wait in each direction."""
    a_send, b_receive = anyio.create_memory_object_stream[bytes](2)
    b_send, a_receive = anyio.create_memory_object_stream[bytes](2)
    return StapledObjectStream(a_send, a_receive), StapledObjectStream(b_send, b_receive)
