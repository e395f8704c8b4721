# SPDX-License-Identifier: Apache-2.0
"""Writing a whole file at once: received, counted, hashed, and only then in its place."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jumpstarter.common.storage import BLOCK_SIZE
from jumpstarter_driver_opendal.files import FileStore, LocalFile
from jumpstarter_driver_opendal.store import OpenFile, Store

if TYPE_CHECKING:
    from jumpstarter.driver import Driver

__all__ = ["PutOptions", "put_file", "put_from_disk"]

Event = dict[str, Any]


@dataclass(frozen=True)
class PutOptions:
    """``size``: bytes, ``sha256``: hex digits the file must have. ``data``: a connection of its own is wanted."""

    size: int | None = None
    sha256: str | None = None
    data: Mapping[str, Any] | None = None

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> PutOptions:
        """From what a client sent; raises ValueError."""
        if unknown := sorted(set(options) - set(cls.__dataclass_fields__)):
            raise ValueError(f"put_file: unknown option {unknown[0]!r}")
        size, sha256 = options.get("size"), options.get("sha256")
        return cls(
            size=None if size is None else int(size),
            sha256=None if sha256 is None else str(sha256).lower(),
            data=options.get("data"),
        )

    def check(self, path: str, size: int, sha256: str) -> None:
        """Raise ValueError unless this is what was announced."""
        if self.size is not None and size != self.size:
            raise ValueError(f'"{path}": {size} bytes came, {self.size} were announced; it was not stored')
        if self.sha256 is not None and sha256 != self.sha256:
            raise ValueError(f'"{path}": sha256 {sha256} came, {self.sha256} was announced; it was not stored')


async def put_file(
    driver: Driver, store: Store, source: Any, path: str, options: PutOptions
) -> AsyncGenerator[Event, None]:
    """See `jumpstarter_driver_opendal.storage.Opendal.put_file`."""
    if options.data is not None and (not isinstance(store, FileStore) or options.size is None):
        yield {"event": "no_data"}
        return
    file = await store.open(path, "wb")
    try:
        if options.data is not None:
            assert isinstance(file, LocalFile) and options.size is not None
            async with aclosing(_receive(file, options.data, options.size)) as events:
                async for event in events:
                    if event["event"] == "data":
                        yield event
                    else:
                        size, sha256 = event["size"], event["sha256"]
        else:
            size, sha256 = await _transfer(driver, file, source)
        options.check(path, size, sha256)
        await file.commit()
    finally:
        file.abort()
    yield {"event": "result", "path": path, "size": size, "sha256": sha256}


async def _transfer(driver: Driver, file: OpenFile, source: Any) -> tuple[int, str]:
    digest = hashlib.sha256()
    size = 0
    async with driver.resource(source) as stream:
        async for data in stream:
            hashing = asyncio.create_task(asyncio.to_thread(digest.update, data))
            try:
                await file.write(data)
            finally:
                await asyncio.wait([hashing])
            size += len(data)
    return size, digest.hexdigest()


async def _receive(file: LocalFile, wanted: Mapping[str, Any], size: int) -> AsyncGenerator[Event, None]:
    """The same over a connection of its own, in a thread."""
    from jumpstarter_driver_storage.data import DataListener, SocketChunks
    from jumpstarter_driver_storage.operation import outlast

    listener = DataListener(wanted)
    try:
        yield listener.offer()

        def work() -> tuple[int, str]:
            chunks = SocketChunks(listener.accept, sparse=False, size=size)
            digest = hashlib.sha256()
            received = 0
            for chunk in chunks:
                digest.update(chunk)
                file.write_now(chunk)
                received += len(chunk)
                chunks.release()
            return received, digest.hexdigest()

        working = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            received, sha256 = await asyncio.shield(working)
        finally:
            if not working.done():
                listener.stop()
                await outlast(working)  # listener and file are the thread's as long as it runs
        yield {"event": "received", "size": received, "sha256": sha256}
    finally:
        listener.close()


def put_from_disk(store: FileStore, source: str | os.PathLike[str], target: str) -> dict[str, Any]:
    """See `jumpstarter_driver_opendal.storage.Opendal.put_exporter_file`."""
    with open(source, "rb", buffering=0) as reading:
        size = os.lseek(reading.fileno(), 0, os.SEEK_END)
        sha256 = _digest(reading.fileno())
        changed = not _same(store, target, size, sha256)
        if changed:
            store.copy_from(reading.fileno(), target)
    return {"path": target, "size": size, "sha256": sha256, "changed": changed}


def _same(store: FileStore, target: str, size: int, sha256: str) -> bool:
    try:
        there = store.open_now(target, "rb")
    except FileNotFoundError:
        return False
    try:
        return there.size == size and _digest(there.fd) == sha256
    finally:
        there.abort()


def _digest(fd: int) -> str:
    digest = hashlib.sha256()
    offset = 0
    while data := os.pread(fd, BLOCK_SIZE, offset):
        digest.update(data)
        offset += len(data)
    return digest.hexdigest()
