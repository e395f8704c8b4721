# SPDX-License-Identifier: Apache-2.0
"""An image in pieces, as files on the TFTP server that U-Boot takes one after the other."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jumpstarter.common.storage import is_zero
from jumpstarter_driver_flashers.images import StoredImage

__all__ = ["Ahead", "Piece", "cut"]


@dataclass(frozen=True)
class Piece:
    """A part of an image. name: its file on the TFTP server, None when it is all zero. stored: bytes of that file."""

    size: int
    crc: int
    name: str | None = None
    packed: bool = False
    stored: int = 0


def cut(image: StoredImage, chunk: int) -> Iterator[bytes]:
    """The image in pieces of ``chunk`` bytes, the last one shorter."""
    buffer = bytearray()
    for data in image.chunks():
        buffer += data
        while len(buffer) >= chunk:
            yield bytes(buffer[:chunk])
            del buffer[:chunk]
    if buffer:
        yield bytes(buffer)


class Ahead:
    """Pieces as files on the TFTP server, one prepared while the one before is being written."""

    def __init__(self, pieces: Iterator[bytes], root: Path, prefix: str) -> None:
        self._pieces = pieces
        self._root = root
        self._prefix = prefix
        self._number = 0
        self._next: asyncio.Task[Piece | None] | None = None
        self._files: list[Path] = []

    async def next(self) -> Piece | None:
        """The next piece; the file of the one before is removed. None at the end."""
        if self._next is None:
            self._next = asyncio.create_task(asyncio.to_thread(self._prepare))
        piece = await asyncio.shield(self._next)
        keep = 1 if piece is not None and piece.name else 0
        while len(self._files) > keep:
            self._files.pop(0).unlink(missing_ok=True)
        self._next = asyncio.create_task(asyncio.to_thread(self._prepare)) if piece is not None else None
        return piece

    async def close(self) -> None:
        """Remove what is left."""
        if self._next is not None:
            await asyncio.wait([self._next])
            if not self._next.cancelled():
                self._next.exception()  # nobody asks for this piece any more
        for path in self._files:
            path.unlink(missing_ok=True)

    def _prepare(self) -> Piece | None:
        data = next(self._pieces, None)
        if data is None:
            return None
        crc = zlib.crc32(data)
        if is_zero(data):
            return Piece(len(data), crc)
        packer = zlib.compressobj(1, zlib.DEFLATED, 31)
        packed = packer.compress(data) + packer.flush()
        worth = len(packed) < len(data) * 0.9
        self._number += 1
        name = f"{self._prefix}-{self._number}"
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._files.append(path)
        stored = packed if worth else data
        path.write_bytes(stored)
        return Piece(len(data), crc, name, worth, len(stored))
