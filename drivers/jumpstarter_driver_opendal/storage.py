# SPDX-License-Identifier: Apache-2.0
"""The storage driver: files on the exporter host or wherever opendal reaches, for clients and for other drivers."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import Driver, export
from jumpstarter_driver_opendal.beneath import clean_path
from jumpstarter_driver_opendal.common import Capability, HashAlgo, Metadata, Mode, PathBuf, PresignedRequest
from jumpstarter_driver_opendal.files import FileStore
from jumpstarter_driver_opendal.putting import PutOptions, put_file, put_from_disk
from jumpstarter_driver_opendal.store import OpenFile, Store

__all__ = ["Opendal"]

Event = dict[str, Any]

_LOCAL: Final = ("fs", "file")
_CLOSED_KEPT: Final = 1024
"""Handles that are remembered as closed after they were."""


@dataclass(kw_only=True)
class Opendal(Driver):
    """Files in a storage.

    scheme: ``fs`` for a folder of the exporter host, or any service of opendal (``s3``, ``http``, ``webdav``, ...).
    kwargs: what the service takes; ``root`` for ``fs``. A value that is secret may be in a file: give
    ``secret_access_key_file: /path`` instead of ``secret_access_key``.
    remove_created_on_close: at the end of the session remove what was made in it (scheme ``fs``).

    A folder's root cannot be left, neither by ``..`` nor by links. A file that is written appears when it is closed;
    an upload that breaks off leaves the one that was there.
    """

    driver_type = "storage"

    scheme: str
    kwargs: dict[str, str] = field(repr=False)
    remove_created_on_close: bool = False

    _store: Store = field(init=False, repr=False)
    _files: dict[UUID, OpenFile] = field(init=False, repr=False, default_factory=dict)
    _broken: set[UUID] = field(init=False, repr=False, default_factory=set)
    _closed: OrderedDict[UUID, None] = field(init=False, repr=False, default_factory=OrderedDict)
    _created: set[str] = field(init=False, repr=False, default_factory=set)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scheme in _LOCAL:
            if unknown := sorted(set(self.kwargs) - {"root", "atomic_write_dir"}):
                raise ConfigurationError(f"field kwargs: scheme fs takes root, not {unknown[0]}")
            if not self.kwargs.get("root"):
                raise ConfigurationError("field kwargs: scheme fs needs root, the folder that clients may use")
            self._store = FileStore(self.kwargs["root"])
            self._created = self._store.stored
            return
        if self.remove_created_on_close:
            self.logger.warning("remove_created_on_close is for scheme fs: with %s files stay", self.scheme)
        try:
            from jumpstarter_driver_opendal.remote import RemoteStore

            self._store = RemoteStore(self.scheme, self.kwargs)
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"scheme {self.scheme} needs the library {error.name}: pip install 'jumpstarter-lab[opendal]'"
            ) from error

    @classmethod
    def client(cls) -> str:
        """Import path of the client class."""
        return "jumpstarter_driver_opendal.client.OpendalClient"

    # --- open files -----------------------------------------------------------------------------------------

    @export(concurrent=True)
    async def open(self, path: PathBuf, mode: Mode) -> UUID:
        """Open a file for reading (rb) or writing (wb); gives its handle."""
        file = await self._store.open(os.fspath(path), mode)
        handle = uuid4()
        self._files[handle] = file
        return handle

    @export(concurrent=True)
    async def file_read(self, fd: UUID, dst: Any) -> None:
        """Send what follows the position to the resource ``dst``."""
        file = self._file(fd)
        async with self.resource(dst) as stream:
            ahead = asyncio.ensure_future(file.read())
            try:
                while data := await ahead:
                    ahead = asyncio.ensure_future(file.read())
                    await stream.send(data)
            finally:
                if not ahead.done():  # it may be in a thread, which must not outlive the handle's turn
                    await asyncio.wait([ahead])
                if not ahead.cancelled():
                    ahead.exception()

    @export(concurrent=True)
    async def file_write(self, fd: UUID, src: Any) -> None:
        """Append what the resource ``src`` gives. When it breaks off, closing the file drops it."""
        file = self._file(fd)
        try:
            async with self.resource(src) as stream:
                async for data in stream:
                    await file.write(data)
        except BaseException:
            self._broken.add(fd)
            raise

    @export(concurrent=True)
    async def file_seek(self, fd: UUID, pos: int, whence: int = 0) -> int:
        """Move the position: from the start (0), from here (1) or from the end (2)."""
        return await self._file(fd).seek(pos, whence)

    @export(readonly=True)
    async def file_tell(self, fd: UUID) -> int:
        """The position."""
        return await self._file(fd).tell()

    @export(concurrent=True)
    async def file_close(self, fd: UUID) -> None:
        """Close a file; one that was written takes its place now, unless the writing broke off."""
        if fd in self._closed:
            return
        file = self._file(fd)
        if fd in self._broken:
            self.logger.warning('"%s" was not written to its end and is dropped', file.path)
            self._forget(fd)
            file.abort()
            return
        try:
            await file.commit()
        finally:
            self._forget(fd)
            file.abort()
        if file.mode == "wb":
            self._note(file.path)

    @export(readonly=True)
    async def file_closed(self, fd: UUID) -> bool:
        """Whether it was closed."""
        return fd in self._closed or (self._file(fd) is None)

    @export(readonly=True)
    async def file_readable(self, fd: UUID) -> bool:
        """Whether it can be read."""
        return self._file(fd).mode == "rb"

    @export(readonly=True)
    async def file_seekable(self, fd: UUID) -> bool:
        """Whether its position can be changed."""
        return self._file(fd).mode == "rb" or isinstance(self._store, FileStore)

    @export(readonly=True)
    async def file_writable(self, fd: UUID) -> bool:
        """Whether it can be written."""
        return self._file(fd).mode == "wb"

    # --- whole files ----------------------------------------------------------------------------------------

    @export(concurrent=True)
    async def put_file(self, source: Any, path: PathBuf, options: dict[str, Any] | None = None) -> AsyncIterator[Event]:
        """Write a whole file and prove it: one ``result`` event with path, size and sha256.

        ``options``: ``size`` and ``sha256`` the file must have, else it is dropped (ValueError); ``data`` (see
        `jumpstarter_driver_storage.data.DataListener`) asks for a connection of its own, which the first event then
        offers (or refuses with ``no_data``); ``source`` is not looked at in that case.
        """
        wanted = PutOptions.parse(options or {})
        target = os.fspath(path)
        async with aclosing(put_file(self, self._store, source, target, wanted)) as events:
            async for event in events:
                if event["event"] == "result":
                    self._note(target)
                yield event

    @export(readonly=True)
    async def stat(self, path: PathBuf) -> Metadata:
        """What is known about a file or folder."""
        return await self._store.stat(os.fspath(path))

    @export(readonly=True)
    async def hash(self, path: PathBuf, algo: HashAlgo = "sha256") -> str:
        """Digest of a file's content, as hex digits."""
        file = await self._store.open(os.fspath(path), "rb")
        digest = hashlib.new(algo, usedforsecurity=False)
        try:
            while data := await file.read():
                await asyncio.to_thread(digest.update, data)
        finally:
            file.abort()
        return digest.hexdigest()

    @export(concurrent=True)
    async def copy(self, source: PathBuf, target: PathBuf) -> None:
        """Copy a file."""
        await self._store.copy(os.fspath(source), os.fspath(target))
        self._note(target)

    @export(concurrent=True)
    async def rename(self, source: PathBuf, target: PathBuf) -> None:
        """Move a file."""
        await self._store.rename(os.fspath(source), os.fspath(target))
        self._created.discard(self._name(source))
        self._note(target)

    @export(concurrent=True)
    async def remove_all(self, path: PathBuf) -> None:
        """Remove a file, or a folder with all that is in it."""
        await self._store.remove_all(os.fspath(path))
        name = self._name(path)
        below = f"{name}/" if name else ""
        self._created.difference_update([one for one in list(self._created) if one == name or one.startswith(below)])

    @export(concurrent=True)
    async def create_dir(self, path: PathBuf) -> None:
        """Make a folder, and those above; the path ends with a slash."""
        if await self._store.create_dir(os.fspath(path)):
            self._note(path)

    @export(concurrent=True)
    async def delete(self, path: PathBuf) -> None:
        """Remove a file or an empty folder; nothing happens when it is not there."""
        await self._store.delete(os.fspath(path))
        self._created.discard(self._name(path))

    @export(readonly=True)
    async def exists(self, path: PathBuf) -> bool:
        """Whether there is such a file or folder."""
        return await self._store.exists(os.fspath(path))

    @export(readonly=True)
    async def list(self, path: PathBuf) -> AsyncGenerator[str, None]:
        """The folder and what is in it (path with a slash at its end), or what begins with the path."""
        async for entry in self._store.list(os.fspath(path), recursive=False):
            yield entry

    @export(readonly=True)
    async def scan(self, path: PathBuf) -> AsyncGenerator[str, None]:
        """Like `list`, with all that is below."""
        async for entry in self._store.list(os.fspath(path), recursive=True):
            yield entry

    @export(readonly=True)
    async def presign_stat(self, path: PathBuf, expire_second: int) -> PresignedRequest:
        """A HEAD request that anybody may make for so many seconds."""
        return await self._store.presign("stat", os.fspath(path), expire_second)

    @export(readonly=True)
    async def presign_read(self, path: PathBuf, expire_second: int) -> PresignedRequest:
        """A GET request that anybody may make for so many seconds."""
        return await self._store.presign("read", os.fspath(path), expire_second)

    @export(concurrent=True)
    async def presign_write(self, path: PathBuf, expire_second: int) -> PresignedRequest:
        """A PUT request that anybody may make for so many seconds."""
        return await self._store.presign("write", os.fspath(path), expire_second)

    @export(readonly=True)
    async def capability(self) -> Capability:
        """What the storage can do."""
        return self._store.capability()

    @export(readonly=True)
    async def get_created_resources(self) -> set[str]:
        """Paths that were made in this session."""
        return set(self._created)

    @export(concurrent=True)
    def register_path(self, path: PathBuf) -> None:
        """Count a path as made in this session."""
        self._note(path)

    # --- for drivers on the exporter ------------------------------------------------------------------------

    @property
    def files(self) -> FileStore:
        """The folder behind scheme ``fs``. Raises ValueError for another scheme."""
        if not isinstance(self._store, FileStore):
            raise ValueError(f"storage with scheme {self.scheme} is no folder of this host")
        return self._store

    async def copy_exporter_file(self, source: Path, target: str) -> None:
        """Copy a file of this host into the storage."""
        if isinstance(self._store, FileStore):
            await asyncio.to_thread(self.put_exporter_file, source, target)
            return
        file = await self._store.open(target, "wb")
        try:
            with await asyncio.to_thread(open, source, "rb") as reading:
                while data := await asyncio.to_thread(reading.read, 1 << 20):
                    await file.write(data)
            await file.commit()
        finally:
            file.abort()
        self._note(target)

    def put_exporter_file(self, source: str | os.PathLike[str], target: str) -> dict[str, Any]:
        """Copy a file of this host into a storage of scheme ``fs`` unless it is there already. Blocking.

        Gives path, size, sha256 and changed.
        """
        result = put_from_disk(self.files, source, target)
        self._note(target)
        return result

    # --- the session ----------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Start of a session: nothing of the one before stays open, or there when it shall be removed."""
        super().reset()
        self._end()

    def close(self) -> None:
        """End of the session: open files are dropped, created ones removed when the configuration says so."""
        super().close()
        self._end()

    def _end(self) -> None:
        for file in self._files.values():
            self.logger.warning('"%s" was left open%s', file.path, " and is dropped" if file.mode == "wb" else "")
            file.abort()
        self._files.clear()
        self._broken.clear()
        self._closed.clear()
        if isinstance(self._store, FileStore):
            self._store.end_session()
        created = set(self._created)
        self._created.clear()
        if not isinstance(self._store, FileStore):
            return
        made, self._store.made = self._store.made, []
        if not self.remove_created_on_close:
            return
        for name in sorted(created, reverse=True):
            try:
                self._store.remove_all_now(name)
            except (OSError, ValueError) as error:
                self.logger.error('"%s" of the last session could not be removed: %s', name, error)
        for name in reversed(made):
            with contextlib.suppress(OSError):  # not empty: somebody else uses it as well
                self._store.delete_now(name)

    # --- how ------------------------------------------------------------------------------------------------

    def _file(self, handle: UUID) -> OpenFile:
        try:
            return self._files[handle]
        except KeyError:
            state = "closed" if handle in self._closed else "not one of this session"
            raise ValueError(f"file handle {handle} is {state}") from None

    def _forget(self, handle: UUID) -> None:
        self._files.pop(handle, None)
        self._broken.discard(handle)
        self._closed[handle] = None
        while len(self._closed) > _CLOSED_KEPT:
            self._closed.popitem(last=False)

    def _name(self, path: PathBuf) -> str:
        return clean_path(os.fspath(path))

    def _note(self, path: PathBuf) -> None:
        if name := self._name(path):
            self._created.add(name)
