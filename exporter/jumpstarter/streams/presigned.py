# SPDX-License-Identifier: Apache-2.0
"""Transfers that the exporter makes itself, from or to a URL a client names.

A client that can name any URL can make the exporter fetch from the lab's own network, so nothing is allowed until the
exporter's configuration says so (``allowPresignedUrls``: globs over the whole URL). Every redirect is checked against
the same list.
"""

from __future__ import annotations

import http.client
import logging
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from typing import IO, Any
from urllib.parse import SplitResult, urljoin, urlsplit

from anyio import EndOfStream
from anyio.to_thread import run_sync

from jumpstarter.common.resources import PresignedRequestResource
from jumpstarter.streams.frames import MAX_PAYLOAD

__all__ = ["allow_urls", "open_presigned"]

logger = logging.getLogger(__name__)

_allowed: tuple[str, ...] = ()
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 10
_SENSITIVE = ("authorization", "cookie", "proxy-authorization", "x-amz-", "x-ms-", "x-goog-")
_CONNECT_TIMEOUT = 30.0


def allow_urls(patterns: Iterable[str]) -> None:
    """Set the globs of URLs that clients may have this exporter transfer. Case-sensitive, over the whole URL."""
    global _allowed
    _allowed = tuple(patterns)


def _bare(url: str) -> str:
    """The URL without its query, which may hold a signature."""
    return url.partition("?")[0]


def _checked(url: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{_bare(url)} is not an http(s) URL")
    if not any(fnmatchcase(url, pattern) for pattern in _allowed):
        raise PermissionError(
            f"this exporter does not transfer {_bare(url)} itself: its configuration does not list it under "
            "allowPresignedUrls; send the file from the client instead"
        )
    return parts


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port


def _request(
    method: str, url: str, headers: Mapping[str, str], deadline: float, body: IO[bytes] | None = None, size: int = 0
) -> http.client.HTTPResponse:
    """Send a request and follow its redirects. Blocking."""
    headers = dict(headers)
    for _ in range(_MOST_REDIRECTS + 1):
        parts = _checked(url)
        timeout = min(_CONNECT_TIMEOUT, deadline - time.monotonic())
        if timeout <= 0:
            raise TimeoutError(f"{method} {_bare(url)}: not done in time")
        assert parts.hostname is not None
        if parts.scheme == "https":
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=timeout, context=ssl.create_default_context()
            )
        else:
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        extra = {} if body is None else {"Content-Length": str(size)}
        if body is not None:
            body.seek(0)
        connection.request(method, path, body=body, headers={**headers, **extra})
        response = connection.getresponse()
        if response.status in _REDIRECTS and (location := response.headers.get("Location")):
            connection.close()
            target = urljoin(url, location)
            if _origin(urlsplit(target)) != _origin(parts):
                headers = {k: v for k, v in headers.items() if not k.lower().startswith(_SENSITIVE)}
            url = target
            continue
        if response.status >= 400:
            connection.close()
            raise RuntimeError(f"{method} {_bare(url)}: HTTP {response.status} {response.reason}")
        return response
    raise RuntimeError(f"{method} {_bare(url)}: more than {_MOST_REDIRECTS} redirects")


class _Download:
    """A GET response as a stream; checks that as much came as was announced."""

    def __init__(self, response: http.client.HTTPResponse, url: str, deadline: float) -> None:
        self._response = response
        self._url = _bare(url)
        self._deadline = deadline

    async def receive(self) -> bytes:
        if time.monotonic() > self._deadline:
            raise TimeoutError(f"GET {self._url}: not done in time")
        data = await run_sync(self._response.read, MAX_PAYLOAD)
        if not data:
            if self._response.length:
                raise RuntimeError(f"GET {self._url}: the connection ended {self._response.length} bytes too early")
            raise EndOfStream
        return data

    async def send(self, data: bytes) -> None:
        raise ValueError(f"{self._url} was given for reading")

    async def send_eof(self) -> None: ...

    async def aclose(self) -> None:
        self._response.close()


class _Upload:
    """Collects what the driver sends; the PUT happens at the end, when its length is known."""

    def __init__(self, resource: PresignedRequestResource, deadline: float) -> None:
        self._resource = resource
        self._deadline = deadline
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="jumpstarter-")  # noqa: SIM115 (closed in aclose)
        self._size = 0

    async def receive(self) -> bytes:
        raise ValueError(f"{_bare(self._resource.url)} was given for writing")

    async def send(self, data: bytes) -> None:
        await run_sync(self._file.write, data)
        self._size += len(data)

    async def send_eof(self) -> None:
        resource = self._resource

        def put() -> None:
            response = _request("PUT", resource.url, resource.headers, self._deadline, self._file, self._size)
            response.read()
            response.close()

        await run_sync(put)

    async def aclose(self) -> None:
        self._file.close()


@asynccontextmanager
async def open_presigned(resource: PresignedRequestResource, timeout: float) -> AsyncIterator[Any]:
    """The transfer as a stream. timeout: seconds for all of it.

    Raises PermissionError for a URL the policy refuses, RuntimeError for an HTTP error (without the URL's query).
    """
    deadline = time.monotonic() + timeout
    _checked(resource.url)
    if resource.method == "PUT":
        upload = _Upload(resource, deadline)
        try:
            yield upload
        finally:
            await upload.aclose()
        return
    response = await run_sync(_request, "GET", resource.url, resource.headers, deadline)
    download = _Download(response, resource.url, deadline)
    try:
        yield download
    finally:
        await download.aclose()
