# SPDX-License-Identifier: Apache-2.0
"""A RouterService.Stream call as a byte stream, on either side.

End of data is the GOAWAY frame and nothing else: a call that ends without one was cut off, and the reader is told so
instead of being handed a short file. (0.9 peers send GOAWAY on every close, so from them a cut is not always visible.)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, cast

import grpc
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import ObjectStream
from grpc.aio import EOF

from jumpstarter.streams.frames import DATA, GOAWAY, MAX_PAYLOAD, RST_STREAM, Frame, decode_frame, encode_frame

__all__ = ["STREAM_METHOD", "RouterStream", "stream_handler"]

STREAM_METHOD = "/jumpstarter.v1.RouterService/Stream"


class _Call(Protocol):
    """What client calls and server contexts of grpc.aio have in common."""

    async def read(self) -> Any: ...

    async def write(self, message: Any) -> None: ...


#: What grpc.aio raises, by state and direction, when a call has ended under us.
_CALL_ENDED = (
    grpc.RpcError,
    grpc.aio.UsageError,
    grpc.aio.InternalError,
    asyncio.InvalidStateError,
    RuntimeError,
)


class _Translation:
    """Context that turns what grpc.aio raises into BrokenResourceError. Around every byte typed: no generator."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        if isinstance(error, _CALL_ENDED):
            raise BrokenResourceError from error
        if isinstance(error, asyncio.CancelledError):
            # Operations of a cancelled call raise this too; then nobody cancelled the task.
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                raise BrokenResourceError from error


_TRANSLATED = _Translation()

#: Seconds after the last write in which a close waits for the peer to end the stream, too.
_FAREWELL = 0.5


class RouterStream(ObjectStream[bytes]):
    """One end of a framed byte stream over a gRPC call.

    call: a client's stream-stream call or a server's context, made with the codec of `jumpstarter.streams.frames`.
    """

    def __init__(self, call: _Call) -> None:
        self._call = call
        self._done_writing: Callable[[], Any] | None = getattr(call, "done_writing", None)
        self._cancel: Callable[[], Any] | None = getattr(call, "cancel", None) if self._done_writing else None
        self._sent_eof = False
        self._received_eof = False
        self._closed = False
        self._wrote_at = -_FAREWELL

    async def send(self, item: bytes) -> None:
        """Send bytes; larger ones than a frame are split."""
        if self._closed or self._sent_eof:
            raise ClosedResourceError
        self._wrote_at = time.monotonic()
        with _TRANSLATED:
            if len(item) <= MAX_PAYLOAD:
                await self._call.write(Frame(item))
                return
            view = memoryview(item)
            for at in range(0, len(item), MAX_PAYLOAD):
                await self._call.write(Frame(bytes(view[at : at + MAX_PAYLOAD])))

    async def send_frame(self, frame: bytes) -> None:
        """Send a data frame that was serialised already (`jumpstarter.streams.frames.frame_in_place`)."""
        if self._closed or self._sent_eof:
            raise ClosedResourceError
        self._wrote_at = time.monotonic()
        with _TRANSLATED:
            await self._call.write(frame)

    async def send_eof(self) -> None:
        """Say that no more data will come."""
        if self._sent_eof or self._closed:
            return
        self._sent_eof = True
        with _TRANSLATED:
            await self._call.write(Frame(b"", GOAWAY))
            if self._done_writing is not None:
                await self._done_writing()

    async def receive(self) -> bytes:
        """The next bytes, never empty. Raises EndOfStream after the peer's GOAWAY, BrokenResourceError when cut off."""
        return bytes(await self.receive_view())

    async def receive_view(self) -> bytes | memoryview:
        """As `receive`, without copying them out of the message they came in."""
        if self._closed:
            raise ClosedResourceError
        while not self._received_eof:
            with _TRANSLATED:
                frame = await self._call.read()
            if frame is EOF:
                raise BrokenResourceError("the peer closed the stream without ending it")
            if frame.type == DATA:
                if frame.payload:
                    return cast("bytes | memoryview", frame.payload)
            elif frame.type == GOAWAY:
                self._received_eof = True
            elif frame.type == RST_STREAM:
                raise BrokenResourceError("the peer reset the stream")
            # PING and frame types of newer peers carry nothing for the reader.
        raise EndOfStream

    async def reset(self) -> None:
        """Give up: the peer's reader gets BrokenResourceError instead of an end of stream."""
        if self._sent_eof or self._closed:
            return
        self._sent_eof = True
        try:
            with _TRANSLATED:
                await self._call.write(Frame(b"", RST_STREAM))
        except BrokenResourceError:
            pass  # the peer is gone already, which tells it the same

    def abandon(self) -> None:
        """Send no end of data when closed: an error status follows, or the peer is gone."""
        self._sent_eof = True

    @property
    def farewell(self) -> float:
        """Seconds that closing should still give the peer to take what was sent last, 0 for none.

        A call that is cancelled takes along what the peer has received and not yet read.
        """
        if self._cancel is None or self._received_eof or self._closed:
            return 0.0
        return max(0.0, self._wrote_at + _FAREWELL - time.monotonic())

    async def aclose(self) -> None:
        """End the stream; on the client side the call is over afterwards.

        Waits for the peer to end it as well, but not long: a service that knows half-closes may go on for ever.
        """
        if self._closed:
            return
        try:
            await self.send_eof()
            if patience := self.farewell:
                async with asyncio.timeout(patience):
                    while True:
                        await self.receive_view()
        except (BrokenResourceError, EndOfStream, TimeoutError):
            pass  # the peer has closed, too, or had its time
        self._closed = True
        if self._cancel is not None and not self._received_eof:
            self._cancel()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """None: a stream has no typed attributes."""
        return {}


def stream_handler(behavior: Callable[[Any, Any], Any]) -> grpc.GenericRpcHandler:
    """RouterService with its one method served by ``behavior(request_iterator, context)``."""
    return grpc.method_handlers_generic_handler(
        "jumpstarter.v1.RouterService",
        {
            "Stream": grpc.stream_stream_rpc_method_handler(
                behavior, request_deserializer=decode_frame, response_serializer=encode_frame
            )
        },
    )
