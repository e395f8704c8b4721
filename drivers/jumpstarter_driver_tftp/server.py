# SPDX-License-Identifier: Apache-2.0
"""A TFTP server over a folder: one thread that takes requests, and one for each transfer.

Why not a library or a daemon: of py3tftp, tftpy, fbtftp, tftpd-hpa and dnsmasq none knows windowsize (RFC 7440), and
atftpd, which does, takes neither port 0 nor reports what it did. Threads with blocking sockets are twice as fast in
Python as an event loop at a packet per round trip.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import struct
import threading
from dataclasses import dataclass
from typing import Any, Final

from jumpstarter_driver_opendal.beneath import clean_path, is_partial
from jumpstarter_driver_opendal.files import FileStore, LocalFile
from jumpstarter_driver_tftp.link import ClientGone, Link, Stopped
from jumpstarter_driver_tftp.netascii import NetasciiReader, Source
from jumpstarter_driver_tftp.packets import (
    Code,
    Limits,
    Options,
    ProtocolError,
    Request,
    error_packet,
    parse_request,
)
from jumpstarter_driver_tftp.transfer import AheadReader, finish_receiving, receive_file, send_file

__all__ = ["Settings", "TftpServer"]

_IP_PKTINFO: Final = 8  # linux/in.h; the socket module has no name for it before Python 3.14
_PKTINFO: Final = struct.Struct("@i4s4s")
_MOST: Final = 128
"""Transfers at a time."""
_MOST_OF_ONE: Final = 16
"""Of these for one address: a device gone wild leaves room for the others."""
_BUFFER: Final = 1 << 20

Address = tuple[Any, ...]


@dataclass(frozen=True)
class Settings:
    """``timeout``: longest time between repetitions, seconds. ``retries``: that many of it without an answer end a
    transfer. ``allow_write``: clients may store files."""

    timeout: float = 5.0
    retries: int = 5
    allow_write: bool = False
    limits: Limits = Limits()


class TftpServer:
    """Serves the files of ``store`` at ``bind`` from `start` to `stop`. Its methods block."""

    def __init__(self, store: FileStore, bind: str, port: int, settings: Settings, logger: logging.Logger) -> None:
        self._store = store
        self._bind, self._port = bind, port
        self._settings = settings
        self._logger = logger
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._wake = -1
        self._lock = threading.Lock()
        self._transfers: dict[tuple[Address, bytes], threading.Thread] = {}

    @property
    def address(self) -> tuple[str, int]:
        """Address and port that are listened on."""
        assert self._socket is not None
        host, port = self._socket.getsockname()[:2]
        return str(host), int(port)

    def start(self) -> None:
        """Listen. Raises OSError when the address cannot be had."""
        family, kind, proto, _, address = socket.getaddrinfo(
            self._bind, self._port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        try:
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # "::" is for IPv4 as well
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                listener.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            listener.bind(address)
        except BaseException:
            listener.close()
            raise
        self._socket = listener
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._listen, args=(listener,), name="tftp-server", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the transfers and free the port."""
        if self._socket is None or self._thread is None:
            return
        os.eventfd_write(self._wake, 1)  # stays readable: every thread sees it
        self._thread.join()
        with self._lock:
            running = list(self._transfers.values())
        for thread in running:
            thread.join()
        self._socket.close()
        os.close(self._wake)
        self._socket = self._thread = None

    # --- requests -------------------------------------------------------------------------------------------

    def _listen(self, listener: socket.socket) -> None:
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            if any(descriptor == self._wake for descriptor, _ in poll.poll()):
                return
            try:
                packet, ancillary, _, client = listener.recvmsg(2048, 256, socket.MSG_DONTWAIT)
            except OSError:
                continue  # an ICMP answer to something sent earlier
            self._take(listener, packet, client, _own_address(listener, ancillary))

    def _take(self, listener: socket.socket, packet: bytes, client: Address, own: tuple[str, int] | None) -> None:
        key = (client, packet)
        with self._lock:
            if key in self._transfers:
                return  # repeated because our answer is late: the transfer repeats it by itself
            of_one = sum(other[0] == client[0] for other, _ in self._transfers)
            busy = len(self._transfers) >= _MOST or of_one >= _MOST_OF_ONE
        try:
            request = parse_request(packet)
            if busy:
                raise ProtocolError(Code.UNDEFINED, "the server is busy, try again")
            if request.write and not self._settings.allow_write:
                raise ProtocolError(Code.ACCESS, "this server takes no files")
            sock = self._transfer_socket(listener, client, own)
        except ProtocolError as error:
            self._logger.info("%s: %s", _where(client), error)
            with contextlib.suppress(OSError):
                listener.sendto(error_packet(error.code, str(error)), client)
            return
        except OSError as error:
            self._logger.error("%s: no socket for its transfer: %s", _where(client), error)
            return
        thread = threading.Thread(
            target=self._transfer, args=(key, sock, request), name=f"tftp-{_where(client)}", daemon=True
        )
        with self._lock:
            self._transfers[key] = thread
        try:
            thread.start()
        except RuntimeError as error:  # no more threads: this one waits, the server goes on
            self._logger.error("%s: no thread for its transfer: %s", _where(client), error)
            with self._lock:
                del self._transfers[key]
            sock.close()

    def _transfer_socket(self, listener: socket.socket, client: Address, own: tuple[str, int] | None) -> socket.socket:
        """Bound to the address the client asked, as it expects the answer from there (firewalls, several networks)."""
        sock = socket.socket(listener.family, socket.SOCK_DGRAM)
        try:
            bound = listener.getsockname()
            if listener.family == socket.AF_INET:
                sock.bind((own[0] if own else bound[0], 0))
            else:
                host, interface = own or (bound[0], 0)
                # a link-local address is one of an interface
                sock.bind((host, 0, 0, bound[3] or (interface if host.lower().startswith("fe80:") else 0)))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            # packets from elsewhere never get in: a stranger cannot end or disturb the transfer
            sock.connect(client)
        except BaseException:
            sock.close()
            raise
        return sock

    # --- transfers ------------------------------------------------------------------------------------------

    def _transfer(self, key: tuple[Address, bytes], sock: socket.socket, request: Request) -> None:
        client = _where(key[0])
        link = Link(
            sock, self._wake, timeout=self._settings.timeout, patience=self._settings.timeout * self._settings.retries
        )
        try:
            with sock:
                self._serve(link, request, client)
        except Exception:  # nobody waits for this thread: a failure must at least be seen
            self._logger.exception("%s: the transfer of %r failed", client, request.path)
        finally:
            with self._lock:
                self._transfers.pop(key, None)

    def _serve(self, link: Link, request: Request, client: str) -> None:
        try:
            if request.write:
                self._take_file(link, request, client)
            else:
                self._give_file(link, request, client)
        except ProtocolError as error:
            self._logger.info("%s: %r: %s", client, request.path, error)
            link.refuse(error)
        except ClientGone as error:
            level = logging.INFO if error.told else logging.WARNING  # boot ROMs ask for the size and then hang up
            self._logger.log(level, "%s: %r: %s", client, request.path, error)
        except Stopped:
            link.refuse(ProtocolError(Code.UNDEFINED, "the server was stopped"))
        except OSError as error:
            # what the device is told names no path of this host
            reason = os.strerror(error.errno).lower() if error.errno else "input/output error"
            self._logger.warning("%s: %r: %s", client, request.path, reason)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            link.refuse(ProtocolError(Code.DISK_FULL if full else Code.UNDEFINED, reason))

    def _give_file(self, link: Link, request: Request, client: str) -> None:
        file = self._open(request, "rb")
        try:
            options = Options.negotiate(request, None if request.netascii else file.size, self._settings.limits)
            if options.timeout is not None:
                link.set_timeout(options.timeout)
            reader: Source = AheadReader(file)
            total = send_file(link, NetasciiReader(reader) if request.netascii else reader, options)
        finally:
            file.abort()
        self._logger.info(
            "%s: sent %r, %d bytes (blksize %d, windowsize %d)",
            client, file.path, total, options.blksize, options.windowsize,
        )  # fmt: skip

    def _take_file(self, link: Link, request: Request, client: str) -> None:
        file = self._open(request, "wb")
        try:
            options = Options.negotiate(request, None, self._settings.limits)
            if options.timeout is not None:
                link.set_timeout(options.timeout)
            total, blocks = receive_file(link, file, options, netascii=request.netascii)
            file.commit_now()
        finally:
            file.abort()
        self._logger.info("%s: stored %r, %d bytes", client, file.path, total)
        finish_receiving(link, blocks)

    def _open(self, request: Request, mode: Any) -> LocalFile:
        # some boot ROMs write paths as Windows does
        path = request.path.replace("\\", "/")
        try:
            clean = clean_path(path)
            if is_partial(clean.rpartition("/")[2]):
                raise FileNotFoundError(path)
            return self._store.open_now(clean, mode)
        except FileNotFoundError:
            raise ProtocolError(Code.NOT_FOUND, "file not found") from None
        except (PermissionError, IsADirectoryError, NotADirectoryError, ValueError) as error:
            self._logger.info("request for %r refused: %s", request.path, type(error).__name__)
            raise ProtocolError(Code.ACCESS, "access violation") from None


def _own_address(listener: socket.socket, ancillary: list[tuple[int, int, bytes]]) -> tuple[str, int] | None:
    """Our address that a packet was sent to, and the number of the interface it came in by."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
            interface, own, _ = _PKTINFO.unpack(data[: _PKTINFO.size])
            return socket.inet_ntop(socket.AF_INET, own), interface
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            return socket.inet_ntop(socket.AF_INET6, data[:16]), struct.unpack("@I", data[16:20])[0]
    return None


def _where(client: Address) -> str:
    return f"[{client[0]}]:{client[1]}" if ":" in str(client[0]) else f"{client[0]}:{client[1]}"
