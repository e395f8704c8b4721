# SPDX-License-Identifier: Apache-2.0
"""Where a console's bytes come from: terminals, sockets, and whatever else pyserial knows.

A `PortFactory` opens a `Port`, as often as it goes away and comes back. A port delivers what it reads to a callback in
the event loop and says when it is gone; there is exactly one reader of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    import serial

__all__ = ["FdPort", "ListenFactory", "Port", "PortFactory", "SocketFactory", "ThreadPort", "call_in_thread"]

T = TypeVar("T")
Receiver = Callable[[bytes], None]
Gone = Callable[[str], None]

_READ = 1 << 18


class Port(ABC):
    """An open port. `lines` is the pyserial object for modem lines and BREAK, None where there are none."""

    lines: serial.SerialBase | None = None

    @abstractmethod
    def start(self, receive: Receiver, gone: Gone) -> None:
        """Read from now on: `receive(data)` for what comes, `gone(reason)` once at the end. In the event loop."""

    @abstractmethod
    async def write(self, data: bytes) -> None:
        """Write everything; waits while the device does not take it. Raises OSError when the port is gone."""

    @abstractmethod
    def close(self) -> None:
        """Stop reading and close. `gone` is not called any more. May be called from any thread, and twice."""


class PortFactory(ABC):
    """Opens one kind of port."""

    #: How messages call the port.
    name: str

    @abstractmethod
    async def open(self) -> Port:
        """Open the port. Raises OSError with the reason; waits only if the factory gets connected to."""

    def close(self) -> None:  # noqa: B027  most factories keep nothing
        """Give up what is kept between two opens."""


class FdPort(Port):
    """A file descriptor that can be polled: terminals, pseudo terminals and sockets."""

    def __init__(
        self, fd: int, close: Callable[[], None], lines: serial.SerialBase | None = None, ended: str = "disconnected"
    ) -> None:
        self._fd = fd
        self._close = close
        self._ended = ended
        self.lines = lines
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._started = False
        self._waiter: asyncio.Future[None] | None = None
        os.set_blocking(fd, False)

    def start(self, receive: Receiver, gone: Gone) -> None:
        """Read whenever there is something."""
        fd = self._fd

        def end(reason: str) -> None:
            if self._started:
                self._started = False
                self._loop.remove_reader(fd)
                gone(reason)

        def readable() -> None:
            try:
                data = os.read(fd, _READ)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                # EIO is how a terminal says that the other side hung up.
                end(self._ended if error.errno == errno.EIO else (error.strerror or str(error)).lower())
                return
            if data:
                receive(data)
            else:
                end(self._ended)

        self._started = True
        self._loop.add_reader(fd, readable)

    async def write(self, data: bytes) -> None:
        """Write everything; waits while the device does not take it."""
        view = memoryview(data)
        while view:
            if self._closed:
                raise OSError(errno.ENODEV, "the port was closed while writing")
            try:
                view = view[os.write(self._fd, view) :]
            except (BlockingIOError, InterruptedError):
                await self._writable()

    async def _writable(self) -> None:
        waiter = self._waiter = self._loop.create_future()
        self._loop.add_writer(self._fd, _wake, waiter)
        try:
            await waiter
        finally:
            if not self._closed:
                self._loop.remove_writer(self._fd)

    def close(self) -> None:
        """Stop reading and close."""
        if self._closed:
            return
        self._closed = True
        self._started = False
        if not self._loop.is_closed():
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            if self._waiter is not None:
                _wake(self._waiter)
        self._close()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class ThreadPort(Port):
    """A pyserial object that cannot be polled (loop://, rfc2217://, spy://): one thread reads it."""

    def __init__(self, port: serial.SerialBase) -> None:
        self.lines = port
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._writing: asyncio.Future[Any] | None = None

    def start(self, receive: Receiver, gone: Gone) -> None:
        """Start the thread."""

        def unless_closed(function: Callable[[Any], None], argument: Any) -> None:
            if not self._closed.is_set():
                function(argument)

        def in_loop(function: Callable[[Any], None], argument: Any) -> None:
            # The loop may have been closed in between, and then nobody is there to be told.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(unless_closed, function, argument)

        def work() -> None:
            reason = "disconnected"
            port: Any = self._port  # the stubs do not know in_waiting on the base class
            try:
                while data := port.read(1):
                    waiting = port.in_waiting
                    in_loop(receive, data + port.read(min(waiting, _READ)) if waiting else data)
            except (OSError, TypeError, AttributeError, ValueError) as error:
                # pyserial's objects fail in all these ways when they are closed under a reader.
                reason = (getattr(error, "strerror", None) or str(error)).lower()
            if not self._closed.is_set():
                in_loop(gone, reason)

        self._thread = threading.Thread(target=work, name="console-reader", daemon=True)
        self._thread.start()

    async def write(self, data: bytes) -> None:
        """Write everything, in a worker thread: pyserial blocks until the device took it."""
        while (before := self._writing) is not None and not before.done():
            await asyncio.wait([before])  # whoever began it is gone; its bytes and ours must not mix
        if self._closed.is_set():
            raise OSError(errno.ENODEV, "the port was closed while writing")
        self._writing = work = asyncio.ensure_future(asyncio.to_thread(self._port.write, data))
        work.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to be told
        await asyncio.shield(work)

    def close(self) -> None:
        """Stop the thread and close."""
        if self._closed.is_set():
            return
        self._closed.set()
        cancel = getattr(self._port, "cancel_read", None)
        if cancel is not None:
            cancel()
            if self._thread is not None:
                self._thread.join(1)
        self._port.close()


async def call_in_thread(function: Callable[[], T], discard: Callable[[T], Any]) -> T:
    """Run what may block for long in a thread of its own, which nobody waits for if the caller gives up.

    discard: gets a result that came too late.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def succeed(result: T) -> None:
        if future.done():
            discard(result)
        else:
            future.set_result(result)

    def fail(error: BaseException) -> None:
        if not future.done():
            future.set_exception(error)

    def work() -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001  carried over to the loop, raised there
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
                loop.call_soon_threadsafe(fail, error)
            return
        try:
            loop.call_soon_threadsafe(succeed, result)
        except RuntimeError:
            discard(result)

    threading.Thread(target=work, name="console-open", daemon=True).start()
    return await future


class SocketFactory(PortFactory):
    """Connects to a stream socket. family and address: as `socket.socket.connect` takes them."""

    def __init__(self, name: str, family: socket.AddressFamily, address: Any) -> None:
        self.name = name
        self._family = family
        self._address = address

    async def open(self) -> Port:
        """Connect."""
        sock = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if self._family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            async with asyncio.timeout(10):
                await asyncio.get_running_loop().sock_connect(sock, self._address)
        except BaseException:
            sock.close()
            raise
        return FdPort(sock.fileno(), sock.close)


class ListenFactory(PortFactory):
    """Listens on a unix socket for the device to connect (an emulator, mostly); one peer at a time.

    The socket exists, with mode 0600, from the first `open` (or `listen`) to `close`, so a device that starts
    afterwards loses no byte. A stale socket file that nobody listens on is replaced.
    """

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self._path = path
        self._listener: socket.socket | None = None

    def listen(self) -> None:
        """Make the socket. Raises OSError."""
        if self._listener is not None:
            return
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            try:
                listener.bind(self._path)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or _somebody_listens(self._path):
                    raise
                os.unlink(self._path)
                listener.bind(self._path)
            os.chmod(self._path, 0o600)
            listener.listen(1)
        except BaseException:
            listener.close()
            raise
        self._listener = listener

    async def open(self) -> Port:
        """Wait for the device to connect."""
        self.listen()
        sock, _ = await asyncio.get_running_loop().sock_accept(cast(socket.socket, self._listener))
        return FdPort(sock.fileno(), sock.close)

    def close(self) -> None:
        """Remove the socket."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)


def _somebody_listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
        return True
