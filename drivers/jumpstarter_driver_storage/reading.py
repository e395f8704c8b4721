# SPDX-License-Identifier: Apache-2.0
"""Reading the whole of a target, one block ahead of whoever takes it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator

from jumpstarter.common.storage import BLOCK_SIZE
from jumpstarter_driver_storage.errors import StorageRefused
from jumpstarter_driver_storage.target import Checked


async def read_target(checked: Checked) -> AsyncGenerator[bytes, None]:
    """The target's bytes in blocks; StorageRefused when there is nothing to read."""
    if not checked.exists:
        raise StorageRefused(f"{checked.label}: {checked.target.path} does not exist", code="not_found")
    loop = asyncio.get_running_loop()
    fd = await _open(checked.target.path)
    offset = 0
    ahead = loop.run_in_executor(None, os.pread, fd, BLOCK_SIZE, offset)

    def close(read: asyncio.Future[bytes]) -> None:
        if not read.cancelled():
            read.exception()  # who is here does not want to know any more, or has been told
        os.close(fd)

    try:
        # Shielded: only the end of the thread is the end of a read, and its descriptor may be somebody else's then.
        while data := await asyncio.shield(ahead):
            offset += len(data)
            ahead = loop.run_in_executor(None, os.pread, fd, BLOCK_SIZE, offset)
            yield data
    finally:
        ahead.add_done_callback(close)
        await asyncio.wait([ahead])


async def _open(path: str | os.PathLike[str]) -> int:
    """A descriptor for reading; a disk may take its time to answer. One that comes too late is closed."""
    opening = asyncio.get_running_loop().run_in_executor(None, os.open, path, os.O_RDONLY | os.O_CLOEXEC)

    def close(opened: asyncio.Future[int]) -> None:
        if not opened.cancelled() and opened.exception() is None:
            os.close(opened.result())

    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(close)
        raise
