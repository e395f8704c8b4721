# SPDX-License-Identifier: Apache-2.0
"""What the structure of a compressed file tells without decoding it: is it complete, how large is its content.

xz keeps an index at the end of every stream and zstd a length in front of every block, so walking those finds a file
that was cut off in milliseconds. gzip and bz2 keep nothing of the kind: only decoding them whole tells.
"""

from __future__ import annotations

import os
import zlib
from typing import Final, NamedTuple

from jumpstarter.streams.encoding import CompressedDataError, Compression

_XZ_MAGIC: Final = b"\xfd7zXZ\x00"
_ZSTD_MAGIC: Final = 0xFD2FB528
_ZSTD_SKIPPABLE: Final = range(0x184D2A50, 0x184D2A60)


class Archive(NamedTuple):
    """``size``: bytes of content, None when the format does not say; ``walked``: the structure proves completeness."""

    size: int | None
    walked: bool


def inspect_archive(fd: int, compression: Compression) -> Archive:
    """Walk the structure of the compressed file ``fd``; raises CompressedDataError when it is cut off or damaged."""
    length = os.fstat(fd).st_size
    if length == 0:
        raise CompressedDataError(f"{compression} data is empty")
    if compression is Compression.XZ:
        return Archive(_xz_size(fd, length), True)
    if compression is Compression.ZSTD:
        return Archive(_zstd_size(fd, length), True)
    return Archive(None, False)


# --- xz: stream = header, blocks, index, footer; read from the back -----------------------------------------


def _xz_size(fd: int, length: int) -> int:
    total, end = 0, length
    while end > 0:
        stop = _without_padding(fd, end)
        start, size = _xz_stream(fd, stop, length)
        total, end = total + size, start
    return total


def _without_padding(fd: int, end: int) -> int:
    stop = end
    while stop >= 4 and os.pread(fd, 4, stop - 4) == bytes(4):
        stop -= 4
    return stop


def _xz_stream(fd: int, stop: int, length: int) -> tuple[int, int]:
    """Start of the stream that ends at ``stop``, and the bytes of content in it."""
    footer = os.pread(fd, 12, stop - 12) if stop >= 24 else b""
    if len(footer) != 12 or footer[10:] != b"YZ" or _le32(footer[:4]) != zlib.crc32(footer[4:10]):
        if os.pread(fd, 6, 0) != _XZ_MAGIC:
            raise CompressedDataError("this is no xz file: the signature at its start is missing")
        raise CompressedDataError(
            f"xz data is truncated or followed by something else: no stream footer before byte {stop} of {length}"
        )
    index_size = (_le32(footer[4:8]) + 1) * 4
    index_start = stop - 12 - index_size
    if index_start < 12:
        raise _xz_damage("its index does not fit into the file")
    index = os.pread(fd, index_size, index_start)
    if index[0] != 0 or _le32(index[-4:]) != zlib.crc32(index[:-4]):
        raise _xz_damage("its index does not match its checksum")
    count, position = _varint(index, 1)
    packed = size = 0
    for _ in range(count):
        unpadded, position = _varint(index, position)
        plain, position = _varint(index, position)
        packed += (unpadded + 3) & ~3
        size += plain
    start = index_start - packed - 12
    header = os.pread(fd, 12, start) if start >= 0 else b""
    if header[:6] != _XZ_MAGIC or header[6:8] != footer[8:10]:
        raise _xz_damage("bytes are missing between its start and its index")
    return start, size


def _xz_damage(what: str) -> CompressedDataError:
    return CompressedDataError(f"xz data is truncated or damaged: {what}")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 63:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
        shift += 7
    raise _xz_damage("its index is malformed")


# --- zstd: frame = magic, header, blocks with their length in front, checksum; read from the front ----------


def _zstd_size(fd: int, length: int) -> int | None:
    total: int | None = 0
    position = frames = 0
    while position < length:
        head = os.pread(fd, 18, position)
        magic = _le32(head[:4]) if len(head) >= 4 else -1
        if magic in _ZSTD_SKIPPABLE and len(head) >= 8:
            position += 8 + _le32(head[4:8])
            size: int | None = 0
        elif magic == _ZSTD_MAGIC:
            position, size = _zstd_frame(fd, position, head, length)
            frames += 1
        elif frames and not _ZSTD_MAGIC.to_bytes(4, "little").startswith(head[:4]):
            raise CompressedDataError(f"something that is no zstd data follows its end, at byte {position} of {length}")
        elif frames:
            raise _zstd_cut(length)
        else:
            raise CompressedDataError("this is no zstd file: the signature at its start is missing")
        total = None if total is None or size is None else total + size
    if position > length:
        raise _zstd_cut(length)
    return total


def _zstd_frame(fd: int, start: int, head: bytes, length: int) -> tuple[int, int | None]:
    if len(head) < 6:
        raise _zstd_cut(length)
    descriptor = head[4]
    single, checksum = bool(descriptor & 0x20), bool(descriptor & 0x04)
    position = 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3]
    width = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    field = head[position : position + width]
    if len(field) != width:
        raise _zstd_cut(length)
    size = int.from_bytes(field, "little") + (256 if width == 2 else 0) if width else None
    position += start + width
    last = False
    while not last:
        block = os.pread(fd, 3, position)
        if len(block) != 3:
            raise _zstd_cut(length)
        value = int.from_bytes(block, "little")
        last, kind, count = bool(value & 1), value >> 1 & 3, value >> 3
        if kind == 3:
            raise CompressedDataError(f"zstd data is corrupt: bad block header at byte {position}")
        position += 3 + (1 if kind == 1 else count)
    return position + (4 if checksum else 0), size


def _zstd_cut(length: int) -> CompressedDataError:
    return CompressedDataError(f"zstd data is truncated: the file ends at byte {length}, before its last frame does")


def _le32(data: bytes) -> int:
    return int.from_bytes(data, "little")
