# SPDX-License-Identifier: Apache-2.0
"""Digests of an image while it streams: one sha256 of all of it (in a thread), one fast digest per block."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable
from typing import Final

import xxhash

from jumpstarter.common.storage import BLOCK_SIZE, Buffer

BLOCK_DIGEST: Final = "xxh3_128"
DIGEST_SIZE: Final = 16
_ZEROS: Final = bytes(BLOCK_SIZE)


def block_digest(data: Buffer) -> bytes:
    """Digest of one block."""
    return xxhash.xxh3_128_digest(data)


def zero_digest(length: int) -> bytes:
    """Digest of a block of ``length`` zeros."""
    return _ZERO_DIGEST if length == BLOCK_SIZE else block_digest(bytes(length))


_ZERO_DIGEST: Final = block_digest(_ZEROS)


class BlockHasher:
    """Per-block digests of bytes that come in order, in any cut."""

    def __init__(self) -> None:
        self.digests = bytearray()
        self._state = xxhash.xxh3_128()
        self._filled = 0

    def data(self, view: memoryview) -> None:
        """The next bytes."""
        while view:
            if not self._filled and len(view) >= BLOCK_SIZE:
                self.digests += block_digest(view[:BLOCK_SIZE])
                view = view[BLOCK_SIZE:]
                continue
            piece = view[: BLOCK_SIZE - self._filled]
            self._state.update(piece)
            self._advance(len(piece))
            view = view[len(piece) :]

    def zeros(self, length: int) -> None:
        """The next ``length`` bytes are zero."""
        while length:
            if not self._filled and length >= BLOCK_SIZE:
                blocks = length // BLOCK_SIZE
                self.digests += _ZERO_DIGEST * blocks
                length -= blocks * BLOCK_SIZE
                continue
            piece = min(length, BLOCK_SIZE - self._filled)
            self._state.update(_ZEROS if piece == BLOCK_SIZE else bytes(piece))
            self._advance(piece)
            length -= piece

    def finish(self) -> bytes:
        """All digests, the last one of what was left."""
        if self._filled:
            self.digests += self._state.digest()
            self._state.reset()
            self._filled = 0
        return bytes(self.digests)

    def _advance(self, count: int) -> None:
        self._filled += count
        if self._filled == BLOCK_SIZE:
            self.digests += self._state.digest()
            self._state.reset()
            self._filled = 0


class HashThread:
    """sha256 of a stream, computed beside the caller; buffers must stay unchanged until hashed (see `then`)."""

    def __init__(self, depth: int = 8) -> None:
        self._queue: queue.Queue[memoryview | int | Callable[[], None] | None] = queue.Queue(depth)
        self._sha256 = hashlib.sha256()
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="image-sha256", daemon=True)
        self._thread.start()

    def data(self, view: memoryview) -> None:
        """The next bytes; blocks while ``depth`` pieces wait."""
        self._queue.put(view)

    def zeros(self, length: int) -> None:
        """The next ``length`` bytes are zero."""
        if length:
            self._queue.put(length)

    def then(self, function: Callable[[], None]) -> None:
        """Call ``function`` when all that was given so far is hashed."""
        self._queue.put(function)

    def finish(self) -> str:
        """Hex digest of everything."""
        self._end()
        return self._sha256.hexdigest()

    def abort(self) -> None:
        """Give up: drops what waits and ends the thread."""
        self._stop = True
        self._end()

    def _end(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, int):
                while item and not self._stop:
                    step = min(item, BLOCK_SIZE)
                    self._sha256.update(_ZEROS if step == BLOCK_SIZE else _ZEROS[:step])
                    item -= step
                continue
            if callable(item):
                item()
                continue
            if not self._stop:
                self._sha256.update(item)
            item.release()
