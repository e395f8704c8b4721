# SPDX-License-Identifier: Apache-2.0
"""noVNC for one browser on this machine: its files, and a WebSocket that leads to a driver's stream.

Nothing comes from another site and nothing goes to one; see `jumpstarter.client.local_web`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["find_novnc", "serve_novnc"]

logger = logging.getLogger(__name__)

#: Where noVNC is told to be. A directory with `core/rfb.js` in it.
VARIABLE = "JUMPSTARTER_NOVNC"

#: npm's package, pinned to what was tested.
NPM_PACKAGE = "@novnc/novnc@1.7.0"

_RFB = Path("core", "rfb.js")
_APPLICATION = "vnc.html"
_OWN_PAGE = Path(__file__).with_name("novnc_page.html")
_PING_SECONDS = 30.0
_LINGER_SECONDS = 1.0
#: What a browser sends at once: events, and the clipboard.
_LONGEST_MESSAGE = 16 << 20


def find_novnc(folder: str | os.PathLike[str] | None = None) -> Path:
    """The directory of noVNC: `folder`, $JUMPSTARTER_NOVNC, what npm put into the user's data directory, the system's.

    Raises FileNotFoundError with the command that installs it.
    """
    named = folder or os.environ.get(VARIABLE)
    if named:
        found = Path(named).expanduser()
        if not (found / _RFB).is_file():
            raise FileNotFoundError(f"{found} is not noVNC's directory: there is no {_RFB} in it")
        return found.resolve()
    data = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "jumpstarter-lab"
    places = (
        data / "node_modules/@novnc/novnc",
        Path("/usr/local/share/novnc"),
        Path("/usr/share/novnc"),
        Path("/usr/share/webapps/novnc"),
    )
    for place in places:
        if (place / _RFB).is_file():
            return place.resolve()
    raise FileNotFoundError(
        "noVNC is not installed on this machine: apt install novnc (Debian, Ubuntu), dnf install novnc (Fedora), or "
        f"for this user alone: npm install --prefix {data} {NPM_PACKAGE} (${VARIABLE} can name any directory of it)"
    )


@asynccontextmanager
async def serve_novnc(
    files: Path, listener: socket.socket, open_stream: Callable[[], Any], what: str
) -> AsyncIterator[str]:
    """Serve noVNC on a listening loopback socket; yields the URL to open. Closes everything at the end.

    files: see `find_novnc`. open_stream: makes the async context manager of a new stream to the VNC server. what: names
    the forward in log messages.
    """
    from jumpstarter.client.local_web import serve_locally

    bridge = _Bridge(open_stream, what)
    page = _APPLICATION if (files / _APPLICATION).is_file() else _OWN_PAGE.name
    token = ""

    def routes(application: web.Application, path: str) -> None:
        nonlocal token
        token = path.lstrip("/")
        application.router.add_get(f"{path}/websockify", bridge.handle)
        # noVNC takes "path" from the server's root up to version 1.4, from its page later on.
        application.router.add_get(f"{path}{path}/websockify", bridge.handle)
        application.router.add_get(f"{path}/{_OWN_PAGE.name}", _own_page)
        application.router.add_static(f"{path}/", files)

    async with serve_locally(listener, routes) as url:
        try:
            yield f"{url}/{page}?autoconnect=1&reconnect=1&resize=scale&path={token}/websockify"
        finally:
            await bridge.close()


async def _own_page(request: web.Request) -> web.Response:
    from aiohttp import web

    return web.Response(text=_OWN_PAGE.read_text(encoding="utf-8"), content_type="text/html")


class _Bridge:
    """WebSockets on one side, streams of the driver on the other: one for each."""

    def __init__(self, open_stream: Callable[[], Any], what: str) -> None:
        self._open_stream = open_stream
        self._what = what
        self._tasks: set[asyncio.Task[Any]] = set()

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        """One connection of noVNC, to its end."""
        from aiohttp import web
        from anyio import BrokenResourceError

        from jumpstarter.common.exceptions import JumpstarterException

        # Frames of a screen are compressed by VNC itself.
        socket = web.WebSocketResponse(
            protocols=("binary",), heartbeat=_PING_SECONDS, compress=False, max_msg_size=_LONGEST_MESSAGE
        )
        await socket.prepare(request)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            async with self._open_stream() as stream:
                await self._join(socket, stream)
            await socket.close()
        except (JumpstarterException, OSError, BrokenResourceError) as error:
            logger.warning("%s: %s", self._what, error)
            # A close frame holds 125 bytes with its status.
            await socket.close(code=1011, message=str(error).encode()[:120])
        finally:
            self._tasks.discard(task)
        return socket

    async def close(self) -> None:
        """End every connection and wait until its stream is closed."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _join(self, socket: web.WebSocketResponse, stream: Any) -> None:
        up = asyncio.create_task(_upwards(socket, stream))
        down = asyncio.create_task(_downwards(socket, stream))
        try:
            done, _ = await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            if down not in done and up.exception() is None:
                # The browser left. Let the VNC server see that, rather than an aborted connection. (A reader that is
                # cancelled aborts it: that comes only when the server does not end.)
                await stream.send_eof()
                await asyncio.wait((down,), timeout=_LINGER_SECONDS)
        finally:
            up.cancel()
            down.cancel()
            await asyncio.wait((up, down))
        for task in done:
            task.result()


async def _upwards(socket: web.WebSocketResponse, stream: Any) -> None:
    """What the browser sends, until it closes."""
    from aiohttp import WSMsgType

    async for message in socket:
        if message.type is WSMsgType.BINARY:
            await stream.send(message.data)
        elif message.type is WSMsgType.ERROR:
            return  # the browser went away, which needs no word


async def _downwards(socket: web.WebSocketResponse, stream: Any) -> None:
    """What the VNC server sends, until it ends; thrown away once the browser is gone."""
    from anyio import EndOfStream

    try:
        while True:
            data = await stream.receive()
            try:
                await socket.send_bytes(data)
            except ConnectionResetError:
                continue
    except EndOfStream:
        return
