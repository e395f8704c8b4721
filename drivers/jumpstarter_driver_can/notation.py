# SPDX-License-Identifier: Apache-2.0
"""Frames as text, the way can-utils write them. Needs nothing but Python, so that plays can use it everywhere.

Notation and semantics after the manual pages of cansend and candump: ``123#DEADBEEF``, ``1F334455#11.22.33`` (eight
digits: extended id), ``123#R4`` (remote frame), ``123##1DEAD`` (CAN FD with flags: 1 bitrate switch, 2 error state).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["DataPattern", "format_frame", "parse_data", "parse_filter", "parse_frame", "parse_id"]

#: Payload lengths that CAN FD has beyond eight bytes (ISO 11898-1).
_FD_LENGTHS = (12, 16, 20, 24, 32, 48, 64)

_FRAME = re.compile(r"(?P<id>[0-9A-Fa-f]{3}|[0-9A-Fa-f]{8})#(?P<rest>.*)", re.DOTALL)


def parse_id(text: str) -> tuple[int, bool]:
    """An id and whether it is extended: three hex digits or eight. Raises ValueError."""
    if not re.fullmatch(r"[0-9A-Fa-f]{3}|[0-9A-Fa-f]{8}", text):
        raise ValueError(f'"{text}" is no CAN id: three hex digits (standard) or eight (extended)')
    value, extended = int(text, 16), len(text) == 8
    largest = 0x1FFFFFFF if extended else 0x7FF
    if value > largest:
        raise ValueError(f'CAN id "{text}" is larger than {largest:X}')
    return value, extended


def parse_data(text: str) -> bytes:
    """Hex digits; dots and spaces between bytes are taken. Raises ValueError."""
    digits = re.sub(r"[.\s]", "", text)
    try:
        if not re.fullmatch(r"[0-9A-Fa-f]*", digits):
            raise ValueError
        return bytes.fromhex(digits)
    except ValueError:
        raise ValueError(f'"{text}" is no data: pairs of hex digits are expected, as in DEADBEEF or DE.AD') from None


def parse_frame(text: str) -> dict[str, Any]:
    """A frame in cansend's notation, in the shape drivers take (data in base64). Raises ValueError."""
    found = _FRAME.fullmatch(text.strip())
    if found is None:
        raise ValueError(f'"{text}" is no frame: expected <id>#<data>, as in 123#DEADBEEF or 1F334455#R4')
    ident, extended = parse_id(found["id"])
    rest = found["rest"]
    if rest.startswith("#"):
        return _fd_frame(text, ident, extended, rest[1:])
    if rest[:1] in ("R", "r"):
        length = rest[1:] or "0"
        if length not in "012345678":
            raise ValueError(f'"{text}": a remote frame asks for 0 to 8 bytes, not "{length}"')
        return _frame(ident, extended, b"", is_remote_frame=True, dlc=int(length))
    data = parse_data(rest)
    if len(data) > 8:
        raise ValueError(f'"{text}": {len(data)} bytes do not fit a classic frame (8); CAN FD is <id>##<flags><data>')
    return _frame(ident, extended, data)


def _fd_frame(text: str, ident: int, extended: bool, rest: str) -> dict[str, Any]:
    if not re.match(r"[0-9A-Fa-f]", rest):
        raise ValueError(f'"{text}": a CAN FD frame is <id>##<flags><data> with one hex digit of flags')
    flags, data = int(rest[0], 16), parse_data(rest[1:])
    if flags > 3:
        raise ValueError(f'"{text}": CAN FD flags are 0 to 3 (1 bitrate switch, 2 error state), not {flags}')
    if len(data) > 8 and len(data) not in _FD_LENGTHS:
        raise ValueError(f'"{text}": CAN FD frames carry 0 to 8, 12, 16, 20, 24, 32, 48 or 64 bytes, not {len(data)}')
    return _frame(
        ident, extended, data, is_fd=True, bitrate_switch=bool(flags & 1), error_state_indicator=bool(flags & 2)
    )


def _frame(ident: int, extended: bool, data: bytes, **more: Any) -> dict[str, Any]:
    return {
        "timestamp": 0.0,
        "arbitration_id": ident,
        "is_extended_id": extended,
        "is_remote_frame": False,
        "is_error_frame": False,
        "channel": None,
        "dlc": len(data),
        "data": base64.b64encode(data).decode("ascii"),
        "is_fd": False,
        "is_rx": False,
        "bitrate_switch": False,
        "error_state_indicator": False,
        **more,
    }


def format_frame(frame: Mapping[str, Any]) -> str:
    """A frame in the shape drivers send (data in base64), in cansend's notation."""
    ident = f"{int(frame['arbitration_id']):0{8 if frame['is_extended_id'] else 3}X}"
    if frame["is_remote_frame"]:
        return f"{ident}#R{int(frame['dlc'] or 0) or ''}"
    data = base64.b64decode(frame["data"] or "").hex().upper()
    if frame["is_fd"]:
        flags = (1 if frame["bitrate_switch"] else 0) | (2 if frame["error_state_indicator"] else 0)
        return f"{ident}##{flags:X}{data}"
    return f"{ident}#{data}"


def parse_filter(text: str) -> dict[str, Any]:
    """A filter ``<id>`` or ``<id>:<mask>`` in the shape of python-can.

    The number of the id's digits chooses standard or extended frames. Raises ValueError.
    """
    ident, colon, mask = text.partition(":")
    value, extended = parse_id(ident)
    if not colon:
        bits = 0x1FFFFFFF if extended else 0x7FF
    elif re.fullmatch(r"[0-9A-Fa-f]{1,8}", mask):
        bits = int(mask, 16)
    else:
        raise ValueError(f'"{text}": the mask "{mask}" is no hex number')
    return {"can_id": value, "can_mask": bits, "extended": extended}


class DataPattern:
    """Data to wait for: hex digits, ``?`` or ``X`` for any digit, a ``*`` at the end for anything more.

    Raises ValueError for something else.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        digits = re.sub(r"[.\s]", "", text)
        if not re.fullmatch(r"[0-9A-Fa-fXx?]*\*?", digits):
            raise ValueError(f'"{text}" is no pattern of data: hex digits, ? for any digit, * at the end for any rest')
        wild = "".join("[0-9a-f]" if digit in "Xx?" else digit.lower() for digit in digits.rstrip("*"))
        self._regex = re.compile(wild + (".*" if digits.endswith("*") else ""))
        if len(digits.rstrip("*")) % 2:
            raise ValueError(f'"{text}": a byte has two digits')

    def matches(self, data: bytes) -> bool:
        """Whether all of the data fits."""
        return self._regex.fullmatch(data.hex()) is not None

    def __str__(self) -> str:
        return self.text
