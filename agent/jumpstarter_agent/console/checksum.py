# SPDX-License-Identifier: Apache-2.0
"""The checksums a device can compute, computed here at C speed."""

from __future__ import annotations

import hashlib
import zlib

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def posix_cksum(data: bytes) -> int:
    """The CRC that the POSIX ``cksum`` utility prints for ``data``.

    POSIX feeds the polynomial of zlib's CRC-32 most significant bit first, starts at zero and appends the length;
    with the bits of every byte and of the result reversed it is zlib's own, which runs in C.
    """
    length, tail = len(data), bytearray()
    while length:
        tail.append(length & 0xFF)
        length >>= 8
    reflected = zlib.crc32(bytes(tail).translate(_REVERSED), zlib.crc32(data.translate(_REVERSED), 0xFFFFFFFF))
    return int(f"{reflected:032b}"[::-1], 2)


def fingerprint(data: bytes, tool: str) -> str:
    """``data`` as the device names it with ``tool``: ``SUM.SIZE`` for cksum, else the digest."""
    if tool == "cksum":
        return f"{posix_cksum(data)}.{len(data)}"
    return digest(data, tool)


def digest(data: bytes, tool: str) -> str:
    """Hexadecimal (decimal for cksum) digest of ``data`` as the utility ``tool`` prints it."""
    if tool == "cksum":
        return str(posix_cksum(data))
    return hashlib.new(tool.removesuffix("sum"), data, usedforsecurity=False).hexdigest()
