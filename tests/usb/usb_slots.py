# SPDX-License-Identifier: Apache-2.0
"""Storage that comes and goes on this machine: a loop device behind a link, as udev has them below /dev/disk/by-id."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from storage_helpers import MIB, loop_device


@dataclass
class Slot:
    """path: what a configuration names; backing: the file that holds what the storage holds."""

    path: Path
    backing: Path
    loop: str

    def switched(self, side: str) -> None:
        """The emulated board moved its switch."""
        if side == "host":
            if not self.path.is_symlink():
                self.path.symlink_to(self.loop)
        else:
            self.path.unlink(missing_ok=True)


@contextmanager
def slot(folder: Path, size: int = 8 * MIB) -> Iterator[Slot]:
    """A slot whose storage is not connected to this machine."""
    folder.mkdir(exist_ok=True)
    backing = folder / "backing"
    with loop_device(backing, size) as loop:
        yield Slot(folder / "usb-stick", backing, loop)
