# SPDX-License-Identifier: GPL-3.0-or-later
"""Disk images for tests, made on the spot."""

from __future__ import annotations

import bz2
import hashlib
import lzma
import os
import random
from pathlib import Path

MIB = 1024 * 1024


def patterned(path: Path, mib: int, *, seed: int = 1, zeros_from: int | None = None) -> Path:
    """An image of `mib` MiB without zero blocks, or with nothing but zeros (as a hole) from `zeros_from` MiB on."""
    block = random.Random(seed).randbytes(MIB)
    with path.open("wb") as file:
        for number in range(mib if zeros_from is None else zeros_from):
            file.write(number.to_bytes(8, "big") + block[8:])
        file.truncate(mib * MIB)
    return path


def slow_to_unpack(path: Path, mib: int) -> Path:
    """A .bz2 that unpacks to `mib` MiB, at some 10 to 20 MiB/s: time enough to do something in the middle."""
    member = bz2.compress(random.Random(2).randbytes(MIB), 1)
    path.write_bytes(member * mib)
    return path


def truncated_xz(path: Path, mib: int) -> Path:
    """A .xz whose last third is missing."""
    packed = lzma.compress(random.Random(3).randbytes(mib * MIB), preset=0)
    path.write_bytes(packed[: len(packed) * 2 // 3])
    return path


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def corrupt(path: Path, offset: int) -> None:
    """Change one byte in place, as somebody behind our back would."""
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0xFF]))
        os.fsync(file.fileno())
