# SPDX-License-Identifier: Apache-2.0
"""Targets: what the exporter's configuration says may be written to, and the checks before the first write."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jumpstarter.common.storage import format_sizes, is_zero, parse_size
from jumpstarter_driver_storage import blockdev
from jumpstarter_driver_storage.errors import Code, StorageRefused

Kind = Literal["file", "block"]

_F_OFD_GETLK = 36
_TAIL = 1 << 20
_LARGEST = (1 << 63) - 1  # off_t
_FLOCK = struct.Struct("hhqqi4x")


@dataclass(frozen=True, kw_only=True)
class Target:
    """One place to flash, as declared in the exporter's configuration.

    - ``path``: file or block device.
    - ``kind``: ``file``, ``block`` or ``auto`` (what is there; else a block device below /dev, a file elsewhere).
    - ``size``: bytes (or ``96MiB``) it must hold. A block device of another size is refused. A file of another size
      is refused too; a missing one is created with this size. A file without ``size`` takes that of each image.
      Behind a smaller image a file holds zeros; a block device keeps what was there.
    - ``min_size``: least bytes a block device must hold.
    - ``identity``: what the block device must be, by `blockdev.IDENTITY_KEYS`, for example ``{serial: "4C53..."}``.
    - ``decompress``: ``auto`` unpacks an image that arrives compressed and unannounced, ``never`` stores it as it is.
    """

    path: str
    kind: Literal["auto", "file", "block"] = "auto"
    size: int | None = None
    min_size: int | None = None
    identity: Mapping[str, str] = field(default_factory=dict)
    decompress: Literal["auto", "never"] = "auto"

    @classmethod
    def parse(cls, name: str, value: Target | Mapping[str, Any] | str) -> Target:
        """A target from configuration; a bare text is a path. Raises ValueError that names target and field."""
        if isinstance(value, Target):
            return value
        fields: dict[str, Any] = {"path": value} if isinstance(value, str) else dict(value)
        where = f'target "{name}"'
        if unknown := sorted(set(fields) - set(cls.__dataclass_fields__)):
            raise ValueError(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(cls.__dataclass_fields__)}")
        if not isinstance(fields.get("path"), str) or not fields["path"]:
            raise ValueError(f"{where}: field path: a file or block device is required")
        if "\0" in fields["path"]:
            raise ValueError(f"{where}: field path: {fields['path']!r} holds a NUL byte, as no path can")
        for key, allowed in (("kind", ("auto", "file", "block")), ("decompress", ("auto", "never"))):
            if fields.get(key, "auto") not in allowed:
                raise ValueError(f"{where}: field {key}: {fields[key]!r} is none of {', '.join(allowed)}")
        for key in ("size", "min_size"):
            if fields.get(key) is not None:
                try:
                    fields[key] = _possible_size(fields[key])
                except ValueError as error:
                    raise ValueError(f"{where}: field {key}: {error}") from None
        wanted = fields.get("identity") or {}
        if not isinstance(wanted, Mapping) or set(wanted) - set(blockdev.IDENTITY_KEYS):
            raise ValueError(f"{where}: field identity: a mapping of {', '.join(blockdev.IDENTITY_KEYS)} is required")
        if wanted and fields.get("kind") == "file":
            raise ValueError(f"{where}: field identity: only block devices have one")
        fields["identity"] = {key: str(text) for key, text in wanted.items()}
        fields["path"] = os.path.abspath(os.path.expanduser(fields["path"]))
        if os.path.isdir(fields["path"]):
            raise ValueError(f"{where}: field path: {fields['path']} is a directory, neither file nor block device")
        return cls(**fields)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A target that passed `check`, as it was found.

    ``capacity``: bytes it holds, None when it grows with the image. ``key``: what its record is kept under.
    """

    name: str
    owner: str
    target: Target
    kind: Kind
    exists: bool
    capacity: int | None
    key: str
    number: tuple[int, int] | None = None

    @property
    def label(self) -> str:
        """How messages call it."""
        return f'target "{self.name}" of driver {self.owner}'

    def refuse_if_larger(self, size: int) -> None:
        """Raise StorageRefused when an image of ``size`` bytes does not fit."""
        if self.capacity is not None and size > self.capacity:
            image, room = format_sizes(size, self.capacity)
            raise StorageRefused(f"image is {image}, {self.label} holds {room}", code="too_large")

    def holds_only(self, size: int) -> bool:
        """Whether a file is as long as an image of ``size`` bytes leaves it, or longer by nothing but zeros; what is
        behind an image on a block device does not count."""
        if self.kind == "block":
            return True
        actual = os.stat(self.target.path).st_size
        if actual <= size or self.capacity is not None:
            return actual == (self.capacity or size)
        if actual - size > _TAIL:
            return False
        with open(self.target.path, "rb") as file:
            return is_zero(os.pread(file.fileno(), actual - size, size))

    def fingerprint(self) -> dict[str, str]:
        """A mark that changes when somebody else writes to the target (as far as the kernel tells)."""
        if self.number is not None:
            return blockdev.activity(self.number)
        info = os.stat(self.target.path)
        return {"file": f"{info.st_dev}/{info.st_ino}/{info.st_size}/{info.st_mtime_ns}"}


def check(name: str, target: Target, owner: str, *, writing: bool = True) -> Checked:
    """The target as it is now; raises StorageRefused, one clear line, when it is not what the configuration declares.

    ``owner`` is the driver's name for messages. ``writing`` adds what only matters before a write: not in use, not
    read-only, permission.
    """
    label = f'target "{name}" of driver {owner}'
    path = target.path
    try:
        info = os.stat(path)
    except FileNotFoundError:
        return _missing(name, target, owner, label)
    except OSError as error:
        raise _from_os_error(label, path, error) from error
    if stat.S_ISBLK(info.st_mode):
        if target.kind == "file":
            raise _refused(f"{label}: {path} is a block device, the configuration declares a file", "mismatch")
        return _check_block(name, target, owner, label, writing)
    if not stat.S_ISREG(info.st_mode):
        what = "directory" if stat.S_ISDIR(info.st_mode) else "special file"
        raise _refused(f"{label}: {path} is a {what}, neither file nor block device", "mismatch")
    if target.kind == "block" or target.identity or target.min_size is not None:
        raise _refused(f"{label}: {path} is a file, the configuration declares a block device", "mismatch")
    if target.size is not None and info.st_size not in (0, target.size):
        there, declared = format_sizes(info.st_size, target.size)
        raise _refused(f"{label}: {path} holds {there}, the configuration declares {declared}", "mismatch")
    if writing:
        _check_file_free(label, path)
    return Checked(
        name=name, owner=owner, target=target, kind="file", exists=True, capacity=target.size, key=_file_key(path)
    )


def _possible_size(value: int | str) -> int:
    size = parse_size(value)
    if size > _LARGEST:
        raise ValueError(f"{value} is more than any file or device can hold")
    return size


def _missing(name: str, target: Target, owner: str, label: str) -> Checked:
    path = target.path
    if target.kind == "block" or target.identity or os.path.dirname(path) == "/dev":
        raise _refused(f"{label}: block device {path} does not exist (not plugged in?)", "not_found")
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise _refused(f"{label}: {path} cannot be created: folder {folder} does not exist", "not_found")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _refused(f"{label}: {path} cannot be created: no permission to write in {folder}", "permission")
    return Checked(
        name=name, owner=owner, target=target, kind="file", exists=False, capacity=target.size, key=_file_key(path)
    )


def _check_block(name: str, target: Target, owner: str, label: str, writing: bool) -> Checked:
    path = target.path
    number = blockdev.device_number(path)
    assert number is not None
    found = blockdev.identity(number)
    for key, wanted in target.identity.items():
        actual = found.get(key)
        if actual != wanted:
            has = f"has {key} {actual!r}" if actual is not None else f"tells no {key}"
            raise _refused(f"{label}: {path} {has}, the configuration declares {wanted!r}", "mismatch")
    fd = _open_to_look(label, path, writing)
    try:
        size = blockdev.size_of(fd)
        readonly = blockdev.is_readonly(fd)
    finally:
        os.close(fd)
    if target.size is not None and size != target.size:
        there, declared = format_sizes(size, target.size)
        raise _refused(f"{label}: {path} holds {there}, the configuration declares {declared}", "mismatch")
    if target.min_size is not None and size < target.min_size:
        there, declared = format_sizes(size, target.min_size)
        raise _refused(f"{label}: {path} holds {there}, the configuration wants at least {declared}", "mismatch")
    if size == 0:
        raise _refused(f"{label}: {path} holds 0 bytes: no medium in it", "not_found")
    if writing:
        if readonly:
            raise _refused(f"{label}: {path} is read-only (write protection?)", "permission")
        if using := blockdev.users(number):
            raise _refused(f"{label}: {path} is in use on the exporter host: {', '.join(using)}", "busy")
    return Checked(
        name=name, owner=owner, target=target, kind="block", exists=True, capacity=size, number=number,
        key=_block_key(path, number, found),
    )  # fmt: skip


def _block_key(path: str, number: tuple[int, int], found: Mapping[str, str]) -> str:
    unique = found.get("wwid") or found.get("serial") or found.get("backing_file") or os.path.realpath(path)
    part = (blockdev.sysfs(number) / "partition").exists()
    return f"block:{unique}:{os.path.realpath(path) if part else ''}"


def open_for_writing(checked: Checked) -> int:
    """File descriptor of the target, held against other users; raises StorageRefused when that is not possible."""
    path = checked.target.path
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_EXCL if checked.kind == "block" else os.O_CREAT)
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        raise _from_os_error(checked.label, path, error) from error
    try:
        if checked.kind == "block":
            _must_still_be(checked, fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _must_still_be(checked: Checked, fd: int) -> None:
    """Disks come and go, and the kernel gives their names to others: what was opened must be what was checked."""
    info = os.fstat(fd)
    number = (os.major(info.st_rdev), os.minor(info.st_rdev))
    same = stat.S_ISBLK(info.st_mode) and number == checked.number and blockdev.size_of(fd) == checked.capacity
    if same:
        same = _block_key(checked.target.path, number, blockdev.identity(number)) == checked.key
    if not same:
        raise _refused(f"{checked.label}: {checked.target.path} is another device than a moment ago", "mismatch")


def _check_file_free(label: str, path: str) -> None:
    fd = _open_to_look(label, path, writing=True)
    try:
        query = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind = _FLOCK.unpack(fcntl.fcntl(fd, _F_OFD_GETLK, query))[0]
    except OSError:  # a file system without locks: nobody can hold one
        return
    finally:
        os.close(fd)
    if kind != fcntl.F_UNLCK:
        raise _refused(f"{label}: {path} is locked by a running program (a virtual machine?)", "busy")


def _open_to_look(label: str, path: str, writing: bool) -> int:
    """Open for reading only: closing a device that was open for writing makes udev look at it again."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _from_os_error(label, path, error) from error
    if writing and not os.access(path, os.W_OK, effective_ids=True):
        os.close(fd)
        raise _from_os_error(label, path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    return fd


def _file_key(path: str) -> str:
    return f"file:{os.path.realpath(path)}"


def _refused(message: str, code: Code) -> StorageRefused:
    return StorageRefused(message, code=code)


def _from_os_error(label: str, path: str, error: OSError) -> StorageRefused:
    if error.errno in (errno.EACCES, errno.EPERM):
        return _refused(f"{label}: no permission to write {path} as uid {os.geteuid()}", "permission")
    if error.errno == errno.EBUSY:
        return _refused(f"{label}: {path} is held by another program on the exporter host", "busy")
    if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENOMEDIUM, errno.ENODEV):
        return _refused(f"{label}: {path} is not there: {os.strerror(error.errno)}", "not_found")
    if error.errno == errno.EROFS:
        return _refused(f"{label}: {path} is read-only", "permission")
    return _refused(f"{label}: {path} cannot be opened: {error.strerror}", "refused")
