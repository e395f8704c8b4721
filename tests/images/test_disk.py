# SPDX-License-Identifier: Apache-2.0
"""Disk images: equal bytes for equal input, holes where nothing is written, wrong layouts refused."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from labimages.disk import FAT16_LBA, FAT32_LBA, LINUX, MIB, Partition, create_disk, make_fat
from labimages.errors import BuildError


def _disk(path: Path, content: bytes = b"hello") -> Path:
    partition = Partition(MIB, 39 * MIB, FAT32_LBA, bootable=True)
    create_disk(path, 40 * MIB, [partition], signature=0x1234ABCD)
    files: dict[str, Path | bytes] = {"extlinux/extlinux.conf": content, "data": b"\1" * 5000}
    make_fat(path, partition, files, label="TEST", serial=0xCAFE0001)
    return path


def test_equal_input_gives_equal_bytes_and_other_input_does_not(tmp_path: Path) -> None:
    first, second = _disk(tmp_path / "a.img"), _disk(tmp_path / "b.img")
    assert first.read_bytes() == second.read_bytes()
    assert _disk(tmp_path / "c.img", b"other").read_bytes() != first.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.img", "b.img", "c.img"]


def test_files_are_found_again_by_mtools(tmp_path: Path) -> None:
    disk = _disk(tmp_path / "a.img")
    argv = ["mtype", "-i", f"{disk}@@{MIB}", "::/extlinux/extlinux.conf"]
    assert subprocess.run(argv, capture_output=True, check=True).stdout == b"hello"


def test_the_volume_has_the_serial_number_it_was_given(tmp_path: Path) -> None:
    boot_sector = _disk(tmp_path / "a.img").read_bytes()[MIB : MIB + 512]
    assert struct.unpack_from("<I", boot_sector, 67) == (0xCAFE0001,)  # where FAT32 keeps it


def test_unwritten_space_stays_a_hole(tmp_path: Path) -> None:
    disk = _disk(tmp_path / "a.img")
    assert disk.stat().st_size == 40 * MIB
    assert disk.stat().st_blocks * 512 < 4 * MIB


def test_the_partition_table_says_what_was_asked(tmp_path: Path) -> None:
    path = tmp_path / "t.img"
    parts = [Partition(MIB, MIB, FAT16_LBA, bootable=True), Partition(2 * MIB, 3 * MIB, LINUX)]
    create_disk(path, 5 * MIB, parts, signature=0x01020304, boot_code=b"\xeb\xfe")
    sector = path.read_bytes()[:512]
    assert sector[:2] == b"\xeb\xfe" and sector[510:] == b"\x55\xaa"
    assert struct.unpack("<I", sector[440:444]) == (0x01020304,)
    read = [struct.unpack("<B3sB3sII", sector[446 + 16 * i : 462 + 16 * i]) for i in range(2)]
    assert [(flag, kind, start, size) for flag, _, kind, _, start, size in read] == [
        (0x80, FAT16_LBA, 2048, 2048),
        (0, LINUX, 4096, 6144),
    ]


@pytest.mark.parametrize(
    ("partitions", "message"),
    [
        ([Partition(MIB, 5 * MIB, LINUX)], "but the disk has 4194304 bytes"),
        ([Partition(MIB, 2 * MIB, LINUX), Partition(2 * MIB, MIB, LINUX)], "overlaps"),
        ([Partition(MIB + 1, MIB, LINUX)], "not aligned"),
        ([], "1 to 4 partitions"),
    ],
)
def test_wrong_layouts_are_refused(tmp_path: Path, partitions: list[Partition], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        create_disk(tmp_path / "x.img", 4 * MIB, partitions, signature=1)


def test_files_that_do_not_fit_are_one_clear_error(tmp_path: Path) -> None:
    partition = Partition(MIB, 9 * MIB, FAT16_LBA)
    path = tmp_path / "x.img"
    create_disk(path, 10 * MIB, [partition], signature=1)
    with pytest.raises(BuildError, match="mcopy.*full"):
        make_fat(path, partition, {"big": b"\1" * (10 * MIB)}, label="X", serial=1)
