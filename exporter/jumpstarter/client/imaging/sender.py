# SPDX-License-Identifier: Apache-2.0
"""Sending an image over a resource stream: 1 MiB messages, read ahead in a thread, zeros left out."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

from jumpstarter.client.imaging.result import ImagingError
from jumpstarter.client.imaging.source import LocalImage
from jumpstarter.common.storage import BLOCK_SIZE, MAGIC, Extent, data_extents, data_header, end_header

__all__ = ["extents_of", "send_all", "sparse_messages"]

_AHEAD: Final = 4
"""Messages read per hop into the thread: a hop costs more than a read from the page cache."""


async def send_all(stream: Any, messages: Iterator[bytes]) -> None:
    """Send every message, then the end of the stream. ``messages`` is iterated in a worker thread, one batch ahead."""
    loop = asyncio.get_running_loop()

    def batch() -> list[bytes]:
        return list(islice(messages, _AHEAD))

    ahead = loop.run_in_executor(None, batch)
    try:
        while ready := await ahead:
            ahead = loop.run_in_executor(None, batch)
            for message in ready:
                await stream.send(message)
        await stream.send_eof()
    finally:
        if not ahead.done():
            await asyncio.wait([ahead])
        if not ahead.cancelled():
            with contextlib.suppress(Exception):  # already raised above, or of no interest any more
                ahead.result()


def sparse_messages(image: LocalImage, blocks: Iterable[tuple[int, int]] | None = None) -> Iterator[bytes]:
    """The sparse stream of an uncompressed image.

    ``blocks``: only these runs ``(first, count)`` of blocks. Raises ImagingError instead of ending the stream when the
    file was changed meanwhile.
    """
    yield MAGIC
    for extent in extents_of(image, blocks):
        yield data_header(extent)
        offset = extent.offset
        while offset < extent.end:
            # messages end where blocks end, so that the receiver's digests never straddle two
            step = min(BLOCK_SIZE - offset % BLOCK_SIZE, extent.end - offset)
            data = os.pread(image.fd, step, offset)
            if len(data) != step:
                raise ImagingError(f"image {image.path} became shorter while it was being read", code="source")
            offset += step
            yield data
    image.require_unchanged()
    yield end_header(image.size)


def extents_of(image: LocalImage, blocks: Iterable[tuple[int, int]] | None) -> Iterator[Extent]:
    """What of the image travels: its data, or the given runs ``(first, count)`` of blocks."""
    return data_extents(image.fd, image.size) if blocks is None else _runs(blocks, image.size)


def _runs(blocks: Iterable[tuple[int, int]], size: int) -> Iterator[Extent]:
    for first, count in blocks:
        start = first * BLOCK_SIZE
        yield Extent(start, min((first + count) * BLOCK_SIZE, size) - start)
