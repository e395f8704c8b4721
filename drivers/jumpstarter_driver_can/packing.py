# SPDX-License-Identifier: Apache-2.0
"""Frames packed into bytes: what `frames`, `send_batch` and the exporter's backlog hold instead of objects.

A packed frame, little endian: timestamp (f64, seconds since the epoch), id and kind (u32, as in ``struct can_frame`` of
linux/can.h: bit 31 extended, bit 30 remote, bit 29 error), flags (u8: 1 bitrate switch and 2 error state as in
``struct canfd_frame``, 4 CAN FD, 8 received), length (u8), data. A remote frame has a length and no data. A batch is
frames one after the other.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import can

__all__ = ["EXTENDED", "ID_MASK", "pack", "unpack"]

EXTENDED = 1 << 31
_REMOTE = 1 << 30
_ERROR = 1 << 29
ID_MASK = 0x1FFFFFFF

_BRS, _ESI, _FD, _RX = 1, 2, 4, 8
_HEADER = struct.Struct("<dIBB")


def pack(msg: can.Message) -> bytes:
    """One frame."""
    ident = msg.arbitration_id
    if msg.is_extended_id:
        ident |= EXTENDED
    if msg.is_remote_frame:
        ident |= _REMOTE
    if msg.is_error_frame:
        ident |= _ERROR
    flags = _RX if msg.is_rx else 0
    if msg.is_fd:
        flags |= _FD | (_BRS if msg.bitrate_switch else 0) | (_ESI if msg.error_state_indicator else 0)
    data = b"" if msg.is_remote_frame else bytes(msg.data)
    return _HEADER.pack(msg.timestamp, ident, flags, msg.dlc if msg.is_remote_frame else len(data)) + data


def unpack(batch: bytes, channel: str | int | None = None) -> Iterator[can.Message]:
    """The frames of a batch. channel: what their `channel` shall say. Raises ValueError for a damaged batch."""
    offset, end = 0, len(batch)
    while offset < end:
        start = offset + _HEADER.size
        if start > end:
            raise ValueError(f"a batch of frames ends within a frame, at byte {offset} of {end}")
        timestamp, ident, flags, length = _HEADER.unpack_from(batch, offset)
        remote = bool(ident & _REMOTE)
        offset = start if remote else start + length
        if offset > end:
            raise ValueError(f"a batch of frames ends within a frame, at byte {start} of {end}")
        yield can.Message(
            timestamp=timestamp,
            arbitration_id=ident & ID_MASK,
            is_extended_id=bool(ident & EXTENDED),
            is_remote_frame=remote,
            is_error_frame=bool(ident & _ERROR),
            channel=channel,
            dlc=length,
            data=batch[start:offset],
            is_fd=bool(flags & _FD),
            is_rx=bool(flags & _RX),
            bitrate_switch=bool(flags & _BRS),
            error_state_indicator=bool(flags & _ESI),
        )
