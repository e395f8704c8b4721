# SPDX-License-Identifier: Apache-2.0
"""What several storage tests need."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 1 << 20


def sha256(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def loop_device(backing: Path, size: int) -> Iterator[str]:
    """A block device of ``size`` bytes, filled with noise so that old content cannot pass for zeros."""
    backing.write_bytes(random.Random(size).randbytes(size))
    path = subprocess.run(
        ["losetup", "--find", "--show", str(backing)], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        yield path
    finally:
        subprocess.run(["losetup", "--detach", path], check=True)


def allocated(path: str | os.PathLike[str]) -> int:
    """Bytes a file really takes on its file system."""
    return os.stat(path).st_blocks * 512


def pack(path: Path, tool: str, *options: str) -> Path:
    """The file packed by a command-line tool: xz, gzip, bzip2 or zstd."""
    suffix = {"xz": ".xz", "gzip": ".gz", "bzip2": ".bz2", "zstd": ".zst"}[tool]
    packed = path.with_name(path.name + suffix)
    with open(packed, "wb") as out:
        subprocess.run([tool, "-c", *options, str(path)], stdout=out, stderr=subprocess.DEVNULL, check=True)
    return packed


def corrupt(path: str | os.PathLike[str], offset: int) -> None:
    """Change one byte behind everybody's back."""
    with open(path, "r+b", buffering=0) as file:
        byte = os.pread(file.fileno(), 1, offset)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 0xFF]), offset)
        os.fsync(file.fileno())
