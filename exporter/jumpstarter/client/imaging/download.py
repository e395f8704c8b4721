# SPDX-License-Identifier: Apache-2.0
"""Images that are named by URL: downloaded by this side, so that no exporter is made to fetch what others name."""

from __future__ import annotations

import asyncio
import base64
import http.client
import os
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import unquote, urlsplit

from jumpstarter.client.imaging.cache import cache_folder
from jumpstarter.client.imaging.result import ImagingError, Meter
from jumpstarter.common.storage import BLOCK_SIZE

__all__ = ["is_url", "local_copy"]

_TIMEOUT: Final = 60.0
"""Seconds without a byte before a server counts as dead."""


def is_url(src: str | os.PathLike[str]) -> bool:
    """Whether ``src`` is an http or https URL."""
    return isinstance(src, str) and src.lower().startswith(("http://", "https://"))


@asynccontextmanager
async def local_copy(src: str | os.PathLike[str], meter: Meter) -> AsyncIterator[tuple[str, str]]:
    """Path and name of the image; of a URL, the path leads to a download without a name in any folder, so that
    nothing is left of it however this process ends."""
    if not is_url(src):
        yield os.fspath(src), os.fspath(src)
        return
    folder = cache_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd, path = tempfile.mkstemp(prefix=".download-", dir=folder)
    stop = threading.Event()
    try:
        os.unlink(path)
        task = asyncio.ensure_future(asyncio.to_thread(_download, str(src), fd, meter, stop))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.gather(task, return_exceptions=True)
            raise
        yield f"/proc/self/fd/{fd}", _without_secrets(str(src))
    finally:
        os.close(fd)


def _download(url: str, fd: int, meter: Meter, stop: threading.Event) -> None:
    shown = _without_secrets(url)
    try:
        with _opener().open(_request(url), timeout=_TIMEOUT) as response:
            length = response.headers.get("Content-Length")
            total = int(length) if length is not None and length.isdigit() else None
            done = 0
            while data := response.read(BLOCK_SIZE):
                if stop.is_set():
                    return
                os.write(fd, data)
                done += len(data)
                meter.tell("downloading", done, total)
    except urllib.error.HTTPError as error:
        raise ImagingError(f"{shown}: the server answers {error.code} {error.reason}", code="download") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise ImagingError(f"{shown} cannot be downloaded: {reason}", code="download") from error
    if total is not None and done != total:
        raise ImagingError(f"{shown}: the download ended after {done} of {total} bytes", code="download")


def _request(url: str) -> urllib.request.Request:
    """User and password of the URL as basic authentication, for this server only."""
    parts = urlsplit(url)
    if parts.username is None:
        return urllib.request.Request(url)
    request = urllib.request.Request(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl())
    secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(secret.encode()).decode()}")
    return request


def _opener() -> urllib.request.OpenerDirector:
    """http and https only: a redirect must not lead to a local file."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPRedirectHandler, urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):  # fmt: skip
        opener.add_handler(handler())
    return opener


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
