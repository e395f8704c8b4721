# SPDX-License-Identifier: Apache-2.0
"""The exporter's side of pictures over HTTP."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_driver_video.common import jpeg_size

if TYPE_CHECKING:
    import aiohttp
    from aiohttp import web

__all__ = ["Camera", "serve_camera"]

logger = logging.getLogger(__name__)

_LARGEST_PICTURE = 64 << 20
_PASSED_ON = ("Content-Type", "Content-Length")


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Where pictures come from.

    url, snapshot_url: without user and password. credentials: user and password. unix: path of the socket on which the
    HTTP server listens, for one that is no network host. timeout: seconds for a picture, for a stream to begin and for
    each next part of it.
    """

    url: str
    snapshot_url: str | None = None
    credentials: tuple[str, str] | None = field(default=None, repr=False)
    ca_file: str | None = None
    unix: str | None = None
    timeout: float = 10.0

    @property
    def stream_path(self) -> str:
        """Path and query of the stream's URL."""
        return _path(self.url)

    @asynccontextmanager
    async def get(self, url: str, *, endless: bool = False) -> AsyncIterator[aiohttp.ClientResponse]:
        """A GET request that succeeded. endless: only its beginning has to come in time.

        Raises ConnectionError or TimeoutError that say where and why.
        """
        import aiohttp

        where = self.unix or url
        limit = aiohttp.ClientTimeout(total=None if endless else self.timeout, sock_read=self.timeout)
        headers = {"Authorization": _basic(*self.credentials)} if self.credentials else None
        try:
            async with aiohttp.ClientSession(connector=self._connector(), timeout=limit, headers=headers) as session:
                # No redirects: the password is for this camera, and a lessee's request for nothing else.
                async with session.get(url, allow_redirects=False) as response:
                    if response.status != 200:
                        hint = "; see username and password" if response.status == 401 else ""
                        raise ConnectionError(f"{where}: HTTP status {response.status} {response.reason}{hint}")
                    yield response
        except TimeoutError:
            raise TimeoutError(f"{where}: no answer within {self.timeout:g} s") from None
        except aiohttp.ClientError as error:
            raise ConnectionError(f"{where}: {_reason(error)}") from error

    async def picture(self) -> bytes:
        """One whole JPEG."""
        url = self.snapshot_url or self.url
        async with self.get(url) as response:
            part = await _first_part(response) if response.content_type.startswith("multipart/") else response
            data = bytearray()
            while piece := await _read(part):
                data += piece
                if len(data) > _LARGEST_PICTURE:
                    raise ConnectionError(f"{url}: a picture of more than {_LARGEST_PICTURE >> 20} MiB")
        try:
            jpeg_size(bytes(data))
        except ValueError as error:
            raise ConnectionError(f"{url}: the camera sent {error} (as {response.content_type})") from None
        return bytes(data)

    def _connector(self) -> aiohttp.BaseConnector:
        import ssl

        import aiohttp

        if self.unix is not None:
            return aiohttp.UnixConnector(path=self.unix)
        if self.ca_file is None:
            return aiohttp.TCPConnector()
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:  # SSLError is one
            raise ConfigurationError(f"ca_file: {self.ca_file}: {error.strerror or error}") from None
        return aiohttp.TCPConnector(ssl=context)


async def _first_part(response: aiohttp.ClientResponse) -> aiohttp.BodyPartReader:
    import aiohttp

    try:
        part = await aiohttp.MultipartReader.from_response(response).next()
    except ValueError as error:
        raise ConnectionError(f"{response.url}: the camera's stream cannot be read: {error}") from None
    if not isinstance(part, aiohttp.BodyPartReader):
        raise ConnectionError(f"{response.url}: the camera's stream has no picture")
    return part


async def _read(source: Any) -> bytes:
    reader = source.read_chunk if hasattr(source, "read_chunk") else source.content.readany
    return bytes(await reader())


def _basic(user: str, password: str) -> str:
    """RFC 7617, in UTF-8."""
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode("ascii")


def _reason(error: Exception) -> str:
    import ssl

    for cause in (getattr(error, "certificate_error", None), getattr(error, "os_error", None)):
        if isinstance(cause, ssl.SSLError):  # its number is not one of the system's
            return " ".join(str(cause).split())
    number = getattr(error, "errno", None)
    if isinstance(number, int) and number > 0:
        return os.strerror(number).lower()
    return str(error) or type(error).__name__


def _path(url: str) -> str:
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


@asynccontextmanager
async def serve_camera(camera: Camera) -> AsyncIterator[Any]:
    """A stream on which an HTTP server answers: with the camera's stream and picture, under the camera's paths."""
    from aiohttp import web

    from jumpstarter.streams.sockets import SocketStream

    urls = [url for url in (camera.url, camera.snapshot_url) if url is not None]
    # Clients write a path in more than one way: %2C or a comma, [ or %5B.
    sources = {_usual(_path(url)): url for url in urls}

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        url = sources.get(_usual(request.raw_path))
        if request.method != "GET" or url is None:
            paths = " and ".join(map(_path, urls))
            return web.Response(status=404, text=f"only GET of {paths} leads to the camera\n")
        response: web.StreamResponse | None = None
        try:
            async with camera.get(url, endless=True) as source:
                headers = {name: source.headers[name] for name in _PASSED_ON if name in source.headers}
                response = web.StreamResponse(headers=headers)
                await response.prepare(request)
                await _pass_on(response, source)
        except (ConnectionError, TimeoutError) as error:
            if response is None:
                return web.Response(status=502, text=f"{error}\n")
            # The answer has begun, so no other can be given; what it lacks must not look like its end.
            logger.warning("%s", error)
            if request.transport is not None:
                request.transport.abort()
        return response

    near, far = socket.socketpair()
    server = web.Server(handle, access_log=None, handler_cancellation=True)
    transport = None
    try:
        far.setblocking(False)
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(server, far)
        async with SocketStream(near) as stream:
            yield stream
    finally:
        near.close()
        if transport is not None:
            transport.close()
        else:
            far.close()
        await server.shutdown(1.0)


async def _pass_on(response: web.StreamResponse, source: aiohttp.ClientResponse) -> None:
    async for piece in source.content.iter_any():
        try:
            await response.write(piece)
        except ConnectionResetError:
            return  # who looked has left


def _usual(path: str) -> str:
    from yarl import URL

    return str(URL(path))
