# SPDX-License-Identifier: Apache-2.0
"""A web server for one browser on this machine.

It listens on the loopback interface only. As every user of the machine can connect to that, everything it serves lies
below a random path that only the URL tells, and where the kernel says whose a connection is (Linux), only this user's
are served: the URL is an argument of the browser's process, which everybody can read. A page of another site cannot get
in either: it does not know the path, and requests that name a foreign origin, or a foreign host name (DNS rebinding),
are refused. Nothing is fetched from elsewhere: the browser is told to allow no other source. Needs aiohttp.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["serve_locally"]

#: For an answer that is under way. A live picture's never ends by itself.
_CLOSE_SECONDS = 0.2


@asynccontextmanager
async def serve_locally(listener: socket.socket, routes: Callable[[web.Application, str], None]) -> AsyncIterator[str]:
    """Serve on a listening loopback socket; yields the URL under which everything lies, "http://127.0.0.1:PORT/RANDOM".

    routes: called with the application and the random path ("/RANDOM"), adds the handlers.
    """
    from aiohttp import web

    host, port = listener.getsockname()[:2]
    path = f"/{secrets.token_urlsafe(24)}"
    # Browsers leave the port out where it is the usual one.
    hosts = {
        name for name in (host, "localhost") for name in ((name, f"{name}:80") if port == 80 else (f"{name}:{port}",))
    }
    application = web.Application(middlewares=[_only_for(hosts)])
    application.on_response_prepare.append(_headers(hosts))
    routes(application, path)
    # No access log: it would show the path.
    runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=_CLOSE_SECONDS)
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        yield f"http://{host}:{port}{path}"
    finally:
        await runner.cleanup()


def _only_for(hosts: set[str]) -> Any:
    from aiohttp import web

    origins = {f"http://{host}" for host in hosts}

    @web.middleware
    async def check(request: web.Request, handler: Any) -> web.StreamResponse:
        if not _is_ours(request):
            raise web.HTTPForbidden(text="this page is for the user who opened it\n")
        # Programs that are no browsers send no origin, and know the path or get nothing.
        origin = request.headers.get("Origin")
        if request.headers.get("Host") not in hosts or (origin is not None and origin not in origins):
            raise web.HTTPForbidden(text="this page is for the browser it was opened in\n")
        answer: web.StreamResponse = await handler(request)
        return answer

    return check


def _is_ours(request: web.Request) -> bool:
    """Whether this user made the connection. A connection that is gone already is nobody's."""
    transport = request.transport
    if transport is None:
        return False
    try:
        return _user_of(transport.get_extra_info("peername"), transport.get_extra_info("sockname")) == os.geteuid()
    except FileNotFoundError:
        return not sys.platform.startswith("linux")  # nobody to ask


def _user_of(local: tuple[str, int], remote: tuple[str, int]) -> int | None:
    """The user whose socket is at `local`, connected to `remote`; None when there is no such socket.

    Raises FileNotFoundError where the kernel does not tell. Its table: proc(5), /proc/net/tcp.
    """
    wanted = [_hex(local), _hex(remote)]
    with open("/proc/net/tcp", encoding="ascii") as table:
        for line in table:
            words = line.split()
            # A socket that its process has closed has no inode, and then user 0 whoever it was.
            if words[1:3] == wanted and words[9] != "0":
                return int(words[7])
    return None


def _hex(address: tuple[str, int]) -> str:
    number = int.from_bytes(socket.inet_aton(address[0]), sys.byteorder)
    return f"{number:08X}:{address[1]:04X}"


def _headers(hosts: set[str]) -> Any:
    sockets = " ".join(sorted(f"ws://{host}" for host in hosts))
    policy = (
        "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        f"img-src 'self' data: blob:; connect-src 'self' {sockets}; "
        "frame-ancestors 'none'; form-action 'none'; base-uri 'none'"
    )

    async def add(request: web.Request, response: web.StreamResponse) -> None:
        response.headers.setdefault("Content-Security-Policy", policy)
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Content-Type-Options"] = "nosniff"

    return add
