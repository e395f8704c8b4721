# SPDX-License-Identifier: Apache-2.0
"""Files below a folder, and never outside of it.

Clients name paths; whatever they write in them, and whatever symbolic links lie there, must not lead out. The kernel
decides (``openat2`` with ``RESOLVE_BENEATH``, Linux 5.6): looking at a path first and opening it afterwards would leave
a moment to swap a folder for a link. Where ``openat2`` is missing (an old kernel, a container's filter) the path is
walked folder by folder and no link is followed at all.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["Beneath", "clean_path", "is_partial", "partial_name"]

_SYS_OPENAT2: Final = 437  # the same number on every architecture, see include/uapi/asm-generic/unistd.h
_NO_MAGICLINKS: Final = 0x02  # RESOLVE_* of linux/openat2.h
_BENEATH: Final = 0x08
_TRIES: Final = 16
"""``openat2`` answers EAGAIN when something was renamed meanwhile and it cannot be sure."""

_PREFIX: Final = ".jumpstarter-"
_SUFFIX: Final = ".part"


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def clean_path(path: str | os.PathLike[str]) -> str:
    """The path relative to the root, without ``.``, ``..`` and double slashes; empty for the root itself.

    A leading slash means the root, as in opendal. Raises ValueError for a path that leads out of it.
    """
    text = os.fspath(path)
    if not isinstance(text, str) or "\0" in text:
        raise ValueError(f"path {text!r} is no name of a file")
    parts: list[str] = []
    for part in text.split("/"):
        if part == "..":
            if not parts:
                raise ValueError(f'path "{text}" leads out of the storage')
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def is_partial(name: str) -> bool:
    """Whether a name is that of a file which is still being written (or was left so by a crash)."""
    return name.startswith(_PREFIX) and name.endswith(_SUFFIX)


def partial_name() -> str:
    """A new name for a file that is being written."""
    return f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"


class Beneath:
    """Opens what is below ``root``. ``root`` is made when it is first needed."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.path.abspath(os.fspath(root))

    def open(self, path: str, flags: int) -> int:
        """A descriptor of what is at a cleaned path, close-on-exec. Raises OSError (PermissionError for a way out)."""
        with self._root_fd() as root:
            try:
                return _open_beneath(root, path or ".", flags | os.O_CLOEXEC)
            except OSError as error:
                raise self.error(error, path) from None

    @contextmanager
    def folder(self, path: str) -> Iterator[int]:
        """A descriptor of the folder at a cleaned path, good for ``dir_fd``."""
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def parent(self, path: str) -> Iterator[tuple[int, str]]:
        """A descriptor of the folder a cleaned path lies in, and its last name. Raises ValueError for the root."""
        if not path:
            raise ValueError("the root of the storage itself is no file")
        above, _, name = path.rpartition("/")
        with self.folder(above) as fd:
            yield fd, name

    def make_folders(self, path: str) -> list[str]:
        """Make the folder at a cleaned path and those above; gives the ones that were not there, outermost first."""
        made: list[str] = []
        parts = path.split("/") if path else []
        for depth in range(len(parts)):
            current = "/".join(parts[: depth + 1])
            with self.parent(current) as (above, name):
                try:
                    os.mkdir(name, dir_fd=above)
                    made.append(current)
                except FileExistsError:
                    pass  # the next turn finds out whether it is a folder
                except OSError as error:
                    raise self.error(error, current) from None
        with self.folder(path):
            return made

    def stat(self, path: str) -> os.stat_result:
        """What a cleaned path is, links that stay inside followed."""
        fd = self.open(path, os.O_PATH)
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def error(self, error: OSError, path: str) -> OSError:
        """The same error about a path of the storage."""
        if error.errno in (errno.EXDEV, errno.ELOOP):
            return PermissionError(errno.EACCES, f'"{path}" is a link that leads out of the storage {self.root}')
        reason = (error.strerror or str(error)).lower()
        return type(error)(error.errno, f'"{path or "/"}" in the storage {self.root}: {reason}')

    @contextmanager
    def _root_fd(self) -> Iterator[int]:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            fd = os.open(self.root, flags)
        except FileNotFoundError:
            os.makedirs(self.root, exist_ok=True)
            fd = os.open(self.root, flags)
        try:
            yield fd
        finally:
            os.close(fd)


def _open_beneath(root: int, path: str, flags: int) -> int:
    how = _OpenHow(flags, 0, _BENEATH | _NO_MAGICLINKS)
    if (syscall := _openat2()) is None:
        return _walk(root, path, flags)
    for _ in range(_TRIES):
        fd: int = syscall(_SYS_OPENAT2, root, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
        if fd >= 0:
            return fd
        if (code := ctypes.get_errno()) not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(code, os.strerror(code), path)


@functools.cache
def _openat2() -> ctypes._NamedFuncPointer | None:
    """The C library's ``syscall`` when the kernel knows openat2, else None."""
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    how = _OpenHow(os.O_PATH | os.O_CLOEXEC, 0, _BENEATH)
    here = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        fd = syscall(_SYS_OPENAT2, here, b".", ctypes.byref(how), ctypes.sizeof(how))
    finally:
        os.close(here)
    if fd < 0:
        return None
    os.close(fd)
    return syscall


def _walk(root: int, path: str, flags: int) -> int:
    """Open without following any link."""
    *folders, name = path.split("/")
    current = os.dup(root)
    try:
        for folder in folders:
            below = _step(current, folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            os.close(current)
            current = below
        return _step(current, name, flags)
    finally:
        os.close(current)


def _step(folder: int, name: str, flags: int) -> int:
    try:
        fd = os.open(name, flags | os.O_NOFOLLOW, dir_fd=folder)
    except NotADirectoryError:  # what the kernel calls a link where a folder is wanted
        if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name) from None
        raise
    if flags & os.O_PATH and stat.S_ISLNK(os.fstat(fd).st_mode):  # with O_PATH the link itself is opened
        os.close(fd)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
    return fd
