# SPDX-License-Identifier: Apache-2.0
"""The mass-storage volume that a board in its UF2 bootloader shows."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Volume", "find_volumes"]

_INFO: Final = "INFO_UF2.TXT"
_FAILED: Final = "FAIL.TXT"
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")
_LONGEST: Final = 4096
#: Types of file systems a bootloader's volume can be mounted as. Others are not looked into: a server may not answer.
_TYPES: Final = ("vfat", "msdos", "exfat", "fuseblk", "tmpfs")


@dataclass(frozen=True)
class Volume:
    """A mounted volume. ``source``: its device. ``number``: the kernel's number of this mount's file system. ``info``:
    what INFO_UF2.TXT says, with the first line as "bootloader"."""

    path: Path
    source: str
    number: int
    info: dict[str, str]

    @property
    def board_id(self) -> str:
        """ "RPI-RP2", "RP2350"..."""
        return self.info.get("Board-ID", "")

    @property
    def there(self) -> bool:
        """Whether it is (still) there: mounted, its device present, and readable."""
        if self.source.startswith("/dev/") and not os.path.exists(self.source):
            return False
        try:
            same = os.stat(self.path).st_dev == self.number  # another one is a board that came back
        except OSError:
            return False
        return same and any(path == self.path for _, path in _mounts()) and _read_info(self.path) is not None

    @property
    def failure(self) -> str:
        """What the board complains of in FAIL.TXT, "" when it does not."""
        try:
            with (self.path / _FAILED).open("rb") as file:
                return " ".join(file.read(_LONGEST).decode(errors="replace").split())
        except OSError:
            return ""


def find_volumes() -> list[Volume]:
    """All mounted volumes of UF2 bootloaders."""
    found = []
    for source, path in _mounts():
        info = _read_info(path)
        if info is not None:
            with contextlib.suppress(OSError):  # it left just now
                found.append(Volume(path, source, os.stat(path).st_dev, info))
    return found


def _mounts() -> list[tuple[str, Path]]:
    mounts = []
    with open("/proc/mounts", "rb") as file:
        for line in file.read().decode(errors="surrogateescape").splitlines():
            fields = [_ESCAPE.sub(lambda match: chr(int(match[1], 8)), field) for field in line.split(" ")]
            if len(fields) > 2 and fields[2] in _TYPES:
                mounts.append((fields[0], Path(fields[1])))
    return mounts


def _read_info(path: Path) -> dict[str, str] | None:
    """What INFO_UF2.TXT says; None where there is none that can be read."""
    try:
        with (path / _INFO).open("rb") as file:
            text = file.read(_LONGEST).decode(errors="replace")
    except OSError:
        return None
    lines = text.splitlines()
    if not lines or "UF2" not in lines[0]:
        return None
    pairs = (line.partition(":") for line in lines[1:])
    return {"bootloader": lines[0].strip(), **{key.strip(): value.strip() for key, colon, value in pairs if colon}}
