# SPDX-License-Identifier: Apache-2.0
"""TFTP packets: RFC 1350, options RFC 2347, blksize RFC 2348, timeout and tsize RFC 2349, windowsize RFC 7440."""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = [
    "BLOCKS",
    "DEFAULT_BLKSIZE",
    "Code",
    "Limits",
    "Opcode",
    "Options",
    "ProtocolError",
    "Request",
    "ack",
    "error_packet",
    "oack",
    "parse_request",
]

DEFAULT_BLKSIZE: Final = 512
MIN_BLKSIZE: Final = 8
MAX_BLKSIZE: Final = 65464
_WINDOW_BYTES: Final = 1 << 16
BLOCKS: Final = 1 << 16
"""Block numbers count modulo this."""


class Opcode(enum.IntEnum):
    """What a packet is."""

    RRQ = 1
    WRQ = 2
    DATA = 3
    ACK = 4
    ERROR = 5
    OACK = 6


class Code(enum.IntEnum):
    """Code of an error packet."""

    UNDEFINED = 0
    NOT_FOUND = 1
    ACCESS = 2
    DISK_FULL = 3
    ILLEGAL = 4
    UNKNOWN_ID = 5
    EXISTS = 6
    NO_USER = 7
    OPTIONS = 8


class ProtocolError(Exception):
    """A packet that is answered with an error. ``code``: its code."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Request:
    """A read (or ``write``) request. ``options`` as they came, names in lower case."""

    write: bool
    path: str
    netascii: bool
    options: Mapping[str, str]


def parse_request(packet: bytes) -> Request:
    """Raises ProtocolError for what is no read or write request."""
    if len(packet) < 2:
        raise ProtocolError(Code.ILLEGAL, "a packet without an opcode")
    (opcode,) = struct.unpack_from("!H", packet)
    if opcode not in (Opcode.RRQ, Opcode.WRQ):
        raise ProtocolError(Code.ILLEGAL, "a transfer begins with a read or write request")
    if not packet.endswith(b"\0"):
        raise ProtocolError(Code.ILLEGAL, "the request is cut off")
    fields = packet[2:-1].split(b"\0")
    if len(fields) < 2 or not fields[0]:
        raise ProtocolError(Code.ILLEGAL, "the request names no file or no mode")
    try:
        path = fields[0].decode()
        mode = fields[1].decode("ascii").lower()
        # an option without a value at the end is dropped, like any option that is not understood
        pairs = zip(fields[2::2], fields[3::2], strict=False)
        options = {name.decode("ascii").lower(): value.decode("ascii") for name, value in pairs}
    except UnicodeDecodeError:
        raise ProtocolError(Code.ILLEGAL, "the request is not text") from None
    if mode not in ("octet", "netascii"):
        raise ProtocolError(Code.ILLEGAL, f"transfer mode {mode[:16]!r} is not supported, use octet or netascii")
    return Request(opcode == Opcode.WRQ, path, mode == "netascii", options)


@dataclass(frozen=True)
class Limits:
    """Most a client may negotiate."""

    blksize: int = MAX_BLKSIZE
    windowsize: int = 64


@dataclass(frozen=True)
class Options:
    """What a transfer goes by. ``timeout``: seconds, None unless the client set it. ``accepted``: what the client is
    told, empty when it asked for nothing that is understood."""

    blksize: int
    windowsize: int
    timeout: int | None
    tsize: int | None
    accepted: Mapping[str, str]

    @classmethod
    def negotiate(cls, request: Request, size: int | None, limits: Limits) -> Options:
        """``size``: of the file that is read, None when it cannot be told (netascii). A value out of its range is
        ignored with its option, as RFC 2347 asks for."""
        accepted: dict[str, str] = {}
        wants_window = False
        blksize, windowsize, timeout, tsize = DEFAULT_BLKSIZE, 1, None, None
        for name, text in request.options.items():
            value = int(text) if text.isdigit() and len(text) < 20 else -1
            if name == "blksize" and MIN_BLKSIZE <= value <= MAX_BLKSIZE:
                blksize = min(value, limits.blksize)
                accepted[name] = str(blksize)
            elif name == "windowsize" and 1 <= value < BLOCKS:
                windowsize, wants_window = min(value, limits.windowsize), True
            elif name == "timeout" and 1 <= value <= 255:
                timeout = value
                accepted[name] = str(value)
            elif name == "tsize" and value >= 0:
                tsize = value if request.write else size
                if tsize is not None:
                    accepted[name] = str(tsize)
        if wants_window:
            # A window that overflows the client's receive buffer loses packets every time. A skb takes about twice the
            # bytes it carries, and Linux gives a socket 208 KiB unless told otherwise.
            windowsize = max(1, min(windowsize, _WINDOW_BYTES // blksize))
            accepted["windowsize"] = str(windowsize)
        return cls(blksize, windowsize, timeout, tsize, accepted)


def oack(options: Options) -> bytes:
    """Acknowledgement of options."""
    fields = b"".join(f"{name}\0{value}\0".encode() for name, value in options.accepted.items())
    return struct.pack("!H", Opcode.OACK) + fields


def ack(block: int) -> bytes:
    """Acknowledgement of a block, counted from 1."""
    return struct.pack("!HH", Opcode.ACK, block % BLOCKS)


def error_packet(code: Code, message: str) -> bytes:
    """An error, which ends a transfer."""
    return struct.pack("!HH", Opcode.ERROR, code) + message.encode(errors="replace")[:400] + b"\0"
