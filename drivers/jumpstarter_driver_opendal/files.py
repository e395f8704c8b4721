# SPDX-License-Identifier: Apache-2.0
"""The storage that is a folder of the exporter host (scheme ``fs``)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import stat as modes
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Final

from jumpstarter.common.storage import split_zeros
from jumpstarter_driver_opendal.beneath import Beneath, clean_path, is_partial, partial_name
from jumpstarter_driver_opendal.common import Capability, EntryMode, Metadata, Mode, PresignedRequest
from jumpstarter_driver_opendal.store import CHUNK, OpenFile, Store

__all__ = ["FileStore", "LocalFile"]

_BATCH: Final = 256
_NO_TMPFILE: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)


class _Session:
    """What was stored from one end of a session to the next. A thread that is late stores nothing any more."""

    def __init__(self, stored: set[str]) -> None:
        self._stored = stored
        self._over = False
        self._lock = threading.Lock()

    def require(self) -> None:
        """Raise ConnectionAbortedError when it is over."""
        if self._over:
            raise ConnectionAbortedError(errno.ECONNABORTED, "the session ended before the file was stored")

    @contextlib.contextmanager
    def storing(self, path: str) -> Iterator[None]:
        """While a file takes its name, which counts as stored from then on."""
        with self._lock:
            self.require()
            self._stored.add(path)
            yield

    def end(self) -> None:
        """Now, or when the file that takes its name this moment has it."""
        with self._lock:
            self._over = True


class LocalFile(OpenFile):
    """A file below the root. `read_now` and `write_now` are for code that runs in a thread anyway."""

    def __init__(self, session: _Session, beneath: Beneath, path: str, mode: Mode) -> None:
        self.path, self.mode = path, mode
        self._session = session
        self._beneath = beneath
        self._position = self._end = 0
        self._lock = threading.Lock()
        self._partial: str | None = None
        self._in_place = False
        self._folder = -1
        self._name = ""
        self._fd = self._open_reading() if mode == "rb" else self._open_writing()

    # --- opening --------------------------------------------------------------------------------------------

    def _open_reading(self) -> int:
        # without O_NONBLOCK a FIFO would wait for somebody to write
        fd = self._beneath.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            kind = os.fstat(fd).st_mode
            if modes.S_ISDIR(kind):
                raise IsADirectoryError(errno.EISDIR, f'"{self.path or "/"}" is a folder')
            if not (modes.S_ISREG(kind) or modes.S_ISBLK(kind)):
                raise PermissionError(errno.EACCES, f'"{self.path}" is no file')
            self.size = os.lseek(fd, 0, os.SEEK_END)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _open_writing(self) -> int:
        with self._beneath.parent(self.path) as (folder, name):
            self._folder, self._name = os.dup(folder), name
        try:
            with contextlib.suppress(FileNotFoundError):
                kind = os.stat(name, dir_fd=self._folder, follow_symlinks=False).st_mode
                if modes.S_ISBLK(kind):
                    # a device is no file that another one could take the place of
                    self._in_place = True
                    return self._beneath.open(self.path, os.O_WRONLY)
                if modes.S_ISDIR(kind):
                    raise IsADirectoryError(errno.EISDIR, f'"{self.path}" is a folder')
                if not (modes.S_ISREG(kind) or modes.S_ISLNK(kind)):
                    raise PermissionError(errno.EACCES, f'"{self.path}" is no file')
            return self._open_unnamed()
        except BaseException:
            os.close(self._folder)
            raise

    def _open_unnamed(self) -> int:
        """A file without a name, of which nothing is left when the exporter dies; with one where that cannot be."""
        try:
            return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666, dir_fd=self._folder)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise self._beneath.error(error, self.path) from None
        self._partial = partial_name()
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            return os.open(self._partial, flags, 0o666, dir_fd=self._folder)
        except OSError as error:
            raise self._beneath.error(error, self.path) from None

    # --- reading and writing --------------------------------------------------------------------------------

    @property
    def fd(self) -> int:
        """The descriptor. Raises ValueError when it is closed."""
        if self._fd < 0:
            raise ValueError(f'file "{self.path}" is closed')
        return self._fd

    def read_now(self, size: int = CHUNK) -> bytes:
        """The next bytes, empty at the end."""
        if self.mode != "rb":
            raise ValueError(f'file "{self.path}" is open for writing')
        with self._lock:
            data = os.pread(self.fd, size, self._position)
            self._position += len(data)
        return data

    def write_now(self, data: bytes | memoryview) -> None:
        """Write bytes; runs of zeros become holes."""
        if self.mode != "wb":
            raise ValueError(f'file "{self.path}" is open for reading')
        with self._lock:
            if self._in_place:
                self._write_at(self._position, memoryview(data))
            else:
                for offset, view, length in split_zeros(self._position, memoryview(data)):
                    if view is not None:
                        self._write_at(offset, view)
                    elif offset < self._end:  # somebody went back: what is there must go
                        self._write_at(offset, memoryview(bytes(length)))
            self._position += len(data)
            self._end = max(self._end, self._position)

    def require_session(self) -> None:
        """Raise ConnectionAbortedError when the session is over: for who works on in a thread that nobody can stop."""
        self._session.require()

    def set_size(self, size: int) -> None:
        """The file has this many bytes now: for who writes to the descriptor."""
        self._end = size

    def _write_at(self, offset: int, view: memoryview) -> None:
        while view:
            try:
                count = os.pwrite(self.fd, view, offset)
            except OSError as error:
                raise self._beneath.error(error, self.path) from None
            offset, view = offset + count, view[count:]

    async def read(self) -> bytes:
        return await asyncio.to_thread(self.read_now)

    async def write(self, data: bytes | memoryview) -> None:
        await asyncio.to_thread(self.write_now, data)

    async def seek(self, position: int, whence: int) -> int:
        with self._lock:
            end = (self.size or 0) if self.mode == "rb" else self._end
            base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: end}.get(whence)
            if base is None:
                raise ValueError(f"seek: whence {whence} is none of 0, 1 and 2")
            if base + position < 0:
                raise ValueError(f"seek: position {base + position} is before the start of the file")
            self._position = base + position
            return self._position

    async def tell(self) -> int:
        return self._position

    # --- closing --------------------------------------------------------------------------------------------

    async def commit(self) -> None:
        await asyncio.to_thread(self.commit_now)

    def commit_now(self) -> None:
        """Close; what was written is now the file."""
        with self._lock:
            try:
                if self.mode == "wb":
                    self._publish()
            finally:
                self._release()

    def _publish(self) -> None:
        try:
            if self._in_place:
                os.fsync(self.fd)
                return
            os.ftruncate(self.fd, self._end)
            with self._session.storing(self.path):
                if self._partial is None:
                    partial = partial_name()
                    os.link(f"/proc/self/fd/{self.fd}", partial, dst_dir_fd=self._folder, follow_symlinks=True)
                    self._partial = partial
                os.rename(self._partial, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
                self._partial = None
        except OSError as error:
            raise self._beneath.error(error, self.path) from None

    def abort(self) -> None:
        with self._lock:
            self._release()

    def _release(self) -> None:
        if self._partial is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._partial, dir_fd=self._folder)
            self._partial = None
        for fd in (self._fd, self._folder):
            if fd >= 0:
                os.close(fd)
        self._fd = self._folder = -1


class FileStore(Store):
    """A folder. ``made``: folders that writing made on the way, outermost first. ``stored``: files that were written
    in this session, whoever did it (a client, or a device that sends by TFTP)."""

    def __init__(self, root: str) -> None:
        self.beneath = Beneath(root)
        self.made: list[str] = []
        self.stored: set[str] = set()
        self._session = _Session(self.stored)

    def end_session(self) -> None:
        """Files that are still being written, or copied in a thread, are never stored."""
        self._session.end()
        self._session = _Session(self.stored)

    async def open(self, path: str, mode: Mode) -> LocalFile:
        return await asyncio.to_thread(self.open_now, path, mode)

    def open_now(self, path: str, mode: Mode) -> LocalFile:
        """`open`, for code in a thread. Folders above a file that is written are made."""
        clean = clean_path(path)
        session = self._session
        if mode == "wb":
            if path.endswith("/"):
                raise ValueError(f'path "{path}" names a folder, not a file')
            self._make(clean.rpartition("/")[0])
        return LocalFile(session, self.beneath, clean, mode)

    def _make(self, folder: str) -> list[str]:
        made = self.beneath.make_folders(folder)
        self.made += made
        return made

    async def stat(self, path: str) -> Metadata:
        return await asyncio.to_thread(self.stat_now, path)

    def stat_now(self, path: str) -> Metadata:
        """`stat`, for code in a thread."""
        info = self.beneath.stat(clean_path(path))
        folder = modes.S_ISDIR(info.st_mode)
        if path.endswith("/") and not folder:
            raise NotADirectoryError(errno.ENOTDIR, f'"{path}" is no folder')
        return Metadata(
            content_length=0 if folder else info.st_size,
            etag=None if folder else f"{info.st_mtime_ns:x}-{info.st_size:x}",
            mode=EntryMode(entry_is_file=modes.S_ISREG(info.st_mode), entry_is_dir=folder),
        )

    async def exists(self, path: str) -> bool:
        try:
            await self.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    async def copy(self, source: str, target: str) -> None:
        await asyncio.to_thread(self._copy, source, target)

    def _copy(self, source: str, target: str) -> None:
        reading = self.open_now(source, "rb")
        try:
            self.copy_from(reading.fd, target)
        finally:
            reading.abort()

    def copy_from(self, fd: int, target: str) -> None:
        """A file from an open descriptor, without the data passing through this process where the kernel can."""
        writing = self.open_now(target, "wb")
        try:
            try:
                _copy_data(fd, writing)
            except ConnectionError:
                raise
            except OSError as error:
                raise self.beneath.error(error, target) from None
            writing.commit_now()
        finally:
            writing.abort()

    async def rename(self, source: str, target: str) -> None:
        await asyncio.to_thread(self._rename, clean_path(source), clean_path(target))

    def _rename(self, source: str, target: str) -> None:
        if modes.S_ISDIR(self.beneath.stat(source).st_mode):
            raise IsADirectoryError(errno.EISDIR, f'"{source}" is a folder; only files are renamed')
        self._make(target.rpartition("/")[0])
        with self.beneath.parent(source) as (old, name), self.beneath.parent(target) as (new, new_name):
            try:
                os.rename(name, new_name, src_dir_fd=old, dst_dir_fd=new)
            except OSError as error:
                raise self.beneath.error(error, target) from None

    async def create_dir(self, path: str) -> bool:
        if not path.endswith("/"):
            raise ValueError(f'create_dir: path "{path}" must end with a slash')
        clean = clean_path(path)
        return clean in await asyncio.to_thread(self._make, clean)

    async def delete(self, path: str) -> None:
        await asyncio.to_thread(self.delete_now, clean_path(path))

    def delete_now(self, clean: str) -> None:
        """`delete` of a cleaned path, for code in a thread."""
        try:
            with self.beneath.parent(clean) as (folder, name):
                try:
                    if modes.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                        os.rmdir(name, dir_fd=folder)
                    else:
                        os.unlink(name, dir_fd=folder)
                except OSError as error:
                    raise self.beneath.error(error, clean) from None
        except (FileNotFoundError, NotADirectoryError):
            pass  # there is nothing of that name, which is what was asked for

    async def remove_all(self, path: str) -> None:
        await asyncio.to_thread(self.remove_all_now, clean_path(path))

    def remove_all_now(self, clean: str) -> None:
        """`remove_all` of a cleaned path, for code in a thread. The root itself stays, emptied."""
        if not clean:
            with self.beneath.folder("") as root:
                names = os.listdir(root)
            for name in names:
                self.remove_all_now(name)
            return
        try:
            with self.beneath.parent(clean) as (folder, name):
                if modes.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                    shutil.rmtree(name, dir_fd=folder)  # safe against links that appear meanwhile, says its manual
                else:
                    os.unlink(name, dir_fd=folder)
        except (FileNotFoundError, NotADirectoryError):
            pass  # as in delete_now

    async def list(self, path: str, *, recursive: bool) -> AsyncIterator[str]:
        entries = self._list(path, recursive)

        def batch() -> list[str]:
            return [entry for entry, _ in zip(entries, range(_BATCH), strict=False)]

        while names := await asyncio.to_thread(batch):
            for name in names:
                yield name

    def _list(self, path: str, recursive: bool) -> Iterator[str]:
        clean = clean_path(path)
        if path.endswith("/") or not clean:
            try:
                below = list(self._entries(clean))
            except (FileNotFoundError, NotADirectoryError):
                return
            yield f"{clean}/"
            entries: Iterator[str] = iter(below)
        else:
            try:
                entries = iter([name for name in self._entries(clean.rpartition("/")[0]) if name.startswith(clean)])
            except (FileNotFoundError, NotADirectoryError):
                return
        for entry in entries:
            yield entry
            if recursive and entry.endswith("/"):
                yield from self._below(entry)

    def _below(self, folder: str) -> Iterator[str]:
        try:
            entries = list(self._entries(folder.rstrip("/")))
        except (FileNotFoundError, NotADirectoryError):
            return  # removed meanwhile
        for entry in entries:
            yield entry
            if entry.endswith("/"):
                yield from self._below(entry)

    def _entries(self, clean: str) -> Iterator[str]:
        """Paths in a folder, sorted; folders end with a slash. Links to folders are left out: they may form circles."""
        with self.beneath.folder(clean) as fd, os.scandir(fd) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink()) for entry in entries]
        for name, folder, link in sorted(found):
            path = f"{clean}/{name}" if clean else name
            if is_partial(name) or (link and not self._leads_to_file(path)):
                continue
            yield path + "/" if folder else path

    def _leads_to_file(self, path: str) -> bool:
        try:
            return modes.S_ISREG(self.beneath.stat(path).st_mode)
        except OSError:
            return False  # it leads out, or to nothing

    async def presign(self, what: str, path: str, seconds: int) -> PresignedRequest:
        raise NotImplementedError(f"presign_{what}: a folder of the exporter (scheme fs) has no addresses to give away")

    def capability(self) -> Capability:
        return Capability(
            stat=True, read=True, write=True, write_can_empty=True, write_can_multi=True, create_dir=True, delete=True,
            copy=True, rename=True, list=True, list_with_recursive=True, shared=True,
        )  # fmt: skip


def _copy_data(source: int, target: LocalFile) -> None:
    size = os.lseek(source, 0, os.SEEK_END)
    offset = 0
    while offset < size:
        try:
            start = os.lseek(source, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # ENXIO: a hole up to the end
                raise
            break
        end = os.lseek(source, start, os.SEEK_HOLE)
        while start < end:
            target.require_session()
            count = _copy_range(source, target.fd, start, end - start)
            if count == 0:
                raise OSError(errno.EIO, f'the source of "{target.path}" became shorter while it was copied')
            start += count
        offset = end
    target.set_size(size)


def _copy_range(source: int, target: int, offset: int, length: int) -> int:
    length = min(length, 64 << 20)
    try:
        return os.copy_file_range(source, target, length, offset, offset)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF):
            raise
    return os.pwrite(target, os.pread(source, min(length, CHUNK), offset), offset)
