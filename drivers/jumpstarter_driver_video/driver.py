# SPDX-License-Identifier: Apache-2.0
"""The interface of video sources, and the driver of cameras that serve pictures over HTTP."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit, urlunsplit

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import Driver, export, exportstream
from jumpstarter.driver.secret import check_secret, read_secret
from jumpstarter_driver_video.common import VideoState
from jumpstarter_driver_video.http import Camera, serve_camera

__all__ = ["HttpVideo", "VideoInterface"]


class VideoInterface(metaclass=ABCMeta):
    """A source of pictures: a camera, a grabber.

    A picture is a JPEG. `connect` leads to an HTTP server that serves a stream of them (multipart/x-mixed-replace, as
    browsers show it) at `stream_path`.
    """

    driver_type: ClassVar[str] = "video"

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_video.client.VideoClient"

    @abstractmethod
    async def picture(self) -> bytes:
        """The newest picture. For `snapshot` and `snapshot_stream`; not exported."""

    @abstractmethod
    async def state(self) -> VideoState:
        """Whether the source delivers pictures, and which."""

    @abstractmethod
    async def stream_path(self) -> str:
        """Path of the HTTP request that streams pictures on `connect`."""

    @abstractmethod
    def connect(self) -> AbstractAsyncContextManager[Any]:
        """Stream: a connection to an HTTP server."""

    @export(readonly=True)
    async def snapshot(self) -> str:
        """The newest picture, base64."""
        return b64encode(await self.picture()).decode("ascii")

    @exportstream
    @asynccontextmanager
    async def snapshot_stream(self) -> AsyncIterator[Any]:
        """Stream: the newest picture as it is, then the end. A third less to move than `snapshot`."""
        from anyio import ClosedResourceError, create_memory_object_stream
        from anyio.streams.stapled import StapledObjectStream

        picture = await self.picture()
        send, receive = create_memory_object_stream[bytes](1)
        nowhere, unread = create_memory_object_stream[bytes](1)
        with unread:
            await send.send(picture)
            await send.aclose()
            try:
                async with StapledObjectStream(nowhere, receive) as stream:
                    yield stream
            except ClosedResourceError:
                pass  # a client that writes into it


@dataclass(kw_only=True)
class HttpVideo(VideoInterface, Driver):
    """A camera that serves MJPEG over HTTP: an IP camera, an ESP32, a remote ustreamer.

    url: http(s) URL of the stream. snapshot_url: of a single picture; without one the first of the stream is taken.
    username, password (or password_file, read at each use; or as part of url): basic authentication. They stay on the
    exporter: clients reach the camera's stream and picture only, through a connection that is authenticated for them.
    ca_file: certificates to trust for https instead of the system's. timeout: seconds for a picture, and
    between two parts of the stream.
    """

    needs: ClassVar[tuple[str, ...]] = ("aiohttp",)

    url: str = field(repr=False)
    snapshot_url: str | None = field(default=None, repr=False)
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    password_file: str | None = None
    ca_file: str | None = None
    timeout: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, url in (("url", self.url), ("snapshot_url", self.snapshot_url)):
            if url is not None:
                self._check(name, url)
        check_secret("password", self.password, self.password_file)
        if self.timeout <= 0:
            raise ConfigurationError(f"HTTP video: timeout is {self.timeout:g}, must be more than 0 seconds")

    def _check(self, name: str, url: str) -> None:
        parts = urlsplit(url)
        try:
            complete = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is none
            complete = False
        if not complete:
            raise ConfigurationError(
                f'HTTP video: {name} "{_without_user(url)}" is no http:// or https:// URL with a host'
            )

    @property
    def _camera(self) -> Camera:
        return Camera(
            url=_without_user(self.url),
            snapshot_url=_without_user(self.snapshot_url) if self.snapshot_url is not None else None,
            credentials=self._credentials(),
            ca_file=self.ca_file,
            timeout=self.timeout,
        )

    def _credentials(self) -> tuple[str, str] | None:
        parts = urlsplit(self.url)
        user = self.username if self.username is not None else parts.username and unquote(parts.username)
        if not user:
            return None
        password = read_secret("password", self.password, self.password_file)
        return user, unquote(parts.password or "") if password is None else password

    async def picture(self) -> bytes:
        """The newest picture. Raises ConnectionError or TimeoutError saying what the camera did."""
        return await self._camera.picture()

    @export(readonly=True)
    async def state(self) -> VideoState:
        """Online when a picture can be had at this moment; its size."""
        from jumpstarter_driver_video.common import jpeg_size

        try:
            width, height = jpeg_size(await self.picture())
        except OSError as error:
            return VideoState(online=False, problem=str(error))
        return VideoState(online=True, width=width, height=height)

    @export(readonly=True)
    async def stream_path(self) -> str:
        """Path and query of the camera's stream."""
        return self._camera.stream_path

    @exportstream
    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Any]:
        """Stream: HTTP for the camera's stream and picture, and for nothing else of it."""
        async with serve_camera(self._camera) as stream:
            yield stream


def _without_user(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
