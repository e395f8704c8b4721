# SPDX-License-Identifier: Apache-2.0
"""How bytes travel as text: base64 where the device has it, else hexadecimal out and octal escapes in."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from .errors import DeviceToolMissing


@dataclass(frozen=True, slots=True)
class Codec:
    """One pair of encodings. ``line_bytes``: payload of a full line the device sends; ``up_bytes``: of one we send."""

    name: str
    line_bytes: int
    up_bytes: int

    def decode(self, line: bytes) -> bytes | None:
        """The payload of one line from the device; None when it is no such line (damaged, or noise)."""
        try:
            if self.name == "hex":
                return binascii.unhexlify(line)
            return base64.b64decode(line, validate=True)
        except (binascii.Error, ValueError):
            return None

    def encode(self, data: bytes) -> bytes:
        """``data`` as one line for the device."""
        if self.name == "hex":
            return b"".join(b"\\%03o" % byte for byte in data)
        return base64.b64encode(data)


_CODECS = {"b64": Codec("b64", line_bytes=57, up_bytes=180), "hex": Codec("hex", line_bytes=16, up_bytes=60)}


def codec(name: str) -> Codec:
    """The codec a device chose."""
    try:
        return _CODECS[name]
    except KeyError:
        raise DeviceToolMissing(f"the device offers the unknown encoding {name!r}") from None
