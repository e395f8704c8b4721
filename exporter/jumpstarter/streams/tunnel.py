# SPDX-License-Identifier: Apache-2.0
"""One end of a tunnel through a router: a byte stream here, RouterService.Stream there.

Used by clients (for every connection to the socket of a lease) and by exporters (for every client that dials).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import grpc
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import AnyByteStream

from jumpstarter.common.controller import secure_channel, tls_for
from jumpstarter.common.exceptions import ConnectionError
from jumpstarter.config.tls import TLSConfigV1Alpha1
from jumpstarter.streams.common import pump
from jumpstarter.streams.frames import decode_frame, encode_frame
from jumpstarter.streams.router import STREAM_METHOD, RouterStream

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Routers", "bridge_tunnel"]

logger = logging.getLogger(__name__)


#: Seconds that a router may take to come back before a tunnel through it fails.
_CONNECT_SECONDS = 5.0


class Routers:
    """Channels to routers, one for each endpoint, shared by all tunnels through it. An asynchronous context."""

    def __init__(
        self, tls: TLSConfigV1Alpha1 | None = None, grpc_options: Mapping[str, str | int] | None = None
    ) -> None:
        self._tls = tls or TLSConfigV1Alpha1()
        self._options = dict(grpc_options or {})
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Routers:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        channels = list(self._channels.values())
        self._channels.clear()
        for channel in channels:
            await channel.close()

    async def channel(self, endpoint: str) -> grpc.aio.Channel:
        """The channel to a router. Raises ConnectionError, with ``insecure``, when it cannot be asked who it is."""
        async with self._opening:
            channel = self._channels.get(endpoint)
            if channel is None:
                if self._tls.insecure:
                    tls = await asyncio.to_thread(tls_for, endpoint, self._tls)
                else:
                    tls = tls_for(endpoint, self._tls)
                channel = self._channels[endpoint] = secure_channel(endpoint, tls, self._options)
            return channel


async def bridge_tunnel(
    stream: AnyByteStream,
    endpoint: str,
    token: str,
    *,
    tls: TLSConfigV1Alpha1 | None = None,
    grpc_options: Mapping[str, str | int] | None = None,
    routers: Routers | None = None,
) -> None:
    """Join a tunnel and copy between it and ``stream``, in 1 MiB pieces, until both directions have ended.

    endpoint, token: what Dial or Listen answered. tls, grpc_options: of the configuration; not needed with ``routers``,
    whose channels are shared. An end of data passes through as such; a side that breaks off resets the other. Closes
    ``stream``. Raises ConnectionError saying why when the router refuses or breaks the tunnel.
    """
    if routers is None:
        async with Routers(tls, grpc_options) as own:
            await bridge_tunnel(stream, endpoint, token, routers=own)
        return
    try:
        channel = await routers.channel(endpoint)
        await _connected(channel)
    except BaseException:
        await stream.aclose()
        raise
    call: Any = channel.stream_stream(
        STREAM_METHOD, request_serializer=encode_frame, response_deserializer=decode_frame
    )(metadata=(("authorization", f"Bearer {token}"),))
    far = RouterStream(call)
    try:
        # After both ends of data some of ours may still be under way: the router ends the call when it has passed all.
        if await _carry(far, stream):
            await _drained(call)
        if call.done():
            await _raise_for(call, endpoint)
    finally:
        far.abandon()  # what was not ended until now is not complete
        call.cancel()
        await stream.aclose()


async def _drained(call: Any) -> None:
    """Return when the router has ended the call."""
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        logger.debug("tunnel ended with %s", error.code())
    await call.code()


async def _connected(channel: grpc.aio.Channel) -> None:
    """Wait for a channel that lost its router and is about to try again: a call at this moment would use up the token.

    Not for long, the call then says why there is no connection.
    """
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            await channel.channel_ready()
    except TimeoutError:
        pass


async def _carry(far: RouterStream, near: Any) -> bool:
    """Copy both ways until both have ended. False when one of them broke, and then the other is given up."""
    copies = [asyncio.create_task(_copy(far, near)), asyncio.create_task(_copy(near, far))]
    try:
        for finished in asyncio.as_completed(copies):
            if not await finished:
                return False
        return True
    finally:
        for copy in copies:
            copy.cancel()
        await asyncio.gather(*copies, return_exceptions=True)


async def _copy(dst: Any, src: Any) -> bool:
    """Copy until the end of ``src``, and end ``dst``. False when one of them broke; then ``dst`` is reset."""
    try:
        await pump(dst, src)
    except EndOfStream:
        try:
            await dst.send_eof()
        except (BrokenResourceError, ClosedResourceError, OSError):
            pass  # that side has gone already; whether it broke, its own direction tells
        return True
    except (BrokenResourceError, ClosedResourceError, OSError) as error:
        logger.debug("tunnel interrupted: %r", error)
        await dst.reset()
        return False


async def _raise_for(call: Any, endpoint: str) -> None:
    code = await call.code()
    if code not in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED):
        details = await call.details()
        raise ConnectionError(f"router {endpoint}: {details or code.name}")
