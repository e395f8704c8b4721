# SPDX-License-Identifier: Apache-2.0
"""Frames of RouterService.Stream, coded by hand.

A frame is the message ``{bytes payload = 1; FrameType frame_type = 2;}``. Bulk data passes through here 1 MiB at a
time; going through a generated message costs two copies more per frame than reading the two fields directly.
Unknown fields are skipped, as protobuf wants it.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "DATA",
    "GOAWAY",
    "MAX_HEAD",
    "MAX_PAYLOAD",
    "PING",
    "RST_STREAM",
    "Frame",
    "decode_frame",
    "encode_frame",
    "frame_in_place",
]

DATA = 0x00
RST_STREAM = 0x03
PING = 0x06
GOAWAY = 0x07

#: Bytes per frame. gRPC refuses messages above 4 MiB; 1 MiB is where throughput stops growing.
MAX_PAYLOAD = 1 << 20


#: Room that the head of a frame needs at most in front of its payload.
MAX_HEAD = 8


class Frame(NamedTuple):
    """One frame. A parsed one's payload is a view of the message it came in."""

    payload: bytes | memoryview
    type: int = DATA


def encode_frame(frame: Frame | bytes) -> bytes:
    """Serialise; fields with default values are left out. Bytes are a frame that `frame_in_place` made."""
    if isinstance(frame, bytes):
        return frame
    payload, kind = frame
    head = b""
    if payload:
        head = b"\x0a" + _varint(len(payload))
    tail = b"\x10" + _varint(kind) if kind else b""
    return b"".join((head, payload, tail))


def frame_in_place(buffer: memoryview, size: int) -> bytes:
    """A serialised data frame of the ``size`` bytes that lie in the buffer behind `MAX_HEAD` bytes of room.

    Bulk data are copied once here, instead of once into an object of their own and again into the frame.
    """
    head = b"\x0a" + _varint(size)
    start = MAX_HEAD - len(head)
    buffer[start:MAX_HEAD] = head
    return bytes(buffer[start : MAX_HEAD + size])


def decode_frame(data: bytes) -> Frame:
    """Parse. Raises ValueError for bytes that are not a frame."""
    payload: bytes | memoryview = b""
    kind, at, end = DATA, 0, len(data)
    try:
        while at < end:
            key, at = _read_varint(data, at)
            wire = key & 7
            if wire == 0:
                value, at = _read_varint(data, at)
                if key == 0x10:
                    kind = value
                continue
            if wire == 2:
                size, at = _read_varint(data, at)
            elif wire == 1:
                size = 8
            elif wire == 5:
                size = 4
            else:
                raise ValueError(f"field type {wire} in a stream frame")
            if at + size > end:
                raise ValueError("a stream frame ends in the middle of a field")
            if key == 0x0A:
                payload = memoryview(data)[at : at + size]
            at += size
    except IndexError:
        raise ValueError("a stream frame ends in the middle of a number") from None
    return Frame(payload, kind)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number in a stream frame is longer than 64 bits")
