# SPDX-License-Identifier: Apache-2.0
"""Turn a driver's byte stream into something other programs and libraries understand.

Adapters work on the client side only. Each is a context manager: what it opens exists while the ``with`` block runs.

    with PortforwardAdapter(client=client.ssh) as (host, port):
        ...
    with PexpectAdapter(client=client.console) as console:
        console.expect("login: ")
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from jumpstarter.streams.sockets import SocketStream
from jumpstarter.streams.sockets import accept as accept_connection

if TYPE_CHECKING:
    import fabric
    from pexpect.fdpexpect import fdspawn

    from jumpstarter.client import DriverClient

__all__ = [
    "ClientAdapter",
    "FabricAdapter",
    "PexpectAdapter",
    "PortforwardAdapter",
    "UnixPortforwardAdapter",
    "forward_listener",
    "forward_socket",
    "listen_tcp",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")
_BACKLOG = 1024
#: Seconds that written data may take to leave, and that the peer may take to end its side, when a forward closes.
_FLUSH, _LINGER = 5.0, 1.0


# --- the machinery: in the client's event loop ------------------------------------------------------------------

OpenStream = Callable[[], Any]


async def _forward(sock: socket.socket, open_stream: OpenStream, what: str) -> None:
    """Join one local socket and one new stream of the driver until both directions have ended."""
    from anyio import BrokenResourceError

    from jumpstarter.common.exceptions import JumpstarterException
    from jumpstarter.streams.common import forward_stream

    local = SocketStream(sock)
    try:
        async with open_stream() as remote:
            async with forward_stream(local, remote):
                pass
            if (ended := getattr(remote, "error", None)) is not None and (error := await ended()) is not None:
                raise error
    except (JumpstarterException, OSError, BrokenResourceError) as error:
        # The program at the local end only sees its connection aborted; the reason is for whoever runs the forward.
        logger.warning("%s: %s", what, error)
        await local.reset()
    finally:
        await local.aclose()


@asynccontextmanager
async def forward_listener(listener: socket.socket, open_stream: OpenStream, what: str) -> AsyncIterator[None]:
    """Accept connections on a listening socket and join each with a stream of its own. Closes everything at the end.

    open_stream: makes the async context manager of a new stream. what: names the forward in log messages.
    """
    loop = asyncio.get_running_loop()
    connections: set[asyncio.Task[None]] = set()

    def done(task: asyncio.Task[None]) -> None:
        connections.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s: %r", what, error, exc_info=error)

    async def accept() -> None:
        while True:
            try:
                sock = await accept_connection(listener)
            except ConnectionAbortedError:
                continue
            except OSError as error:
                # Out of descriptors, mostly. The waiting connection stays in the queue until some are free again.
                logger.error("%s: cannot accept a connection: %s", what, error)
                await asyncio.sleep(0.1)
                continue
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = loop.create_task(_forward(sock, open_stream, what))
            connections.add(task)
            task.add_done_callback(done)

    listener.setblocking(False)
    acceptor = loop.create_task(accept())
    try:
        yield
    finally:
        tasks = [acceptor, *connections]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        listener.close()


@asynccontextmanager
async def forward_socket(sock: socket.socket, open_stream: OpenStream, what: str) -> AsyncIterator[None]:
    """Join one connected socket with one stream. The stream is open when the context is entered."""
    from jumpstarter.streams.common import copy_stream

    local = SocketStream(sock)
    async with open_stream() as remote:
        up = asyncio.create_task(copy_stream(remote, local))
        down = asyncio.create_task(copy_stream(local, remote))
        try:
            yield
        finally:
            # What was written last ("reboot\n") must get through although the writer is gone: it is followed by an
            # end of stream, which a console answers with its own. A service that keeps talking is cut off.
            await asyncio.wait([up], timeout=_FLUSH)
            await asyncio.wait([down], timeout=_LINGER)
            up.cancel()
            down.cancel()
            results = await asyncio.gather(up, down, return_exceptions=True)
            await local.aclose()
            for result in results:
                if isinstance(result, Exception):
                    logger.warning("%s: %s", what, result)


# --- adapters ---------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class ClientAdapter(Generic[T]):
    """Base of adapters: a client, and a context manager over what is made of one of its streams.

    Subclasses implement `_open`, which enters whatever it needs into the given stack and returns the value of the
    ``with`` statement.
    """

    client: DriverClient
    _stack: ExitStack | None = field(init=False, default=None, repr=False)

    def _open(self, stack: ExitStack) -> T:
        raise NotImplementedError

    def __enter__(self) -> T:
        if self._stack is not None:
            raise RuntimeError(f"{type(self).__name__} is already open")
        with ExitStack() as stack:
            value = self._open(stack)
            self._stack = stack.pop_all()
        return value

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.__exit__(exc_type, exc, traceback)

    async def __aenter__(self) -> T:
        from anyio.to_thread import run_sync

        return await run_sync(self.__enter__)

    async def __aexit__(self, *args: Any) -> None:
        from anyio.to_thread import run_sync

        await run_sync(lambda: self.__exit__(*args))

    def _what(self, local: str) -> str:
        return f'forward of driver "{getattr(self.client, "path", "") or self.client.name or "(root)"}" at {local}'


@dataclass(kw_only=True)
class PortforwardAdapter(ClientAdapter[tuple[str, int]]):
    """Listen on a local TCP port; each connection gets a stream of the driver.

    local_host: address to listen on. local_port: port, 0 for any free one. method: the driver's stream method.
    Gives (host, port). Any user of this machine can connect to a TCP port; where that matters use
    `UnixPortforwardAdapter`.
    """

    local_host: str = "127.0.0.1"
    local_port: int = 0
    method: str = "connect"

    def _open(self, stack: ExitStack) -> tuple[str, int]:
        listener = listen_tcp(self.local_host, self.local_port)
        host, port = listener.getsockname()[:2]
        what = self._what(f"{host}:{port}")
        client, method = self.client, self.method
        stack.enter_context(_serving(client, listener, lambda: client.stream_async(method), what))
        return str(host), int(port)


@dataclass(kw_only=True)
class UnixPortforwardAdapter(ClientAdapter[str]):
    """Listen on a unix socket that only this user can reach; each connection gets a stream of the driver.

    path: where to make it; None for a temporary place under $XDG_RUNTIME_DIR. Gives the path. The socket has mode
    0600, and a temporary one lies in a folder with mode 0700.
    """

    path: str | os.PathLike[str] | None = None
    method: str = "connect"

    def _open(self, stack: ExitStack) -> str:
        if self.path is None:
            folder = tempfile.mkdtemp(prefix="jumpstarter-", dir=os.environ.get("XDG_RUNTIME_DIR") or None)
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            path = os.path.join(folder, "socket")
        else:
            path = os.fspath(self.path)
        listener = _listen_unix(path)
        stack.callback(_unlink, path)
        client, method = self.client, self.method
        stack.enter_context(_serving(client, listener, lambda: client.stream_async(method), self._what(path)))
        return path


@dataclass(kw_only=True)
class PexpectAdapter(ClientAdapter["fdspawn[bytes]"]):
    """A pexpect object on a stream of the driver.

    The two are joined by a socket pair, so nobody else can reach the console. local_host and local_port are accepted
    and not used: there is no port.
    """

    local_host: str = "127.0.0.1"
    local_port: int = 0
    method: str = "connect"

    def _open(self, stack: ExitStack) -> fdspawn[bytes]:
        from pexpect.fdpexpect import fdspawn

        near, far = socket.socketpair()
        try:
            client, method = self.client, self.method
            forward = forward_socket(far, lambda: client.stream_async(method), self._what("a pexpect console"))
            stack.enter_context(client.portal.wrap_async_context_manager(forward))
            spawn: fdspawn[bytes] = fdspawn(near.detach(), maxread=65536, encoding=None, use_poll=True)
        except BaseException:
            near.close()
            far.close()
            raise
        stack.callback(_close_spawn, spawn)
        return spawn


@dataclass(kw_only=True)
class FabricAdapter(ClientAdapter["fabric.Connection"]):
    """An ssh connection (of the fabric library) through the driver's stream.

    user, config, forward_agent, connect_timeout, connect_kwargs, inline_ssh_env: as `fabric.Connection` takes them.
    It goes through a socket that only this user can reach; local_host and local_port are accepted and not used: there
    is no port. The connection's host is the driver's name; it can be closed and opened again, after a reboot say.
    """

    local_host: str = "127.0.0.1"
    local_port: int = 0
    method: str = "connect"
    user: str | None = None
    config: fabric.Config | None = None
    forward_agent: bool | None = None
    connect_timeout: int | None = None
    connect_kwargs: dict[str, Any] | None = field(default=None, repr=False)
    inline_ssh_env: bool | None = None

    def _open(self, stack: ExitStack) -> fabric.Connection:
        from fabric import Connection

        path = stack.enter_context(UnixPortforwardAdapter(client=self.client, method=self.method))

        class ThroughDriver(Connection):  # type: ignore[misc]
            def open_gateway(self) -> socket.socket:
                sock = socket.socket(socket.AF_UNIX)
                try:
                    sock.connect(path)
                except BaseException:
                    sock.close()
                    raise
                return sock

        return stack.enter_context(
            ThroughDriver(
                getattr(self.client, "path", "") or self.client.name or "device",
                user=self.user,
                port=22,
                config=self.config,
                gateway=path,  # any value makes fabric ask open_gateway() for the socket
                forward_agent=self.forward_agent,
                connect_timeout=self.connect_timeout,
                connect_kwargs=self.connect_kwargs,
                inline_ssh_env=self.inline_ssh_env,
            )
        )


# --- helpers ----------------------------------------------------------------------------------------------------


@contextmanager
def _serving(client: DriverClient, listener: socket.socket, open_stream: OpenStream, what: str) -> Iterator[None]:
    try:
        with client.portal.wrap_async_context_manager(forward_listener(listener, open_stream, what)):
            yield
    finally:
        listener.close()


def listen_tcp(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 for any free one. Raises OSError saying where."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        family, _, _, _, address = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            # Reuse of an address in TIME_WAIT only: without SO_REUSEPORT nobody else can share the port.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise type(error)(error.errno, f"cannot listen on {bare} port {port}: {reason}") from error
    return listener


def _listen_unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The mode must be right from the first moment; changing the umask would hit other threads. Nobody can connect
        # before listen(), so the mode is set between the two.
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise type(error)(error.errno, f"cannot listen on {path}: {(error.strerror or str(error)).lower()}") from error
    return listener


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass  # somebody removed it first


def _close_spawn(spawn: fdspawn[bytes]) -> None:
    if not spawn.closed:
        spawn.close()
