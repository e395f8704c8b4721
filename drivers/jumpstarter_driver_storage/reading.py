# SPDX-License-Identifier: Apache-2.0
"""Reading the whole of a target, one block ahead of whoever takes it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

from jumpstarter.common.storage import BLOCK_SIZE
from jumpstarter_driver_storage.errors import StorageRefused
from jumpstarter_driver_storage.target import Checked


async def read_target(checked: Checked) -> AsyncIterator[bytes]:
    """The target's bytes in blocks; StorageRefused when there is nothing to read."""
    if not checked.exists:
        raise StorageRefused(f"{checked.label}: {checked.target.path} does not exist", code="not_found")
    loop = asyncio.get_running_loop()
    fd = await asyncio.to_thread(os.open, checked.target.path, os.O_RDONLY | os.O_CLOEXEC)
    offset = 0
    ahead = loop.run_in_executor(None, os.pread, fd, BLOCK_SIZE, offset)
    try:
        while data := await ahead:
            offset += len(data)
            ahead = loop.run_in_executor(None, os.pread, fd, BLOCK_SIZE, offset)
            yield data
    finally:
        await asyncio.wait([ahead])
        os.close(fd)
