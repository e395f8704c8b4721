# SPDX-License-Identifier: Apache-2.0
"""The unix socket: who may connect, how a request is read, answered, cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from .errors import AgentError, as_agent_error
from .framing import encode_frame, read_frame
from .paths import MAX_SOCKET_PATH
from .request import Request, parse_request

__all__ = ["Handler", "Peer", "Server"]

log = logging.getLogger(__name__)

REQUEST_SECONDS = 30.0
"""A connection that has not sent its whole request by then is closed."""

MAX_CONNECTIONS = 1024
"""Open connections; one more is told "busy"."""

_READ_SIZE = 256 * 1024


class Peer:
    """The other end of one connection, after its request was read."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._watch: asyncio.Task[None] | None = None
        self.raw = False

    async def event(self, event: str, data: dict[str, Any]) -> None:
        """Send one event frame; waits while the peer does not read."""
        await self._send({"type": "event", "event": event, "data": data})

    async def result(self, value: dict[str, Any]) -> None:
        """Send the final frame of a request that succeeded."""
        await self._send({"type": "result", "value": value})

    async def error(self, error: AgentError) -> None:
        """Send the final frame of a request that failed."""
        await self._send({"type": "error", "error": error.as_dict()})

    async def finish(self, frame: dict[str, Any]) -> None:
        """Send a final frame made elsewhere."""
        await self.stop_watching()
        await self._send(frame)

    async def ready(self, value: dict[str, Any]) -> None:
        """Send the "ready" frame; from here on the connection carries raw bytes and this object's byte methods."""
        await self.stop_watching()
        self.raw = True
        await self._send({"type": "ready", "value": value})

    async def receive(self) -> bytes:
        """Raw bytes of the peer; b"" when it has closed its direction."""
        return await self._reader.read(_READ_SIZE)

    async def send(self, data: bytes) -> None:
        """Raw bytes to the peer; waits while the peer does not read."""
        self._writer.write(data)
        await self._writer.drain()

    def send_eof(self) -> None:
        """Close our direction only."""
        if self._writer.can_write_eof() and not self._writer.is_closing():
            self._writer.write_eof()

    async def wait_gone(self) -> None:
        """Return when the peer has closed both directions. A half-close, which `receive` reports, is not that."""
        sock = self._writer.get_extra_info("socket")
        if sock is None or not hasattr(select, "epoll"):
            await asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        # The loop watches for readable and writable only; hang-up alone needs a poller of its own, itself readable.
        with select.epoll() as poller:
            poller.register(sock.fileno(), 0)
            loop.add_reader(poller.fileno(), gone.set)
            try:
                await gone.wait()
            finally:
                loop.remove_reader(poller.fileno())

    def on_disconnect(self, action: Callable[[], object]) -> None:
        """Call `action` when the peer goes away before its request is answered."""
        self._watch = asyncio.create_task(self._watch_disconnect(action))

    async def stop_watching(self) -> None:
        """Leave the incoming bytes to whoever reads next."""
        if self._watch is not None and self._watch is not asyncio.current_task():
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        self._watch = None

    async def _watch_disconnect(self, action: Callable[[], object]) -> None:
        try:
            data = await self._reader.read(_READ_SIZE)
        except OSError:
            data = b""
        if data:
            log.warning("a client sent %d bytes after its request; its request is cancelled", len(data))
        action()

    async def _send(self, message: dict[str, Any]) -> None:
        await self.send(encode_frame(message))


Handler = Callable[[Request, Peer], Awaitable[dict[str, Any] | None]]
"""Runs a request: returns the result value, or None when it used the connection as a raw stream."""


class Server:
    """Accepts connections of our own uid on any number of unix sockets and runs `handler` for each request."""

    def __init__(self, handler: Handler, *, request_seconds: float = REQUEST_SECONDS) -> None:
        self._handler = handler
        self._request_seconds = request_seconds
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._work: dict[asyncio.Task[None], asyncio.Future[dict[str, Any] | None]] = {}

    async def listen(self, path: Path) -> None:
        """Serve on `path` (mode 0600), replacing a dead socket file. The directory must be private already."""
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise AgentError("invalid", f"{path}: longer than the {MAX_SOCKET_PATH} bytes a unix socket may have")
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(mask)
        self._servers.append(await asyncio.start_unix_server(self._accepted, sock=listener, backlog=128))

    async def close(self, seconds: float) -> None:
        """Stop listening and cancel what is still running; its callers are told. Takes at most `seconds`."""
        for server in self._servers:
            server.close()
        mine = asyncio.current_task()
        open_now = [task for task in self._connections if task is not mine]
        for task in open_now:
            work = self._work.get(task)
            # Cancelling the work, not the connection: what is done already is still being answered.
            (task if work is None else work).cancel()
        if not open_now:
            return
        _, stuck = await asyncio.wait(open_now, timeout=seconds)
        for task in stuck:
            log.warning("a request did not end within %.1f s of being cancelled", seconds)
            task.cancel()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.CancelledError) as error:
            # The peer is gone, or the agent ends: nobody is left to tell.
            log.debug("connection ended: %r", error)
        finally:
            self._connections.discard(task)
            self._work.pop(task, None)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        try:
            self._check_peer(writer)
            async with asyncio.timeout(self._request_seconds):
                document = await read_frame(reader)
            if document is None:
                return
            request = parse_request(document)
        except TimeoutError:
            await peer.error(AgentError("timeout", f"no whole request within {self._request_seconds:g} s"))
            return
        except AgentError as error:
            log.warning("request refused: %s", error.message)
            await peer.error(error)
            return
        await self._answer(request, peer)

    def _check_peer(self, writer: asyncio.StreamWriter) -> None:
        uid = _peer_uid(writer)
        if uid is not None and uid != os.getuid():
            raise AgentError("refused", f"this agent belongs to uid {os.getuid()}; uid {uid} may not use it")
        if len(self._connections) > MAX_CONNECTIONS:
            raise AgentError("busy", f"more than {MAX_CONNECTIONS} connections are open")

    async def _answer(self, request: Request, peer: Peer) -> None:
        work = asyncio.ensure_future(self._handler(request, peer))
        task = asyncio.current_task()
        assert task is not None
        self._work[task] = work
        peer.on_disconnect(work.cancel)
        try:
            value = await work
        except asyncio.CancelledError:
            if not work.cancelled():
                work.cancel()
                await asyncio.wait([work])
            log.info("%s: cancelled", request.op)
            # Either the peer is gone (the write below goes nowhere) or the agent is ending and says so.
            await self._finish(peer, AgentError("canceled", f"{request.op}: canceled"))
            raise
        except Exception as error:
            known = as_agent_error(error)
            if known.code == "internal":
                log.exception("%s failed", request.op)
            await self._finish(peer, known)
        else:
            await self._finish(peer, value)

    async def _finish(self, peer: Peer, outcome: AgentError | dict[str, Any] | None) -> None:
        await peer.stop_watching()
        if peer.raw or outcome is None:
            return
        if isinstance(outcome, AgentError):
            await peer.error(outcome)
            return
        try:
            frame = {"type": "result", "value": outcome}
            data = encode_frame(frame)
        except (AgentError, TypeError, ValueError) as error:
            await peer.error(AgentError("internal", f"the result cannot be sent: {error}"))
            return
        await peer.send(data)


def _peer_uid(writer: asyncio.StreamWriter) -> int | None:
    """Uid of the process at the other end, None where the system cannot tell (file modes protect there)."""
    option = getattr(socket, "SO_PEERCRED", None)
    sock = writer.get_extra_info("socket")
    if option is None or sock is None:
        return None
    layout = struct.Struct("3i")
    _, uid, _ = layout.unpack(sock.getsockopt(socket.SOL_SOCKET, option, layout.size))
    return int(uid)
