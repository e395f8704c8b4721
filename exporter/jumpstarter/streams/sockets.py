# SPDX-License-Identifier: Apache-2.0
"""Sockets as byte streams that move bulk data in few, large pieces.

anyio's own socket streams hand out at most 64 KiB at a time. Each piece becomes one gRPC message, and their number is
what limits a forward; so a reader here takes everything the kernel has, up to one frame. Nothing is read ahead and
nothing is queued: a receiver that does not ask, or a peer that does not take, stops the other side through the
kernel's own flow control.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import ObjectStream

from jumpstarter.streams.frames import MAX_HEAD, MAX_PAYLOAD, frame_in_place

__all__ = [
    "SocketStream",
    "accept",
    "connect_tcp",
    "connect_udp",
    "connect_unix",
    "connect_vsock",
    "format_address",
    "resolve",
]

_SMALL = 1 << 16
_LINGER_RESET = struct.pack("ii", 1, 0)


class SocketStream(ObjectStream[bytes]):
    """A connected socket of the running event loop. Owns the socket.

    Stream sockets: `receive` returns what is there, at most 1 MiB, and raises `anyio.EndOfStream` after the peer's
    half-close; `send_eof` half-closes. Datagram sockets: one datagram for each `receive` and `send`, never an end.
    """

    #: `send` takes memoryviews as well.
    takes_views: ClassVar[bool] = True

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._datagram = sock.type == socket.SOCK_DGRAM
        # Grows to a frame on connections that carry bulk data; most carry a few lines in their life.
        self._buffer = memoryview(bytearray(MAX_HEAD + _SMALL))
        self._reading: asyncio.Future[None] | None = None
        self._writing: asyncio.Future[None] | None = None
        self._closed = False

    @property
    def socket(self) -> socket.socket:
        """The socket, for its addresses and options."""
        return self._sock

    async def receive(self) -> bytes:
        """The next bytes, or the next datagram; never empty."""
        count = await self._fill()
        return bytes(self._buffer[MAX_HEAD : MAX_HEAD + count])

    async def receive_frame(self) -> bytes:
        """As `receive`, as a serialised frame of the router protocol."""
        count = await self._fill()  # may replace the buffer
        return frame_in_place(self._buffer, count)

    async def _fill(self) -> int:
        """Read into the buffer, behind the room for a frame's head. Returns the number of bytes, never 0."""
        while True:
            if self._closed:
                raise ClosedResourceError
            try:
                count = self._sock.recv_into(self._buffer[MAX_HEAD:])
            except (BlockingIOError, InterruptedError):
                await self._readable()
                continue
            except ConnectionRefusedError:
                if self._datagram:  # an answer to an earlier datagram that nobody wanted: datagrams may get lost
                    continue
                raise BrokenResourceError("connection refused") from None
            except OSError as error:
                raise BrokenResourceError(_reason(error)) from error
            if count == 0:
                if self._datagram:  # an empty datagram has no representation in a byte stream's frames
                    continue
                raise EndOfStream
            if self._datagram or count < len(self._buffer) - MAX_HEAD:
                return count
            return self._more(count)

    def _more(self, count: int) -> int:
        """The buffer is full: take what else the kernel has, up to one frame. Returns the bytes in the buffer."""
        end = MAX_HEAD + count
        if len(self._buffer) < MAX_HEAD + MAX_PAYLOAD:
            grown = bytearray(MAX_HEAD + MAX_PAYLOAD)
            grown[:end] = self._buffer
            self._buffer = memoryview(grown)
        while end < len(self._buffer):
            try:
                more = self._sock.recv_into(self._buffer[end:])
            except OSError:
                # Nothing more now, or an error: that one is met again by the next receive, after these bytes.
                break
            if not more:
                break
            end += more
        return end - MAX_HEAD

    async def send(self, item: bytes | memoryview) -> None:
        """Write everything; waits while the peer does not take it."""
        view = memoryview(item)
        while True:
            if self._closed:
                raise ClosedResourceError
            try:
                sent = self._sock.send(view)
            except (BlockingIOError, InterruptedError):
                await self._writable()
                continue
            except ConnectionRefusedError:
                if self._datagram:
                    continue
                raise BrokenResourceError("connection refused") from None
            except OSError as error:
                raise BrokenResourceError(_reason(error)) from error
            if sent >= len(view) or self._datagram:
                return
            view = view[sent:]
            # The buffer is full. Trying at once would only meet EAGAIN.
            await self._writable()

    async def send_eof(self) -> None:
        """Say that no more data will come (stream sockets)."""
        if self._closed or self._datagram:
            return
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # closed by the peer already, which is as good
                raise BrokenResourceError(_reason(error)) from error

    async def reset(self) -> None:
        """Close so that a TCP peer sees an aborted connection instead of a complete one."""
        if not self._closed and self._sock.type == socket.SOCK_STREAM and self._sock.family != socket.AF_UNIX:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        await self.aclose()

    async def aclose(self) -> None:
        """Close both directions. Whoever waits in `receive` or `send` gets `ClosedResourceError`."""
        if self._closed:
            return
        self._closed = True
        fd = self._sock.fileno()
        self._loop.remove_reader(fd)
        self._loop.remove_writer(fd)
        for waiter in (self._reading, self._writing):
            if waiter is not None and not waiter.done():
                waiter.set_exception(ClosedResourceError())
        self._sock.close()

    async def _readable(self) -> None:
        waiter = self._reading = self._loop.create_future()
        self._loop.add_reader(self._sock.fileno(), _wake, waiter)
        try:
            await waiter
        finally:
            if not self._closed:
                self._loop.remove_reader(self._sock.fileno())

    async def _writable(self) -> None:
        waiter = self._writing = self._loop.create_future()
        self._loop.add_writer(self._sock.fileno(), _wake, waiter)
        try:
            await waiter
        finally:
            if not self._closed:
                self._loop.remove_writer(self._sock.fileno())

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """None."""
        return {}


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _reason(error: OSError) -> str:
    # asyncio's own texts ("Connect call failed") hide the reason; resolver errors have negative numbers.
    known = os.strerror(error.errno) if error.errno and error.errno > 0 else ""
    return (known or error.strerror or str(error) or type(error).__name__).lower()


def format_address(host: str, port: int) -> str:
    """ "host:port", with brackets around IPv6 addresses."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def resolve(host: str, port: int, kind: socket.SocketKind) -> list[tuple[socket.AddressFamily, Any]]:
    """Addresses of a host, in the resolver's order, as (family, sockaddr).

    Raises `OSError` saying which host could not be resolved.
    """
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, bare)
        except OSError:
            continue
        return [(family, (bare, port))]  # a literal needs no resolver, and so no thread
    try:
        found = await asyncio.get_running_loop().getaddrinfo(bare, port, type=kind)
    except socket.gaierror as error:
        raise OSError(error.errno, f'cannot resolve host "{bare}": {error.strerror}') from error
    return [(socket.AddressFamily(entry[0]), entry[4]) for entry in found]


async def accept(listener: socket.socket) -> socket.socket:
    """The next connection of a non-blocking listening socket. When it is cancelled it has taken none.

    (The event loop's own `sock_accept` may take one after it was cancelled, lose it, and log that.) Raises OSError.
    """
    loop = asyncio.get_running_loop()
    while True:
        try:
            return listener.accept()[0]
        except (BlockingIOError, InterruptedError):
            readable: asyncio.Future[None] = loop.create_future()
            descriptor = listener.fileno()
            loop.add_reader(descriptor, _wake, readable)
            try:
                await readable
            finally:
                loop.remove_reader(descriptor)


async def connect_tcp(host: str, port: int, timeout: float = 10.0) -> SocketStream:
    """Connect to a TCP service, trying the host's addresses one after the other. timeout: seconds for all of them.

    Raises ConnectionError (of the first address's kind) with one clear line, or OSError when the host has no address.
    """
    where = f"tcp {format_address(host, port)}"
    first: OSError | None = None
    try:
        async with asyncio.timeout(timeout):
            for family, address in await resolve(host, port, socket.SOCK_STREAM):
                try:
                    return await _connect(family, address)
                except OSError as error:
                    first = first or error
    except TimeoutError:
        raise _failed(f"{where}: no answer within {timeout:g} s", first) from None
    if first is None:
        raise OSError(f'{where}: host "{host}" has no address')
    raise _failed(f"{where}: {_reason(first)}", first) from first


async def connect_udp(host: str, port: int) -> SocketStream:
    """A socket for datagrams to and from one UDP service. Raises `OSError` with one clear line."""
    family, address = (await resolve(host, port, socket.SOCK_DGRAM))[0]
    try:
        return await _connect(family, address, socket.SOCK_DGRAM)
    except OSError as error:
        raise _failed(f"udp {format_address(host, port)}: {_reason(error)}", error) from error


async def connect_unix(path: str | os.PathLike[str]) -> SocketStream:
    """Connect to a unix stream socket.

    Raises ConnectionError, PermissionError or FileNotFoundError with one clear line.
    """
    try:
        return await _connect(socket.AF_UNIX, os.fspath(path))
    except OSError as error:
        raise _failed(f"unix {os.fspath(path)}: {_reason(error)}", error) from error


async def connect_vsock(cid: int, port: int, timeout: float = 10.0) -> SocketStream:
    """Connect to a service of a virtual machine (or of its host) over AF_VSOCK. timeout: seconds to wait for it.

    Raises ConnectionError with one clear line; also where the kernel has no vsock.
    """
    where = f"vsock {cid}:{port}"
    try:
        async with asyncio.timeout(timeout):
            while True:
                try:
                    return await _establish(socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM), (cid, port))
                except OSError as error:
                    # The kernel gives up after 2 s, which Python has no way to change.
                    if error.errno != errno.ETIMEDOUT:
                        raise
    except TimeoutError:
        raise ConnectionError(f"{where}: no answer within {timeout:g} s") from None
    except OSError as error:
        hint = {
            errno.EAFNOSUPPORT: "; this kernel has no vsock (is the module vsock loaded?)",
            errno.ENODEV: "; no vsock transport leads there (/dev/vhost-vsock, vsock_loopback)",
        }.get(error.errno or 0, "")
        raise _failed(f"{where}: {_reason(error)}{hint}", error) from error


async def _connect(
    family: socket.AddressFamily, address: Any, kind: socket.SocketKind = socket.SOCK_STREAM
) -> SocketStream:
    sock = socket.socket(family, kind)
    if family != socket.AF_UNIX and kind == socket.SOCK_STREAM:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return await _establish(sock, address)


async def _establish(sock: socket.socket, address: Any) -> SocketStream:
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return SocketStream(sock)


def _failed(message: str, cause: OSError | None) -> OSError:
    """The error class that says what to do: ConnectionError for a service that is not there."""
    if isinstance(cause, (ConnectionError, PermissionError, FileNotFoundError)):
        return type(cause)(message)
    return ConnectionError(message)
