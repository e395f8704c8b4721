# SPDX-License-Identifier: Apache-2.0
"""Reading a target back from the medium, past the page cache, and comparing it block by block."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterable

from jumpstarter.common.storage import BLOCK_SIZE
from jumpstarter_driver_storage import blockdev
from jumpstarter_driver_storage.digest import DIGEST_SIZE, block_digest, zero_digest
from jumpstarter_driver_storage.target import Checked


def bad_blocks(
    checked: Checked,
    size: int,
    digests: bytes,
    *,
    only: Iterable[int] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[int]:
    """Numbers of the blocks of the first ``size`` bytes that do not have their digest.

    ``only``: look at these blocks. ``progress`` is called with the bytes compared so far; what it raises passes
    through. OSError when the target cannot be read.
    """
    count = -(-size // BLOCK_SIZE)
    if len(digests) != count * DIGEST_SIZE:
        raise ValueError(f"{len(digests) // DIGEST_SIZE} digests for an image of {count} blocks")
    numbers = range(count) if only is None else sorted({n for n in only if n < count})
    reader = _Reader(checked)
    wrong: list[int] = []
    done = 0
    try:
        for number in numbers:
            offset = number * BLOCK_SIZE
            length = min(BLOCK_SIZE, size - offset)
            expected = digests[number * DIGEST_SIZE : (number + 1) * DIGEST_SIZE]
            if reader.digest(offset, length) != expected:
                wrong.append(number)
            done += length
            progress(done)
    finally:
        reader.close()
    return wrong


class _Reader:
    """Reads blocks with O_DIRECT where the file system has it, else after telling the kernel to forget its cache."""

    def __init__(self, checked: Checked) -> None:
        path = checked.target.path
        self._buffer = mmap.mmap(-1, BLOCK_SIZE)
        self._holes = checked.kind == "file"
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if checked.kind == "block":
            blockdev.forget_cached(self._fd)

    def digest(self, offset: int, length: int) -> bytes:
        if self._holes and self._is_hole(offset, length):
            return zero_digest(length)
        view = memoryview(self._buffer)
        filled = 0
        while filled < length:
            # whole blocks are asked for (O_DIRECT wants that); the end of the file cuts the answer
            count = os.preadv(self._fd, [view[filled:]], offset + filled)
            if count == 0:
                break
            filled += count
        return block_digest(view[: min(filled, length)])

    def close(self) -> None:
        os.close(self._fd)

    def _is_hole(self, offset: int, length: int) -> bool:
        try:
            return os.lseek(self._fd, offset, os.SEEK_DATA) >= offset + length
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data behind offset: a hole up to the end, if the file reaches so far
                return os.fstat(self._fd).st_size >= offset + length
            return False
