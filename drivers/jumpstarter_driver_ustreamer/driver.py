# SPDX-License-Identifier: Apache-2.0
"""Video from a V4L2 device (a camera, an HDMI grabber) with ustreamer."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import Driver, export, exportstream
from jumpstarter_driver_ustreamer.common import UStreamerState
from jumpstarter_driver_ustreamer.server import UStreamerServer
from jumpstarter_driver_video.driver import VideoInterface
from jumpstarter_driver_video.http import Camera

__all__ = ["UStreamer"]

_PROGRAM = "ustreamer"
#: Options that would make it listen elsewhere than this driver looks, or show a password to every user of the host.
_OURS = {
    "unix": "the driver sets it",
    "unix-rm": "the driver sets it",
    "unix-mode": "the driver sets it",
    "host": "the driver uses a socket that only the exporter reaches",
    "port": "the driver uses a socket that only the exporter reaches",
    "user": "the driver's socket is the exporter's alone and needs no password",
    "passwd": "the driver's socket is the exporter's alone and needs no password",
    "exit-on-parent-death": "the driver sees to that",
}

_T = TypeVar("_T")
Argument = str | int | float | bool | None


@dataclass(kw_only=True)
class UStreamer(VideoInterface, Driver):
    """A V4L2 device through ustreamer, which the driver runs from the start of a session to its end.

    executable: ustreamer's path or name; by default it is looked up in PATH. args: its long options without dashes
    ({device: /dev/video0, resolution: 1920x1080}); an option without a value is true or null. start_timeout: seconds it
    may take to answer after its start. timeout: seconds for a picture.

    When ustreamer ends by itself that is logged and it is started again, at once and then after ever longer pauses; a
    call in the meantime tries as well, and says how it ended when it does not come up.
    """

    needs: ClassVar[tuple[str, ...]] = ("aiohttp",)

    executable: str = _PROGRAM
    args: dict[str, Argument] = field(default_factory=dict)
    start_timeout: float = 10.0
    timeout: float = 10.0
    _server: UStreamerServer = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        found = shutil.which(self.executable)
        if found is None:
            raise ConfigurationError(
                f'ustreamer: program "{self.executable}" is not installed on the exporter host (apt install ustreamer)'
            )
        self._server = UStreamerServer(found, _arguments(self.args), self.start_timeout, self.logger)

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_ustreamer.client.UStreamerClient"

    def reset(self) -> None:
        """Start ustreamer at the start of a session, so that pictures are there when they are asked for."""
        super().reset()
        self._server.start()

    def close(self) -> None:
        """End ustreamer at the end of a session."""
        try:
            super().close()
        finally:
            self._server.stop()

    async def _camera(self) -> Camera:
        """ustreamer, running."""
        return Camera(
            url="http://localhost/stream",
            snapshot_url="http://localhost/snapshot",
            unix=await self._server.ready(),
            timeout=self.timeout,
        )

    async def _ask(self, question: Callable[[Camera], Awaitable[_T]]) -> _T:
        """An answer of ustreamer's; it gets a second chance when it dies while it is asked."""
        try:
            return await question(await self._camera())
        except ConnectionError as error:
            self.logger.warning("%s; asking again", error)
            return await question(await self._camera())

    async def picture(self) -> bytes:
        """The newest picture; ustreamer's "no signal" (or the one of --blank) while the device delivers none."""
        return await self._ask(Camera.picture)

    @export(readonly=True)
    async def state(self) -> UStreamerState:
        """What ustreamer says about the device."""
        answer = await self._ask(_read_state)
        try:
            value = json.loads(answer)
            result = UStreamerState.Result.model_validate(value["result"])
            ok = bool(value["ok"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConnectionError(
                f"ustreamer: its state cannot be understood: {' '.join(str(error).split())}"
            ) from None
        source = result.source
        return UStreamerState(
            online=source.online,
            width=source.resolution.width,
            height=source.resolution.height,
            fps=source.captured_fps,
            problem="" if source.online else self._server.complaint or "ustreamer gets no pictures from the device",
            ok=ok,
            result=result,
            restarts=self._server.restarts,
            last_exit=self._server.last_exit,
        )

    @export(readonly=True)
    async def stream_path(self) -> str:
        """Path of the stream on `connect`."""
        return "/stream"

    @exportstream
    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Any]:
        """Stream: a connection to ustreamer's HTTP server."""
        from jumpstarter.streams.sockets import connect_unix

        async with await connect_unix(await self._server.ready()) as stream:
            yield stream


async def _read_state(camera: Camera) -> bytes:
    async with camera.get("http://localhost/state") as response:
        return await response.read()


def _arguments(args: Mapping[str, Argument]) -> list[str]:
    argv: list[str] = []
    for name, value in args.items():
        if name in _OURS:
            raise ConfigurationError(f'ustreamer: args: "{name}" cannot be set: {_OURS[name]}')
        if name.startswith("-") or not name:
            raise ConfigurationError(f'ustreamer: args: "{name}" has to be a long option without dashes, as "device"')
        if value is False:
            raise ConfigurationError(f'ustreamer: args: "{name}" is false; leave it out')
        argv.append(f"--{name}")
        if value is not None and value is not True:
            argv.append(str(value))
    return argv
