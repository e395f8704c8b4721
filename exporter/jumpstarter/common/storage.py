# SPDX-License-Identifier: Apache-2.0
"""Images as bytes: sizes, zero blocks, extents of data, and the sparse stream both ends of a flash speak.

A *sparse stream* carries an image without its zeros::

    MAGIC  ( DATA header, payload )*  END header

A header is 24 bytes, big endian: type (1 byte, 7 bytes of zero), offset and length (8 bytes each). ``DATA`` announces
``length`` bytes of payload that belong at ``offset``; offsets only grow. Everything no ``DATA`` covers is zero. ``END``
carries the size of the whole image in ``offset`` and closes the stream; a stream without it was cut off.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import re
import struct
from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal, NamedTuple

BLOCK_SIZE: Final = 1 << 20
"""Bytes per block: the unit of per-block digests, of repair and of bulk messages."""

ZERO_GRAIN: Final = 1 << 16
"""Bytes per zero test: a run of zeros shorter than this travels and is written like data."""

EXTENT_LIMIT: Final = 16 << 20
"""Longest extent in bytes: bounds how far the scan for zeros runs ahead of the sender."""

_ZERO_GRAIN_BYTES: Final = bytes(ZERO_GRAIN)
_ZERO_BLOCK: Final = bytearray(BLOCK_SIZE)
_PROBE: Final = 64

_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:iB|B)?\s*", re.IGNORECASE)

Buffer = bytes | bytearray | memoryview


def parse_size(value: int | str) -> int:
    """Bytes from an integer or a text like ``96MiB``, ``96M``, ``1.5 GiB``, ``4096`` (powers of 1024)."""
    if isinstance(value, bool):
        raise ValueError(f"size must be a number of bytes or a text like 96MiB, not {value!r}")
    if isinstance(value, int):
        size = value
    else:
        match = _SIZE.fullmatch(value)
        if match is None:
            raise ValueError(f"size must be a number of bytes or a text like 96MiB, not {value!r}")
        size = (
            int(float(match[1]) * _UNITS[match[2].upper()])
            if "." in match[1]
            else int(match[1]) * _UNITS[match[2].upper()]
        )
    if size < 0:
        raise ValueError(f"size must not be negative: {value!r}")
    return size


def format_size(size: int) -> str:
    """A size for people: ``512.0 MiB``; below 1 KiB plain bytes, and exact bytes where rounding would hide a digit."""
    if size < 1024:
        return f"{size} bytes"
    amount = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        amount /= 1024
        if amount < 1024 or unit == "TiB":
            break
    return f"{amount:.1f} {unit}"


def format_sizes(first: int, second: int) -> tuple[str, str]:
    """Two different sizes for one message: in exact bytes when rounding would make them look the same."""
    texts = format_size(first), format_size(second)
    if first != second and texts[0] == texts[1]:
        return f"{first} bytes", f"{second} bytes"
    return texts


def is_zero(data: Buffer) -> bool:
    """Whether every byte is zero; one memcmp per MiB, and one byte's look for most data."""
    size = len(data)
    if size == 0:
        return True
    if data[0] or data[-1]:
        return False
    view = memoryview(data)
    for start in range(0, size, BLOCK_SIZE):
        piece = view[start : start + BLOCK_SIZE]
        # bytearray == buffer is a memcmp; memoryview == memoryview would compare item by item
        zeros = _ZERO_BLOCK if len(piece) == BLOCK_SIZE else bytearray(len(piece))
        if zeros != piece:
            return False
    return True


class Extent(NamedTuple):
    """A run of bytes of an image: where it starts and how long it is, in bytes."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """First byte behind the run."""
        return self.offset + self.length


def split_zeros(offset: int, data: memoryview) -> Iterator[tuple[int, memoryview | None, int]]:
    """Cut ``data``, which belongs at ``offset``, into runs: ``(offset, view or None for zeros, length)``.

    Zeros are found in whole grains aligned in the image, so that the runs suit holes and device sectors.
    """
    position, size = 0, len(data)
    run_start, run_zero = 0, False
    while position < size:
        step = min(ZERO_GRAIN - (offset + position) % ZERO_GRAIN, size - position)
        zero = step == ZERO_GRAIN and is_zero(data[position : position + step])
        if zero != run_zero:
            if position > run_start:
                yield offset + run_start, None if run_zero else data[run_start:position], position - run_start
            run_start, run_zero = position, zero
        position += step
    if size > run_start:
        yield offset + run_start, None if run_zero else data[run_start:], size - run_start


def data_extents(fd: int, size: int, limit: int = EXTENT_LIMIT) -> Iterator[Extent]:
    """The runs of a file that are not zero, in order, none longer than ``limit`` bytes.

    Holes are skipped without reading. Elsewhere a few bytes of every grain decide; only a grain that starts with
    zeros is read in full. Lazy: the scan is at most ``limit`` bytes ahead of what was taken.
    """
    start = end = 0
    for offset, length in _allocated(fd, size):
        position, stop = offset, offset + length
        while position < stop:
            step = min(ZERO_GRAIN - position % ZERO_GRAIN, stop - position)
            if _zero_grain(fd, position, step):
                if end > start:
                    yield Extent(start, end - start)
                start = end = position + step
            else:
                if position != end or end - start + step > limit:
                    if end > start:
                        yield Extent(start, end - start)
                    start = position
                end = position + step
            position += step
    if end > start:
        yield Extent(start, end - start)


def _allocated(fd: int, size: int) -> Iterator[tuple[int, int]]:
    position = 0
    while position < size:
        try:
            data = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but hole up to the end
                return
            if error.errno in (errno.EINVAL, errno.ENOTSUP):  # this file system keeps no account of holes
                yield position, size - position
                return
            raise
        if data >= size:
            return
        hole = min(os.lseek(fd, data, os.SEEK_HOLE), size)
        yield data, hole - data
        position = hole


def _zero_grain(fd: int, offset: int, length: int) -> bool:
    probe = os.pread(fd, min(_PROBE, length), offset)
    if probe.count(0) != len(probe):
        return False
    whole = os.pread(fd, length, offset)
    return whole == (_ZERO_GRAIN_BYTES if length == ZERO_GRAIN else bytes(len(whole)))


class Probe:
    """A digest of a few blocks (numbers 0, 1, 2, 4, 8, ...): tells in milliseconds that two images differ.

    Equal probes prove nothing. Bytes come in order, without gaps.
    """

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._position = 0

    def data(self, view: memoryview) -> None:
        """The next bytes."""
        start = self._position
        for offset, end in self._probed(len(view)):
            self._sha256.update(view[offset - start : end - start])

    def zeros(self, length: int) -> None:
        """The next ``length`` bytes are zero."""
        for offset, end in self._probed(length):
            self._sha256.update(_ZERO_BLOCK[: end - offset])

    def hexdigest(self) -> str:
        """Of all that came."""
        return self._sha256.hexdigest()

    def _probed(self, length: int) -> Iterator[tuple[int, int]]:
        start, self._position = self._position, self._position + length
        for block in _probed_blocks(start // BLOCK_SIZE, self._position):
            offset = max(start, block * BLOCK_SIZE)
            end = min(self._position, (block + 1) * BLOCK_SIZE)
            if end > offset:
                yield offset, end


def _probed_blocks(first: int, end: int) -> Iterator[int]:
    """0 and the powers of two that are not below ``first``, while the block starts before byte ``end``."""
    block = 0 if first == 0 else 1 << (first - 1).bit_length()
    while block * BLOCK_SIZE < end:
        yield block
        block = block * 2 or 1


def probe_file(fd: int, size: int) -> str:
    """The `Probe` of an open file of ``size`` bytes, reading only what it needs."""
    digest = hashlib.sha256()
    for block in _probed_blocks(0, size):
        digest.update(os.pread(fd, min(BLOCK_SIZE, size - block * BLOCK_SIZE), block * BLOCK_SIZE))
    return digest.hexdigest()


# --- sparse stream ------------------------------------------------------------------------------------------

MAGIC: Final = b"JLSPARS1"
_HEADER: Final = struct.Struct("!B7xQQ")
HEADER_SIZE: Final = _HEADER.size
_DATA: Final = 1
_END: Final = 2


class SparseStreamError(ValueError):
    """The bytes received are no whole sparse stream."""


def data_header(extent: Extent) -> bytes:
    """Announces the payload of ``extent``."""
    return _HEADER.pack(_DATA, extent.offset, extent.length)


def end_header(size: int) -> bytes:
    """Closes the stream of an image of ``size`` bytes."""
    return _HEADER.pack(_END, size, 0)


def header_payload(header: Buffer) -> tuple[int, int]:
    """Offset and length of the payload that follows a header; length 0 behind the last one."""
    _, offset, length = _HEADER.unpack(header)
    return offset, length


class SparseParser:
    """Turns chunks of a sparse stream, cut anywhere, into ``(offset, payload)`` pieces without copying payload.

    ``size`` is None until the end header has been seen.
    """

    def __init__(self, limit: int | None = None) -> None:
        """``limit``: bytes the target holds; an extent beyond it is refused before its payload is passed on."""
        self.size: int | None = None
        self._limit = limit
        self._head = bytearray()
        self._want = len(MAGIC)
        self._started = False
        self._offset = 0
        self._left = 0

    def feed(self, chunk: Buffer) -> Iterator[tuple[int, memoryview]]:
        """Pieces of payload in ``chunk``; raises SparseStreamError on anything that breaks the format."""
        view = memoryview(chunk)
        while view:
            if self._left:
                piece = view[: self._left]
                view = view[len(piece) :]
                offset = self._offset
                self._offset += len(piece)
                self._left -= len(piece)
                yield offset, piece
                continue
            if self.size is not None:
                raise SparseStreamError(f"{len(view)} bytes follow the end of the image stream")
            missing = self._want - len(self._head)
            self._head += view[:missing]
            view = view[missing:]
            if len(self._head) == self._want:
                self._header(bytes(self._head))
                self._head.clear()

    def finish(self) -> int:
        """Size of the image in bytes; raises SparseStreamError when the stream ended early."""
        if self.size is None:
            raise SparseStreamError(f"the image stream was cut off at byte {self._offset} of the image")
        return self.size

    def _header(self, head: bytes) -> None:
        if not self._started:
            if head != MAGIC:
                raise SparseStreamError("this is no sparse image stream")
            self._started, self._want = True, HEADER_SIZE
            return
        kind, offset, length = _HEADER.unpack(head)
        if kind == _DATA and offset >= self._offset and length:
            if self._limit is not None and offset + length > self._limit:
                raise SparseStreamError(f"image data ends at byte {offset + length}, behind byte {self._limit}")
            self._offset, self._left = offset, length
        elif kind == _END and offset >= self._offset and length == 0:
            self.size = offset
        else:
            raise SparseStreamError(f"bad header in the image stream (type {kind}, offset {offset}, length {length})")


# --- data connections -----------------------------------------------------------------------------------------

PROOF_SIZE: Final = 32
"""Bytes each side sends first on a data connection."""


def connection_proof(token: bytes, side: Literal["client", "exporter"]) -> bytes:
    """What ``side`` sends to show that it knows the connection's one-time token, without showing the token."""
    return hmac.digest(token, side.encode(), "sha256")


def pack_blocks(blocks: Iterable[int]) -> list[list[int]]:
    """Block numbers as ``[first, count]`` runs: what travels instead of a long list."""
    runs: list[list[int]] = []
    for block in sorted(set(blocks)):
        if runs and runs[-1][0] + runs[-1][1] == block:
            runs[-1][1] += 1
        else:
            runs.append([block, 1])
    return runs


def unpack_blocks(runs: Iterable[Iterable[float]]) -> list[int]:
    """The inverse of `pack_blocks`; numbers may arrive as floats from older peers."""
    blocks: list[int] = []
    for first, count in runs:
        blocks.extend(range(int(first), int(first) + int(count)))
    return blocks


_DEVICE_HELPERS: Final = ("read_from_storage_device", "wait_for_storage_device", "write_to_storage_device")


def __getattr__(name: str) -> Any:
    """The helpers for storage devices keep the place where drivers import them from, and cost nobody else anything."""
    if name in _DEVICE_HELPERS:
        from jumpstarter.common import storage_device

        return getattr(storage_device, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
