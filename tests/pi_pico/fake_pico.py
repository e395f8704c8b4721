# SPDX-License-Identifier: Apache-2.0
"""Fake: a board with a UF2 bootloader. Its volume is a real mount that vanishes when all blocks have arrived.

Mounts are made in the mount namespace of this process (root); other programs on this machine are not concerned.
"""

from __future__ import annotations

import contextlib
import os
import random
import struct
import subprocess
import termios
import threading
from pathlib import Path

RP2040, RP2350 = 0xE48BFF56, 0xE48BFF59


def make_uf2(blocks: int, family: int = RP2040) -> bytes:
    """A file as a compiler's tool makes it."""
    made = b""
    for index in range(blocks):
        head = struct.pack(
            "<8I", 0x0A324655, 0x9E5D5157, 0x2000, 0x10000000 + 256 * index, 256, index, blocks, family
        )  # fmt: skip
        made += head + random.Random(index).randbytes(256).ljust(476, b"\0") + struct.pack("<I", 0x0AB16F30)
    return made


class FakePico:
    """The board. ``flash``: the blocks of the program it took, by address; ``faults``: "ignores" (takes nothing),
    "refuses" (FAIL.TXT), "small" (the volume holds less than the image), "comes-back" (its program does not start)."""

    def __init__(self, mount: Path, board: str = "RPI-RP2") -> None:
        self.mount = mount
        self.board = board
        self.flash: dict[int, bytes] = {}
        self.faults: set[str] = set()
        self.file = ""
        self._mounted = False
        self._stop = threading.Event()
        mount.mkdir()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def enter_bootloader(self) -> None:
        """Show the volume."""
        if self._mounted:
            return
        size = "64k" if "small" in self.faults else "8m"
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "fakepico", self.mount], check=True, timeout=20)
        text = f"UF2 Bootloader v3.0\r\nModel: Raspberry Pi {self.board}\r\nBoard-ID: {self.board}\r\n"
        (self.mount / "INFO_UF2.TXT").write_text(text)
        self._mounted = True

    def _leave(self) -> None:
        self._mounted = False
        # Lazily: whoever copies still has the file open, as with a board that is gone from the bus.
        subprocess.run(["umount", "-l", self.mount], check=True, timeout=20)

    def _watch(self) -> None:
        """What the bootloader does with the blocks that are written to it."""
        while not self._stop.wait(0.02):
            if not self._mounted or self.faults & {"ignores"}:
                continue
            for path in self.mount.glob("*.uf2"):
                with contextlib.suppress(FileNotFoundError):
                    if self._take(path):
                        break

    def _take(self, path: Path) -> bool:
        data = path.read_bytes()
        if not data or len(data) % 512 or len(data) // 512 < struct.unpack_from("<I", data, 24)[0]:
            return False
        if "refuses" in self.faults:
            (self.mount / "FAIL.TXT").write_text("flash write failed\r\n")
            return False
        for start in range(0, len(data), 512):
            address, length = struct.unpack_from("<II", data, start + 12)
            self.flash[address] = data[start + 32 : start + 32 + length]
        self.file = path.name
        self._leave()
        if "comes-back" in self.faults and not self._stop.wait(0.2):
            self.enter_bootloader()
        return True

    def close(self) -> None:
        """Unplug it."""
        self._stop.set()
        self._thread.join(10)
        if self._mounted:
            self._leave()


class FakePort:
    """The USB serial port of the board's program: opened with 1200 baud it brings the bootloader."""

    def __init__(self, board: FakePico, link: Path, touch: int = termios.B1200) -> None:
        self._board, self._touch = board, touch
        self._master, self._slave = os.openpty()
        os.symlink(os.ttyname(self._slave), link)
        self.speeds: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            speed = termios.tcgetattr(self._slave)[4]
            if not self.speeds or self.speeds[-1] != speed:
                self.speeds.append(speed)
                if speed == self._touch:
                    self._board.enter_bootloader()

    def close(self) -> None:
        """Unplug it."""
        self._stop.set()
        self._thread.join(10)
        os.close(self._slave)
        os.close(self._master)
