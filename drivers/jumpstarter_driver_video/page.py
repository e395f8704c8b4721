# SPDX-License-Identifier: Apache-2.0
"""A page with the live picture, for a browser on the client's machine."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["serve_video"]

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Video</title>
<style>
body { margin: 0; background: #202020; color: #ddd; font: 15px/1.5 system-ui, sans-serif; text-align: center }
img { max-width: 100%; max-height: 92vh; margin-top: 1vh } a { color: inherit }
</style></head>
<body><img src="stream" alt="the live picture"><p><a href="snapshot">One picture</a></p></body></html>
"""
_BEGIN_SECONDS = 30.0
#: What comes from a device is shown as a picture or not at all: a page in its place must not act as one of ours.
_FOREIGN = {"Content-Security-Policy": "sandbox; default-src 'none'; img-src 'self'; style-src 'unsafe-inline'"}

logger = logging.getLogger(__name__)


@asynccontextmanager
async def serve_video(
    listener: socket.socket, path: str, stream_path: str, picture: Callable[[], Awaitable[bytes]]
) -> AsyncIterator[str]:
    """Serve on a listening loopback socket; yields the URL.

    path: unix socket that leads to the source's HTTP server. stream_path: where it serves its stream. picture: takes
    one picture.
    """
    import aiohttp
    from aiohttp import web

    from jumpstarter.client.local_web import serve_locally
    from jumpstarter.common.exceptions import JumpstarterException

    async def page(request: web.Request) -> web.Response:
        return web.Response(text=_PAGE, content_type="text/html")

    async def snapshot(request: web.Request) -> web.Response:
        try:
            return web.Response(body=await picture(), content_type="image/jpeg", headers=_FOREIGN)
        except (JumpstarterException, OSError) as error:
            return failed("picture", error)

    def failed(what: str, error: Exception) -> web.Response:
        logger.warning("video: no %s: %s", what, error)
        return web.Response(status=502, text=f"{error}\n")

    async def stream(request: web.Request) -> web.StreamResponse:
        limit = aiohttp.ClientTimeout(total=None, sock_read=_BEGIN_SECONDS)
        response: web.StreamResponse | None = None
        try:
            async with (
                aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=path), timeout=limit) as session,
                session.get(f"http://localhost{stream_path}") as source,
            ):
                if source.status != 200:
                    return failed("stream", ConnectionError((await source.text())[:1000].strip()))
                kind = source.headers.get("Content-Type", "")
                if not kind.startswith(("multipart/x-mixed-replace", "image/", "video/")):
                    return failed("stream", ConnectionError(f"the source sends no pictures but {kind or 'something'}"))
                response = web.StreamResponse(headers={"Content-Type": kind, **_FOREIGN})
                await response.prepare(request)
                async for piece in source.content.iter_any():
                    await response.write(piece)
        except ConnectionResetError:
            pass  # the browser left
        except (aiohttp.ClientError, TimeoutError) as error:
            if response is None:
                return failed("stream", error)
            logger.warning("video: the stream ended: %s", error or "no picture came any more")
            if request.transport is not None:
                request.transport.abort()  # a good end would be no end to a viewer that waits for the next picture
        return response or web.Response()

    def routes(application: web.Application, base: str) -> None:
        application.router.add_get(f"{base}/", page)
        application.router.add_get(f"{base}/snapshot", snapshot)
        application.router.add_get(f"{base}/stream", stream)

    async with serve_locally(listener, routes) as url:
        yield url
