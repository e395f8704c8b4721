# SPDX-License-Identifier: Apache-2.0
"""Plain transfers between a storage device and a client's stream, for drivers that switch storage themselves.

Drivers that want records, verification and repair build on ``jumpstarter_driver_storage`` instead.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
from typing import Any, Final, Literal

from jumpstarter.common.storage import BLOCK_SIZE

__all__ = ["read_from_storage_device", "wait_for_storage_device", "write_to_storage_device"]

Path = str | os.PathLike[str]

_RETRY: Final = 0.1
_NOT_YET: Final = (errno.ENOENT, errno.ENXIO, errno.ENOMEDIUM, errno.EIO, errno.EBUSY)
_log = logging.getLogger(__name__)


async def wait_for_storage_device(
    storage_device: Path, mode: Literal["rb", "wb"], timeout: float = 10, *, logger: logging.Logger = _log
) -> int:
    """Wait until the device is there, can be opened and has a medium; returns its size in bytes.

    A device that was just switched to this host appears in steps: no file, no medium, I/O errors, size 0. There is no
    event that covers all of them, so it is tried every 0.1 s. Raises TimeoutError with the last obstacle after
    ``timeout`` seconds, other OSErrors at once.
    """
    flags = (os.O_WRONLY if mode == "wb" else os.O_RDONLY) | os.O_CLOEXEC
    obstacle = "it did not appear"
    try:
        async with asyncio.timeout(timeout):
            while True:
                try:
                    size = await asyncio.to_thread(_size, storage_device, flags)
                    if size > 0:
                        logger.debug("storage device %s is there with %d bytes", storage_device, size)
                        return size
                    obstacle = "it has no medium (size 0)"
                except OSError as error:
                    if error.errno not in _NOT_YET:
                        raise
                    obstacle = error.strerror or str(error)
                await asyncio.sleep(_RETRY)
    except TimeoutError:
        raise TimeoutError(f"storage device {storage_device} is not ready after {timeout:g} s: {obstacle}") from None


async def write_to_storage_device(
    storage_device: Path,
    resource: Any,
    timeout: float = 10,
    fsync_timeout: float = 900,
    leeway: float = 0,
    *,
    logger: logging.Logger = _log,
) -> int:
    """Write all of the stream ``resource`` to the device and flush it to the medium; returns the bytes written.

    ``timeout``: seconds for the device to be ready. ``fsync_timeout``: seconds for the flush. ``leeway``: seconds to
    wait afterwards, for media that need it. A block device that is in use is refused, and so is data that does not
    fit: that raises OSError (ENOSPC).
    """
    size = await wait_for_storage_device(storage_device, "wb", timeout, logger=logger)
    block = stat.S_ISBLK(os.stat(storage_device).st_mode)
    fd = await asyncio.to_thread(os.open, storage_device, os.O_WRONLY | os.O_CLOEXEC | (os.O_EXCL if block else 0))
    written = 0
    try:
        async for chunk in resource:
            if block and written + len(chunk) > size:
                raise OSError(errno.ENOSPC, f"the image does not fit: {storage_device} holds {size} bytes")
            await asyncio.to_thread(_write_all, fd, chunk)
            written += len(chunk)
        async with asyncio.timeout(fsync_timeout):
            await asyncio.to_thread(os.fsync, fd)
    finally:
        await asyncio.to_thread(os.close, fd)
    if leeway:
        await asyncio.sleep(leeway)
    logger.info("%d bytes written to storage device %s", written, storage_device)
    return written


async def read_from_storage_device(
    storage_device: Path, resource: Any, timeout: float = 10, *, logger: logging.Logger = _log
) -> int:
    """Send all of the device to the stream ``resource``; returns the bytes sent. ``timeout``: seconds to be ready."""
    await wait_for_storage_device(storage_device, "rb", timeout, logger=logger)
    fd = await asyncio.to_thread(os.open, storage_device, os.O_RDONLY | os.O_CLOEXEC)
    sent = 0
    try:
        while data := await asyncio.to_thread(os.pread, fd, BLOCK_SIZE, sent):
            await resource.send(data)
            sent += len(data)
    finally:
        os.close(fd)
    logger.info("%d bytes read from storage device %s", sent, storage_device)
    return sent


def _size(path: Path, flags: int) -> int:
    fd = os.open(path, flags)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
