# SPDX-License-Identifier: Apache-2.0
"""What answers HTTP requests: files below a folder, whole or in part, by the kernel (``sendfile``).

aiohttp's own static files follow whatever lies in the folder; here each file is opened beneath the root first and sent
from that descriptor. RFC 9110 is the source for ranges and conditions.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import errno
import hmac
import logging
import mimetypes
import os
import socket
import ssl
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from typing import IO, Any, Final

from aiohttp import web

from jumpstarter_driver_opendal.beneath import Beneath, clean_path, is_partial

__all__ = ["Credentials", "FileServer"]

_PIECE: Final = 1 << 18
"""Bytes per write where sendfile cannot be used (TLS)."""
_STEP: Final = 8 << 20
"""Most bytes for one client before the next one gets its turn."""
_HANDSHAKE: Final = 10.0
"""Seconds for that of TLS."""
_MOST: Final = 256
"""Connections at a time: descriptors are shared with all other drivers of the exporter."""
_ARCHIVES: Final = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}
_METHODS: Final = "GET, HEAD"


@dataclass(frozen=True)
class Credentials:
    """A user and password that every request must carry."""

    username: str
    password: str = field(repr=False)

    def match(self, header: str) -> bool:
        """Whether an ``Authorization`` header carries them."""
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            given = base64.b64decode(token.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(given, f"{self.username}:{self.password}".encode())


class FileServer:
    """Serves the files below ``beneath``. ``timeout``: seconds a client may take for a step of a transfer."""

    def __init__(
        self, beneath: Beneath, *, timeout: float, credentials: Credentials | None, logger: logging.Logger
    ) -> None:
        self._beneath = beneath
        self._timeout = timeout
        self._credentials = credentials
        self._logger = logger
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Serve on a listening socket, which is ours from now on."""
        application = web.Application(middlewares=[self._guard])
        application.router.add_route("*", "/{path:.*}", self._answer)
        # a request that never comes, or a connection nobody uses, must not stay for ever
        runner = web.AppRunner(
            application, access_log=None, keepalive_timeout=min(self._timeout, 75.0), shutdown_timeout=0.2
        )
        await runner.setup()
        self._runner = runner
        server = runner.server
        assert server is not None

        def connected() -> asyncio.Protocol:
            protocol = server()
            if len(server.connections) >= _MOST:
                self._logger.warning("%d connections at a time are enough: one more is closed", _MOST)
                # once it is connected, which with TLS is after the handshake
                asyncio.get_running_loop().call_later(_HANDSHAKE + 1 if tls else 0, protocol.force_close)
            return protocol

        self._server = await asyncio.get_running_loop().create_server(
            connected, sock=listener, ssl=tls, ssl_handshake_timeout=_HANDSHAKE if tls else None
        )

    async def stop(self) -> None:
        """Close the socket and the connections."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        if self._credentials is not None and not self._credentials.match(request.headers.get("Authorization", "")):
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="jumpstarter", charset="UTF-8"'})
        response: web.StreamResponse = await handler(request)
        return response

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, headers={"Allow": _METHODS})
        path = request.match_info["path"]
        try:
            file, info = await asyncio.to_thread(self._open, path)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.EIO):
                self._logger.error("GET %r: %s", path, error)
                return web.Response(status=500)
            # what lies outside, folders and what is not there look the same from outside
            self._logger.info("%s asked for %r, which is not served: %s", request.remote, path, _reason(error))
            return web.Response(status=404)
        try:
            return await self._send(request, path, file, info)
        finally:
            file.close()

    def _open(self, path: str) -> tuple[IO[bytes], os.stat_result]:
        clean = clean_path(path)
        if is_partial(clean.rpartition("/")[2]):
            raise FileNotFoundError(errno.ENOENT, "is being written")
        fd = self._beneath.open(clean, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO must not hold us up
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode) or path.endswith("/"):
                raise FileNotFoundError(errno.ENOENT, "is no file")
            return os.fdopen(fd, "rb", buffering=0), info
        except BaseException:
            os.close(fd)
            raise

    async def _send(self, request: web.Request, path: str, file: IO[bytes], info: os.stat_result) -> web.StreamResponse:
        etag = f'"{info.st_mtime_ns:x}-{info.st_size:x}"'
        headers = {
            "Accept-Ranges": "bytes",
            "Content-Type": _content_type(path),
            "ETag": etag,
            "Last-Modified": formatdate(info.st_mtime, usegmt=True),
        }
        if (status := _precondition(request, etag, info)) is not None:
            return web.Response(status=status, headers={"ETag": etag})
        start, end, status = 0, info.st_size, 200
        if "Range" in request.headers and _range_counts(request, etag, info):
            try:
                wanted = _one_range(request, info.st_size)
            except ValueError:
                return web.Response(status=416, headers={"Content-Range": f"bytes */{info.st_size}"})
            if wanted is not None:
                (start, end), status = wanted, 206
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{info.st_size}"
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = end - start
        await response.prepare(request)
        if request.method == "GET" and end > start:
            await self._transfer(request, response, file, start, end)
        await response.write_eof()
        self._logger.debug("%s took %r, bytes %d to %d", request.remote, path, start, end)
        return response

    async def _transfer(
        self, request: web.Request, response: web.StreamResponse, file: IO[bytes], start: int, end: int
    ) -> None:
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client went away")
        if transport.get_extra_info("ssl_object") is None:
            await _Sending(transport, file.fileno(), start, end).run(self._timeout)
            return
        while start < end:
            async with asyncio.timeout(self._timeout):
                data = await asyncio.to_thread(os.pread, file.fileno(), min(_PIECE, end - start), start)
                await response.write(data)
            if not data:
                raise _shortened(transport)
            start += len(data)


class _Sending:
    """Bytes of a file to a socket, by the kernel, whenever the socket takes some.

    ``loop.sendfile`` does not tell how far it is, so that a slow client could not be told from one that is gone.
    """

    def __init__(self, transport: asyncio.Transport, source: int, start: int, end: int) -> None:
        self._transport = transport
        self._source, self._next, self._end = source, start, end
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()

    async def run(self, timeout: float) -> None:
        """Send all. Raises TimeoutError when the client takes nothing for ``timeout`` seconds."""
        # a descriptor of its own, as the loop does not let others wait for one that a transport has
        self._socket = os.dup(self._transport.get_extra_info("socket").fileno())
        try:
            self._loop.add_writer(self._socket, self._send)
            try:
                while not self._done.done():
                    before = self._next
                    await asyncio.wait([self._done], timeout=timeout)
                    if self._next == before and not self._done.done():
                        raise TimeoutError(f"the client took nothing for {timeout:g} s")
            finally:
                self._loop.remove_writer(self._socket)
            self._done.result()
        except BaseException:
            self._done.cancel()
            # the length was promised: only a broken connection tells the client that this is not all
            self._transport.abort()
            raise
        finally:
            os.close(self._socket)

    def _send(self) -> None:
        if self._transport.get_write_buffer_size():
            return  # the headers first: this goes past the transport
        try:
            count = os.sendfile(self._socket, self._source, self._next, min(_STEP, self._end - self._next))
            if count == 0:
                raise ConnectionResetError("the file became shorter while it was sent")
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            if not self._done.done():
                self._done.set_exception(error)
            return
        self._next += count
        if self._next >= self._end and not self._done.done():
            self._done.set_result(None)


def _shortened(transport: asyncio.Transport) -> ConnectionResetError:
    transport.abort()  # as in `_Sending`
    return ConnectionResetError("the file became shorter while it was sent")


def _reason(error: Exception) -> str:
    """Without the path, which a device chose."""
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__


def _content_type(path: str) -> str:
    kind, packing = mimetypes.guess_type(path)
    # never as Content-Encoding: clients would unpack an image that shall arrive as it is
    return _ARCHIVES.get(packing, "application/octet-stream") if packing else kind or "application/octet-stream"


def _modified(info: os.stat_result) -> datetime:
    return datetime.fromtimestamp(int(info.st_mtime), UTC)


def _precondition(request: web.Request, etag: str, info: os.stat_result) -> int | None:
    """412 or 304 when the conditions of the request say so."""
    if (match := request.headers.get("If-Match")) is not None and not _among(etag, match):
        return 412
    if (none := request.headers.get("If-None-Match")) is not None:
        return 304 if _among(etag, none) else None
    since = request.if_modified_since
    return 304 if since is not None and _modified(info) <= since else None


def _among(etag: str, header: str) -> bool:
    return header.strip() == "*" or etag in [one.strip().removeprefix("W/") for one in header.split(",")]


def _range_counts(request: web.Request, etag: str, info: os.stat_result) -> bool:
    """False when the client has a part of another version (``If-Range``) and gets all of this one."""
    wanted = request.headers.get("If-Range")
    if wanted is None:
        return True
    if wanted.startswith('"'):
        return wanted == etag
    return request.if_range is not None and request.if_range == _modified(info)


def _one_range(request: web.Request, size: int) -> tuple[int, int] | None:
    """Start and end of the range, None for what is better answered with the whole (several ranges, other units).

    Raises ValueError for one that is not in the file.
    """
    header = request.headers["Range"].strip()
    unit, _, spec = header.partition("=")
    first, dash, last = spec.strip().partition("-")
    numbers = [part for part in (first, last) if part]
    if (
        unit.strip().lower() != "bytes"
        or not dash
        or not numbers
        or not all(p.isascii() and p.isdigit() for p in numbers)
    ):
        return None
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < int(first):
            return None
    if start >= size or start >= end:
        raise ValueError(header)
    return start, end
