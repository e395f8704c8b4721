# SPDX-License-Identifier: Apache-2.0
"""Sending an image on a connection of its own, from the page cache to the socket by the kernel (``sendfile``)."""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
from collections.abc import Iterable, Mapping
from typing import Any, Final

from jumpstarter.client.aio import AsyncNode
from jumpstarter.client.imaging.result import ImagingError
from jumpstarter.client.imaging.sender import extents_of
from jumpstarter.client.imaging.source import LocalImage
from jumpstarter.common.storage import MAGIC, PROOF_SIZE, connection_proof, data_header, end_header

__all__ = ["NoDirectWay", "connect_direct", "direct_way", "send_direct"]

_CONNECT: Final = 3.0
"""Seconds until an exporter counts as not reachable directly (a firewall, another network namespace)."""

GRPC_ONLY: Final = "JUMPSTARTER_DATA_OVER_GRPC"
"""Environment variable: when set, images always travel inside the gRPC connection."""


class NoDirectWay(Exception):
    """The exporter cannot be reached beside its gRPC connection: the image has to travel inside it."""


def direct_way(node: AsyncNode) -> dict[str, Any] | None:
    """What to ask the exporter for; None where data must stay inside the gRPC connection (it is encrypted, or leads
    through a router)."""
    target = node.rpc.connection.direct
    if target is None or os.environ.get(GRPC_ONLY):
        return None
    if target.is_unix:
        return {"kind": "unix"}
    return {"kind": "tcp", "host": _host(target.address)}


def connect_direct(node: AsyncNode, offer: Mapping[str, Any]) -> socket.socket:
    """Follow the exporter's offer; raises NoDirectWay when nobody is there."""
    try:
        connection = _connect(node, offer)
    except OSError as error:
        raise NoDirectWay(str(error)) from error
    token = bytes.fromhex(str(offer["token"]))
    try:
        connection.sendall(connection_proof(token, "client"))
        # behind a forwarded port somebody else may answer, who must not get the image
        if not hmac.compare_digest(_read(connection, PROOF_SIZE), connection_proof(token, "exporter")):
            raise NoDirectWay("somebody else answers there")
    except OSError as error:
        connection.close()
        raise NoDirectWay(str(error)) from error
    except NoDirectWay:
        connection.close()
        raise
    connection.settimeout(None)
    return connection


def _connect(node: AsyncNode, offer: Mapping[str, Any]) -> socket.socket:
    if offer["kind"] == "unix":
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_CONNECT)
        try:
            connection.connect(str(offer["name"]).replace("@", "\0", 1))
        except OSError:
            connection.close()
            raise
        return connection
    target = node.rpc.connection.direct
    assert target is not None
    return socket.create_connection((_host(target.address), int(offer["port"])), timeout=_CONNECT)


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _read(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length and (piece := connection.recv(length - len(data))):
        data += piece
    return data


def send_direct(
    connection: socket.socket, image: LocalImage, blocks: Iterable[tuple[int, int]] | None, *, as_is: bool = False
) -> None:
    """All of the image: the sparse stream of a plain one (``blocks``: only these runs), a compressed one ``as_is``.

    Raises ImagingError when the file cannot be read or was changed; returns quietly when the exporter closes, which
    tells why over gRPC.
    """
    try:
        if as_is or image.compression is not None:
            _send(connection, image, 0, image.size)
            image.require_unchanged()
        else:
            connection.sendall(MAGIC)
            for extent in extents_of(image, blocks):
                connection.sendall(data_header(extent))
                _send(connection, image, extent.offset, extent.length)
            image.require_unchanged()
            connection.sendall(end_header(image.size))
    except (BrokenPipeError, ConnectionResetError):
        return
    finally:
        # whatever happened: the exporter must not wait for more
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)


def _send(connection: socket.socket, image: LocalImage, offset: int, length: int) -> None:
    end = offset + length
    while offset < end:
        count = os.sendfile(connection.fileno(), image.fd, offset, end - offset)
        if count == 0:
            raise ImagingError(f"image {image.path} became shorter while it was being read", code="source")
        offset += count
