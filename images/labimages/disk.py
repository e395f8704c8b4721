# SPDX-License-Identifier: Apache-2.0
"""Disk images made of files alone: a DOS partition table and a FAT file system, without root, mounts or loop device."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import BuildError
from .tools import run

SECTOR = 512
MIB = 1024 * 1024
FAT16_LBA, FAT32_LBA, LINUX = 0x0E, 0x0C, 0x83


@dataclass(frozen=True)
class Partition:
    """One primary partition; start and size in bytes, multiples of 512."""

    start: int
    size: int
    kind: int
    bootable: bool = False

    def entry(self) -> bytes:
        """The 16 bytes of the partition table; CHS is the value that means "use the block numbers"."""
        return struct.pack(
            "<B3sB3sII",
            0x80 if self.bootable else 0,
            b"\xfe\xff\xff",
            self.kind,
            b"\xfe\xff\xff",
            self.start // SECTOR,
            self.size // SECTOR,
        )


def create_disk(path: Path, size: int, partitions: list[Partition], *, signature: int, boot_code: bytes = b"") -> None:
    """Write a sparse disk of *size* bytes with a DOS partition table; signature is the fixed 32-bit disk identifier."""
    if len(boot_code) > 440:
        raise BuildError(f"boot code of {len(boot_code)} bytes does not fit into the 440 bytes an MBR has")
    if not 1 <= len(partitions) <= 4:
        raise BuildError(f"a DOS partition table holds 1 to 4 partitions, not {len(partitions)}")
    end = SECTOR
    for partition in partitions:
        if partition.start < end or partition.start % SECTOR or partition.size % SECTOR:
            raise BuildError(f"partition at {partition.start} overlaps another or is not aligned to {SECTOR} bytes")
        end = partition.start + partition.size
    if end > size:
        raise BuildError(f"partitions end at {end} but the disk has {size} bytes")
    table = b"".join(partition.entry() for partition in partitions).ljust(64, b"\0")
    with path.open("wb") as disk:
        disk.truncate(size)
        disk.write(boot_code.ljust(440, b"\0") + struct.pack("<IH", signature, 0) + table + b"\x55\xaa")


def make_fat(disk: Path, partition: Partition, files: Mapping[str, Path | bytes], *, label: str, serial: int) -> None:
    """Format *partition* of *disk* as FAT and copy *files* (path in the file system -> content) into it.

    serial: fixed volume serial number. The files get one fixed time, so equal input gives equal bytes.
    """
    target = f"{disk}@@{partition.start}"
    env = {"SOURCE_DATE_EPOCH": "315532800", "TZ": "UTC", "MTOOLS_SKIP_CHECK": "1"}  # FAT knows no time before 1980
    geometry = ["-T", str(partition.size // SECTOR), "-h", "16", "-s", "63", "-H", str(partition.start // SECTOR)]
    fat32 = ["-F"] if partition.kind == FAT32_LBA else []
    run(["mformat", "-i", target, *geometry, *fat32, "-v", label, "-N", f"{serial:08x}", "::"], env=env)
    made: set[str] = set()
    scratch = disk.with_suffix(".fatfile")
    try:
        for name in sorted(files):
            parent = name.strip("/").rpartition("/")[0]
            if parent and parent not in made:
                run(["mmd", "-i", target, f"::/{parent}"], env=env)
                made.add(parent)
            content = files[name]
            if isinstance(content, bytes):
                scratch.write_bytes(content)
                content = scratch
            run(["mcopy", "-i", target, "-o", content, f"::/{name.strip('/')}"], env=env)
    finally:
        scratch.unlink(missing_ok=True)
