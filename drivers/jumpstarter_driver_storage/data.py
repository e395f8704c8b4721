# SPDX-License-Identifier: Apache-2.0
"""The image on a connection of its own, beside gRPC: announced in the flash's events, good for one connection.

gRPC moves bulk data through Python several times over; a plain socket takes it straight from the page cache
(``sendfile``) into the buffers that are hashed and written. Offered only to clients whose gRPC connection is not
encrypted either, and only when they ask. A connection is accepted once, for a few seconds, and only with the token that
travelled over gRPC, which both sides prove to know; on a unix socket also only from the same user or root.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from jumpstarter.common.storage import BLOCK_SIZE, HEADER_SIZE, MAGIC, PROOF_SIZE, connection_proof, header_payload
from jumpstarter_driver_storage.errors import JobCancelled, StorageRefused, TransferBroken

_TOKEN: Final = 32
_ACCEPT: Final = 10.0
"""Seconds a client has to connect."""
_BUFFERS: Final = 8
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


class DataListener:
    """Waits for the one connection that carries an image."""

    def __init__(self, wanted: Mapping[str, Any]) -> None:
        """``wanted``: ``{"kind": "unix"}``, or ``{"kind": "tcp", "host": the name the client reaches us by}``."""
        self._token = secrets.token_bytes(_TOKEN)
        self._name: str | None = None
        self._connection: socket.socket | None = None
        self._stopped = threading.Event()
        self._wake, self._waker = os.pipe()
        try:
            if wanted.get("kind") == "unix":
                # an abstract name: no file that a killed exporter could leave behind
                self._name = f"@jumpstarter-data-{secrets.token_hex(16)}"
                self._socket = socket.socket(socket.AF_UNIX)
                self._socket.bind(self._name.replace("@", "\0", 1))
            elif wanted.get("kind") == "tcp":
                local = wanted.get("host") in _LOOPBACK
                family = socket.AF_INET6 if wanted.get("host") == "::1" else socket.AF_INET
                address = ("::1" if family == socket.AF_INET6 else "127.0.0.1") if local else "0.0.0.0"
                self._socket = socket.socket(family)
                self._socket.bind((address, 0))
            else:
                raise StorageRefused(f"unknown kind of data connection {wanted.get('kind')!r}", code="refused")
            self._socket.listen(4)
        except BaseException:
            self.close()
            raise

    def offer(self) -> dict[str, Any]:
        """The event that tells the client where to connect and with what token."""
        event: dict[str, Any] = {"event": "data", "token": self._token.hex()}
        if self._name is not None:
            return {**event, "kind": "unix", "name": self._name}
        return {**event, "kind": "tcp", "port": self._socket.getsockname()[1]}

    def accept(self) -> socket.socket:
        """The client's connection; TransferBroken when it does not come."""
        deadline = time.monotonic() + _ACCEPT
        while (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([self._socket.fileno(), self._wake], [], [], left)
            if self._stopped.is_set():
                raise JobCancelled
            if not ready:
                break
            connection, _ = self._socket.accept()
            if self._is_client(connection):
                self._connection = connection
                if self._stopped.is_set():
                    raise JobCancelled
                self._socket.close()
                return connection
            connection.close()
        raise TransferBroken("it did not open its data connection")

    def stop(self) -> None:
        """From any thread: whoever accepts or receives ends at once."""
        self._stopped.set()
        with contextlib.suppress(OSError):
            os.write(self._waker, b"x")
        if (connection := self._connection) is not None:
            with contextlib.suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close everything; only when no thread uses it any more."""
        for one in (getattr(self, "_socket", None), self._connection):
            if one is not None:
                one.close()
        for fd in (self._wake, self._waker):
            os.close(fd)

    def _is_client(self, connection: socket.socket) -> bool:
        connection.settimeout(2.0)  # a stranger must not keep the client waiting
        try:
            if self._name is not None:
                _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                if uid not in (0, os.geteuid()):
                    return False
            proof = _read(connection, PROOF_SIZE)
            if not hmac.compare_digest(proof, connection_proof(self._token, "client")):
                return False
            connection.sendall(connection_proof(self._token, "exporter"))
        except OSError:
            return False
        connection.settimeout(None)
        return True


def _read(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length and (piece := connection.recv(length - len(data))):
        data += piece
    return data


class SocketChunks:
    """The chunks of one image from a connected socket, into a few buffers that are used in turn.

    A chunk is valid until `release` was called as often as it was handed out, plus the number of buffers: the consumer
    calls `release` once per chunk, in order, from any thread, when it is done with it.
    """

    def __init__(self, connect: Callable[[], socket.socket], *, sparse: bool, size: int | None) -> None:
        """``connect``: gives the connection, when iterated. ``sparse``: chunks end where headers and blocks do.
        ``size``: bytes of a plain stream, when known."""
        self._connect = connect
        self._sparse = sparse
        self._size = size
        self._free = threading.Semaphore(_BUFFERS)
        self._buffers = [bytearray(BLOCK_SIZE) for _ in range(_BUFFERS)]
        self._next = 0

    def release(self) -> None:
        """A chunk is no longer needed."""
        self._free.release()

    def __iter__(self) -> Iterator[memoryview]:
        self._socket = self._connect()
        return self._sparse_chunks() if self._sparse else self._plain_chunks()

    def _plain_chunks(self) -> Iterator[memoryview]:
        received = 0
        while chunk := self._receive(BLOCK_SIZE):
            received += len(chunk)
            yield chunk
        self.release()
        if self._size is not None and received < self._size:
            raise TransferBroken(f"its data connection ended after {received} of {self._size} bytes")

    def _sparse_chunks(self) -> Iterator[memoryview]:
        yield self._exactly(len(MAGIC))
        while True:
            head = self._exactly(HEADER_SIZE)
            offset, length = header_payload(head)
            yield head
            if length == 0:
                return
            while length:
                chunk = self._exactly(min(BLOCK_SIZE - offset % BLOCK_SIZE, length))
                offset += len(chunk)
                length -= len(chunk)
                yield chunk

    def _exactly(self, length: int) -> memoryview:
        chunk = self._receive(length)
        if len(chunk) < length:
            raise TransferBroken("its data connection ended in the middle of the image")
        return chunk

    def _receive(self, length: int) -> memoryview:
        self._free.acquire()
        view = memoryview(self._buffers[self._next])[:length]
        self._next = (self._next + 1) % _BUFFERS
        try:
            count = self._socket.recv_into(view, length, socket.MSG_WAITALL)
        except OSError as error:
            raise TransferBroken(f"its data connection broke: {error.strerror or error}") from error
        return view[:count]
