# SPDX-License-Identifier: Apache-2.0
"""Reading a target into a local file."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from anyio import BrokenResourceError, EndOfStream

from jumpstarter.client.aio import AsyncNode
from jumpstarter.client.imaging.result import ImagingError, Meter, ProgressCallback
from jumpstarter.common.exceptions import DriverError
from jumpstarter.common.storage import split_zeros
from jumpstarter.streams.encoding import Compression, compressor

__all__ = ["DumpResult", "dump"]


@dataclass(frozen=True, kw_only=True)
class DumpResult:
    """``size``, ``sha256``: of what the target holds (before compression). ``seconds``: all of it."""

    path: str
    target: str | None
    size: int
    sha256: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values by field name."""
        return asdict(self)


async def dump(
    node: AsyncNode,
    dest: str | PathLike[str],
    *,
    target: str | None = None,
    compression: str | None = None,
    progress: ProgressCallback | None = None,
    where: str | None = None,
    method: str = "dump",
    arguments: Callable[[Any], tuple[Any, ...]] | None = None,
) -> DumpResult:
    """Write what ``target`` holds to the file ``dest``, with holes for zeros; ``compression`` packs it (here).

    ``dest`` appears when it is complete: until then the bytes go to a temporary file beside it.
    ``method``: the driver's call that sends (``read`` for a storage switch); ``arguments``: makes what it takes from
    the handle, where that is not handle and target. Raises ImagingError.
    """
    started = time.monotonic()
    path = Path(dest)
    packer = compressor(compression) if compression else None
    if compression:
        Compression(compression)
    try:
        fd, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    except OSError as error:
        raise ImagingError(
            f"{dest} cannot be written: {error.strerror}", code="source", state="nothing was read", where=where
        ) from None
    meter = Meter(progress)
    digest = hashlib.sha256()
    size = offset = 0

    def store(packed: bytes) -> None:
        nonlocal offset
        for start, view, _ in split_zeros(offset, memoryview(packed)):
            while view:
                count = os.pwrite(fd, view, start)
                start, view = start + count, view[count:]
        offset += len(packed)

    def take(data: bytes) -> None:
        digest.update(data)
        store(packer.compress(data) if packer else data)

    # one piece is hashed and stored in a thread while the next one comes in
    storing: asyncio.Future[None] | None = None
    try:
        async with node.resource_stream() as (stream, handle):
            args = arguments(handle) if arguments else (handle, target) if target is not None else (handle,)
            calling: Awaitable[Any] = asyncio.ensure_future(node.call(method, *args))
            try:
                while True:
                    try:
                        data = await _receive(stream, calling)
                    except EndOfStream:
                        break
                    size += len(data)
                    if storing is not None:
                        await asyncio.shield(storing)
                    storing = asyncio.ensure_future(asyncio.to_thread(take, data))
                    meter.tell("reading", size, None)
                if storing is not None:
                    await asyncio.shield(storing)
                await calling
            finally:
                calling.cancel()  # type: ignore[attr-defined]  # a Future
                await asyncio.gather(calling, return_exceptions=True)
        if packer:
            store(packer.finish())
        os.ftruncate(fd, offset)
        os.fsync(fd)
        os.fchmod(fd, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BrokenResourceError:
        raise ImagingError(
            f"the exporter stopped sending after {size} bytes", code="broken", state=f"{dest} was not written",
            where=where,
        ) from None  # fmt: skip
    except DriverError as error:
        raise ImagingError(error.details, code="refused", state=f"{dest} was not written", where=where) from error
    except OSError as error:
        raise ImagingError(
            f"writing {dest} failed: {error.strerror or error}", code="source", state=f"{dest} was not written",
            where=where,
        ) from None  # fmt: skip
    finally:
        if storing is not None:
            await asyncio.gather(storing, return_exceptions=True)  # its thread must not write to what is closed
        os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return DumpResult(
        path=str(path), target=target, size=size, sha256=digest.hexdigest(),
        seconds=round(time.monotonic() - started, 3),
    )  # fmt: skip


async def _receive(stream: Any, calling: Any) -> bytes:
    """The next bytes; a call that failed says more than the stream it leaves broken."""
    receiving = asyncio.ensure_future(stream.receive())
    try:
        if not calling.done():
            await asyncio.wait([receiving, calling], return_when=asyncio.FIRST_COMPLETED)
        if calling.done() and calling.exception() is not None:
            raise calling.exception()
        data: bytes = await receiving
        return data
    except BrokenResourceError:
        await asyncio.wait([calling], timeout=5)
        if calling.done() and calling.exception() is not None:
            raise calling.exception() from None
        raise
    finally:
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)


def _umask() -> int:
    # no way to read it but to set it; another thread that creates a file in between gets stricter rights, never laxer
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
