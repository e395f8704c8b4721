# SPDX-License-Identifier: Apache-2.0
"""Writing to an open target: data where there is data, zeros by the cheapest means that really leaves zeros."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final, Protocol

from jumpstarter.common.storage import BLOCK_SIZE
from jumpstarter_driver_storage import blockdev
from jumpstarter_driver_storage.target import Checked

_SYNC_EVERY: Final = 64 << 20
"""Bytes a block device may have waiting in the page cache: bounds how long a cancelled flash goes on writing."""

_KEEP_SIZE_PUNCH_HOLE: Final = 0x01 | 0x02
_SECTOR: Final = 4096
_ZEROS: Final = bytes(BLOCK_SIZE)


class TargetWriter(Protocol):
    """``written``: bytes of data (and zeros) really written; ``skipped``: bytes that are zero without being written."""

    written: int
    skipped: int

    def begin(self) -> None:
        """Right before the first write of a whole image."""

    def write(self, offset: int, data: memoryview) -> None:
        """All of ``data`` at ``offset``; OSError when the target does not take it."""

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros."""

    def finish(self, size: int | None) -> None:
        """Everything written: to the medium. ``size`` of a whole image in bytes, None after a repair."""


def writer_for(checked: Checked, fd: int) -> TargetWriter:
    """The writer that suits the target, over its open file descriptor."""
    return _BlockWriter(fd) if checked.kind == "block" else _FileWriter(fd, checked.capacity)


def _write_all(fd: int, offset: int, data: memoryview) -> None:
    while data:
        count = os.pwrite(fd, data, offset)
        if count <= 0:
            raise OSError(errno.EIO, "the target takes no more data")
        offset += count
        data = data[count:]


class _FileWriter:
    """A file. A whole image starts from an empty file, so that zeros need no write: they stay holes."""

    def __init__(self, fd: int, capacity: int | None) -> None:
        self.written = 0
        self.skipped = 0
        self._fd = fd
        self._capacity = capacity
        self._fresh = False

    def begin(self) -> None:
        os.ftruncate(self._fd, 0)
        if self._capacity is not None:
            os.ftruncate(self._fd, self._capacity)
        self._fresh = True

    def write(self, offset: int, data: memoryview) -> None:
        _write_all(self._fd, offset, data)
        self.written += len(data)

    def zero(self, offset: int, length: int) -> None:
        if self._fresh or _punch_hole(self._fd, offset, length):
            self.skipped += length
            return
        _write_zeros(self._fd, offset, length)
        self.written += length

    def finish(self, size: int | None) -> None:
        if size is not None:
            os.ftruncate(self._fd, size if self._capacity is None else self._capacity)
        os.fsync(self._fd)


class _BlockWriter:
    """A block device. Zeros go to the device as zeros; most do that without moving data."""

    def __init__(self, fd: int) -> None:
        self.written = 0
        self.skipped = 0
        self._fd = fd
        self._unsynced = 0

    def begin(self) -> None:
        return

    def write(self, offset: int, data: memoryview) -> None:
        _write_all(self._fd, offset, data)
        self._wrote(len(data))

    def zero(self, offset: int, length: int) -> None:
        start = -(-offset // _SECTOR) * _SECTOR
        stop = (offset + length) // _SECTOR * _SECTOR
        if stop > start and blockdev.zero_out(self._fd, start, stop - start):
            self.skipped += stop - start
            edges = ((offset, start - offset), (stop, offset + length - stop))
        else:
            edges = ((offset, length), (0, 0))
        for edge, count in edges:
            if count:
                _write_zeros(self._fd, edge, count)
                self._wrote(count)

    def finish(self, size: int | None) -> None:
        os.fsync(self._fd)
        blockdev.forget_cached(self._fd)

    def _wrote(self, count: int) -> None:
        self.written += count
        self._unsynced += count
        if self._unsynced >= _SYNC_EVERY:
            os.fdatasync(self._fd)
            self._unsynced = 0


def _write_zeros(fd: int, offset: int, length: int) -> None:
    for start in range(offset, offset + length, BLOCK_SIZE):
        _write_all(fd, start, memoryview(_ZEROS)[: min(BLOCK_SIZE, offset + length - start)])


def _punch_hole(fd: int, offset: int, length: int) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    fallocate = getattr(libc, "fallocate64", None) or libc.fallocate
    size = ctypes.c_int64
    if fallocate(fd, _KEEP_SIZE_PUNCH_HOLE, size(offset), size(length)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(code, os.strerror(code))
