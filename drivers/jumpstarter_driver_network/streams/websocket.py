# SPDX-License-Identifier: Apache-2.0
"""WebSockets (RFC 6455) as byte streams: the client's side with `websockets`, the server's with `wsproto`.

A WebSocket carries messages; here they are pieces of a byte stream, so their boundaries mean nothing. It also has no
half-close: ending one direction closes the connection, and what the peer had sent before is still received.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import AnyByteStream, ObjectStream

from jumpstarter.streams.common import receive_from

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection
    from wsproto import WSConnection
    from wsproto.events import CloseConnection, Request

__all__ = ["WebsocketClientStream", "WebsocketServerStream"]

#: The subprotocol that noVNC of old and websockify name for "plain bytes".
_BINARY = "binary"


@dataclass(kw_only=True, eq=False)
class WebsocketClientStream(ObjectStream[bytes]):
    """A connection of the `websockets` library as a byte stream. Owns the connection.

    Text messages arrive as UTF-8. A peer that closes with a normal status ends the stream, any other end breaks it.
    """

    conn: ClientConnection

    async def send(self, item: bytes) -> None:
        """Send one binary message; waits while the peer does not take it."""
        from websockets.exceptions import ConnectionClosed

        try:
            await self.conn.send(item)
        except ConnectionClosed as error:
            raise BrokenResourceError(_closed(error)) from error

    async def receive(self) -> bytes:
        """The next message, never empty."""
        from websockets.exceptions import ConnectionClosed, ConnectionClosedOK

        while True:
            try:
                message = await self.conn.recv(decode=False)
            except ConnectionClosedOK:
                raise EndOfStream from None
            except ConnectionClosed as error:
                raise BrokenResourceError(_closed(error)) from error
            if message:
                return bytes(message)

    async def send_eof(self) -> None:
        """Close the connection; messages that are here already can still be received."""
        await self.conn.close()

    async def aclose(self) -> None:
        """Close the connection."""
        await self.conn.close()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """None."""
        return {}


def _closed(error: Exception) -> str:
    return f"the WebSocket broke: {error}"


def _server_connection() -> WSConnection:
    from wsproto import ConnectionType, WSConnection

    return WSConnection(ConnectionType.SERVER)


@dataclass(kw_only=True, eq=False)
class WebsocketServerStream(ObjectStream[bytes]):
    """The server's side of a WebSocket on any byte stream, from the HTTP request on. Owns that stream.

    The handshake is answered while somebody receives; `send` waits for it. Pings are answered then as well.

    stream: where the client's request arrives. authorize: called with the request (`wsproto.events.Request`); the
    connection is refused with status 403 when it returns False. None lets everybody in.
    """

    stream: AnyByteStream
    authorize: Callable[[Request], bool] | None = None
    ws: WSConnection = field(init=False, default_factory=_server_connection)
    _accepted: anyio.Event = field(init=False, default_factory=anyio.Event, repr=False)
    _writing: anyio.Lock = field(init=False, default_factory=anyio.Lock, repr=False)
    _closing: bool = field(init=False, default=False, repr=False)
    _ended: bool = field(init=False, default=False, repr=False)

    async def send(self, item: bytes) -> None:
        """Send one binary message."""
        from wsproto.events import BytesMessage

        await self._accepted.wait()
        if self._closing:
            raise ClosedResourceError
        await self._write(self.ws.send(BytesMessage(data=bytes(item))))

    async def receive(self) -> bytes:
        """The next bytes; a long message comes in the pieces in which it was sent."""
        from wsproto.events import BytesMessage, CloseConnection, Ping, Request, TextMessage
        from wsproto.utilities import RemoteProtocolError

        while not self._ended:
            for event in self.ws.events():
                if isinstance(event, (BytesMessage, TextMessage)):
                    data = event.data.encode() if isinstance(event.data, str) else bytes(event.data)
                    if data:
                        return data
                elif isinstance(event, Ping):
                    await self._write(self.ws.send(event.response()))
                elif isinstance(event, Request):
                    await self._answer(event)
                elif isinstance(event, CloseConnection):
                    await self._end(event)
                    break
            else:
                try:
                    self.ws.receive_data(await receive_from(self.stream))
                except EndOfStream:
                    self._ended = True
                    raise BrokenResourceError("the WebSocket ended without being closed") from None
                except RemoteProtocolError as error:
                    self._ended = True
                    if error.event_hint is not None and not self._accepted.is_set():
                        await self._write(self.ws.send(error.event_hint))
                    raise BrokenResourceError(f"not a WebSocket: {error}") from error
        raise EndOfStream

    async def send_eof(self) -> None:
        """Say that nothing more will come; the peer closes then."""
        from wsproto.connection import ConnectionState
        from wsproto.events import CloseConnection

        if self._closing or not self._accepted.is_set():
            self._closing = True
            return
        self._closing = True
        if self.ws.state is ConnectionState.OPEN:
            await self._write(self.ws.send(CloseConnection(code=1000)))

    async def aclose(self) -> None:
        """Close the WebSocket and the stream below it."""
        try:
            await self.send_eof()
        except (BrokenResourceError, ClosedResourceError, OSError):
            pass  # the peer is gone
        finally:
            await self.stream.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """None."""
        return {}

    async def _answer(self, request: Request) -> None:
        from wsproto.events import AcceptConnection, RejectConnection

        if self.authorize is not None and not self.authorize(request):
            self._ended = True
            await self._write(self.ws.send(RejectConnection(status_code=403)))
            raise BrokenResourceError("the WebSocket was refused")
        chosen = _BINARY if _BINARY in request.subprotocols else None
        await self._write(self.ws.send(AcceptConnection(subprotocol=chosen)))
        self._accepted.set()

    async def _end(self, event: CloseConnection) -> None:
        from wsproto.connection import ConnectionState

        self._ended = True
        if self.ws.state is ConnectionState.REMOTE_CLOSING:
            self._closing = True
            await self._write(self.ws.send(event.response()))
        if event.code not in (1000, 1001, 1005):
            raise BrokenResourceError(f"the WebSocket was closed with status {int(event.code)} {event.reason or ''}")

    async def _write(self, data: bytes) -> None:
        if data:
            async with self._writing:
                await self.stream.send(data)
