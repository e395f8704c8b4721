# SPDX-License-Identifier: Apache-2.0
"""A tar archive of files laid over a root file system: owned by root, fixed times, in a fixed order."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path


class Overlay:
    """Collects files and links, and writes them as one tar archive; names are absolute paths on the device."""

    def __init__(self, mtime: int = 0) -> None:
        self._mtime = mtime
        self._members: dict[str, tuple[tarfile.TarInfo, bytes]] = {}

    def _put(self, info: tarfile.TarInfo, content: bytes = b"") -> None:
        info.mtime = self._mtime
        self._members[info.name] = (info, content)

    def directory(self, name: str, mode: int) -> None:
        """A directory whose mode matters; other parents are made by tar as they are needed."""
        info = tarfile.TarInfo("." + name)
        info.type, info.mode = tarfile.DIRTYPE, mode
        self._put(info)

    def file(self, name: str, content: bytes | str, mode: int = 0o644) -> None:
        """A regular file."""
        data = content.encode() if isinstance(content, str) else content
        info = tarfile.TarInfo("." + name)
        info.size, info.mode = len(data), mode
        self._put(info, data)

    def symlink(self, name: str, target: str) -> None:
        """A symbolic link."""
        info = tarfile.TarInfo("." + name)
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, target, 0o777
        self._put(info)

    def write(self, path: Path) -> None:
        """Write the archive to *path*."""
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
            for name in sorted(self._members):
                info, content = self._members[name]
                archive.addfile(info, io.BytesIO(content))
