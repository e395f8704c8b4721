# SPDX-License-Identifier: Apache-2.0
"""A deterministic writer of "newc" cpio archives, the format of a Linux initramfs.

Every entry belongs to root, carries the one timestamp given to the archive and gets its inode number from its place,
so equal content always gives equal bytes, whoever builds it and on whatever file system.
"""

from __future__ import annotations

import gzip
import stat
from dataclasses import dataclass, field
from pathlib import Path

_TRAILER = "TRAILER!!!"


def _pad(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


@dataclass
class CpioWriter:
    """Collects files, directories, links and device nodes; parents must be added before what they hold.

    mtime: seconds since the epoch given to every entry.
    """

    mtime: int = 0
    _parts: list[bytes] = field(default_factory=list)
    _names: set[str] = field(default_factory=set)

    def _add(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        name = name.strip("/")
        if not name:
            raise ValueError("cpio: an entry needs a name")
        if name in self._names:
            raise ValueError(f"cpio: {name} is there already")
        parent = name.rpartition("/")[0]
        if parent and parent not in self._names and name != _TRAILER:
            raise ValueError(f"cpio: {name} comes before its directory {parent}: the kernel would drop it")
        self._names.add(name)
        self._parts.append(self._record(name, mode, data, device))

    def _record(self, name: str, mode: int, data: bytes, device: tuple[int, int]) -> bytes:
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        numbers = (
            0 if name == _TRAILER else len(self._parts) + 1,  # inode
            mode,
            0,  # uid
            0,  # gid
            links,
            0 if name == _TRAILER else self.mtime,
            len(data),
            0,  # device of the archive: major
            0,  # minor
            device[0],
            device[1],
            len(encoded),
            0,  # checksum, unused in newc
        )
        header = b"070701" + b"".join(b"%08X" % number for number in numbers)
        return _pad(header + encoded) + _pad(data)

    def directory(self, name: str, mode: int = 0o755) -> None:
        """Add a directory and whichever of its parents are not there yet."""
        parent = name.strip("/").rpartition("/")[0]
        if parent and parent not in self._names:
            self.directory(parent)
        self._add(name, stat.S_IFDIR | mode)

    def file(self, name: str, data: bytes | Path, mode: int = 0o644) -> None:
        """Add a regular file with *data*, or with what the file at that path holds."""
        content = data.read_bytes() if isinstance(data, Path) else data
        self._add(name, stat.S_IFREG | mode, content)

    def symlink(self, name: str, target: str) -> None:
        """Add a symbolic link that points at *target*."""
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device node."""
        self._add(name, stat.S_IFCHR | mode, device=(major, minor))

    def archive(self) -> bytes:
        """The whole archive, uncompressed, ended by its trailer and padded to 512 bytes."""
        body = b"".join(self._parts) + self._record(_TRAILER, 0, b"", (0, 0))
        return body + b"\0" * (-len(body) % 512)

    def compressed(self) -> bytes:
        """The archive as gzip without a name or time in its header."""
        return gzip.compress(self.archive(), compresslevel=9, mtime=0)
