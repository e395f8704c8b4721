# SPDX-License-Identifier: Apache-2.0
"""Finding the data in an image, and the stream that carries only that."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from storage_helpers import MIB

from jumpstarter.common.storage import (
    MAGIC,
    ZERO_GRAIN,
    Extent,
    Probe,
    SparseParser,
    SparseStreamError,
    data_extents,
    data_header,
    end_header,
    format_size,
    format_sizes,
    is_zero,
    pack_blocks,
    parse_size,
    probe_file,
    split_zeros,
    unpack_blocks,
)


def extents(path: Path, limit: int = 16 * MIB) -> list[tuple[int, int]]:
    with open(path, "rb") as file:
        return [(e.offset, e.length) for e in data_extents(file.fileno(), os.fstat(file.fileno()).st_size, limit)]


def stream(path: Path) -> bytes:
    data = path.read_bytes()
    parts = [MAGIC]
    for offset, length in extents(path):
        parts += [data_header(Extent(offset, length)), data[offset : offset + length]]
    return b"".join([*parts, end_header(len(data))])


def rebuild(data: bytes, step: int) -> bytes:
    parser = SparseParser()
    out = bytearray()
    for start in range(0, len(data), step):
        for offset, piece in parser.feed(data[start : start + step]):
            out += bytes(offset - len(out)) + piece
    return bytes(out + bytes(parser.finish() - len(out)))


def test_extents_leave_out_holes_and_written_zeros(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with open(path, "wb") as file:
        file.write(b"x" * ZERO_GRAIN)
        file.write(bytes(4 * ZERO_GRAIN))  # zeros that take space
        file.write(b"y" * 10)
        file.seek(40 * ZERO_GRAIN)  # a hole
        file.write(b"z")
        file.truncate(60 * ZERO_GRAIN)
    found = extents(path)  # how far beyond the data they reach is up to the file system
    assert [offset for offset, _ in found] == [0, 5 * ZERO_GRAIN, 40 * ZERO_GRAIN]
    assert all(length <= ZERO_GRAIN for _, length in found)


def test_an_image_of_nothing_but_zeros_has_no_extents(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(MIB + 5))
    assert extents(path) == []
    assert rebuild(stream(path), 1000) == bytes(MIB + 5)


def test_a_long_run_of_data_comes_in_pieces_of_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"d" * (5 * MIB))
    assert extents(path, 2 * MIB) == [(0, 2 * MIB), (2 * MIB, 2 * MIB), (4 * MIB, MIB)]


@pytest.mark.parametrize("step", [1, 23, 24, 4096, 1 << 30])
def test_the_stream_carries_the_image_however_it_is_cut(tmp_path: Path, step: int) -> None:
    noise = random.Random(3)
    path = tmp_path / "image"
    path.write_bytes(noise.randbytes(100_000) + bytes(500_000) + noise.randbytes(1) + bytes(70_000))
    data = stream(path)
    assert len(data) < 300_000
    assert rebuild(data, step) == path.read_bytes()


def test_a_stream_that_was_cut_off_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"d" * 1000)
    data = stream(path)
    for cut in (0, 3, len(MAGIC), len(MAGIC) + 10, 500, len(data) - 24, len(data) - 1):
        with pytest.raises(SparseStreamError):
            rebuild(data[:cut], 100)


@pytest.mark.parametrize(
    "data",
    [
        b"NOTMAGIC" + end_header(0),
        MAGIC + data_header(Extent(0, 4)) + b"data" + data_header(Extent(0, 4)) + b"back" + end_header(4),
        MAGIC + data_header(Extent(8, 4)) + b"data" + end_header(4),
        MAGIC + end_header(0) + b"more",
        MAGIC + bytes(24),
    ],
    ids=["no magic", "goes back", "ends before its data", "data behind the end", "unknown header"],
)
def test_a_malformed_stream_is_refused(data: bytes) -> None:
    with pytest.raises(SparseStreamError):
        rebuild(data, 1 << 20)


def test_data_beyond_the_target_is_refused_before_it_is_passed_on() -> None:
    parser = SparseParser(limit=100)
    with pytest.raises(SparseStreamError, match="behind byte 100"):
        list(parser.feed(MAGIC + data_header(Extent(96, 8)) + b"overflow"))


def test_zeros_are_split_off_in_whole_grains() -> None:
    data = b"a" * 10 + bytes(3 * ZERO_GRAIN) + b"b" * ZERO_GRAIN
    runs = [(offset, view is None, length) for offset, view, length in split_zeros(0, memoryview(data))]
    assert runs == [
        (0, False, ZERO_GRAIN),
        (ZERO_GRAIN, True, 2 * ZERO_GRAIN),
        (3 * ZERO_GRAIN, False, ZERO_GRAIN + 10),
    ]


def test_is_zero_looks_at_every_byte() -> None:
    for size in (0, 1, 4095, MIB, MIB + 1, 3 * MIB):
        data = bytearray(size)
        assert is_zero(data)
        for position in {0, size // 2, size - 1} if size else ():
            data[position] = 1
            assert not is_zero(data)
            data[position] = 0


@pytest.mark.parametrize(
    ("text", "size"), [("96MiB", 96 * MIB), ("96M", 96 * MIB), (4096, 4096), ("4096", 4096), ("1.5 GiB", 1536 * MIB)]
)
def test_sizes_are_understood(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "-5", "5 pounds", True, -1])
def test_other_texts_are_no_sizes(text: str | int) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


def test_sizes_in_messages_do_not_hide_a_difference() -> None:
    assert format_size(512 * MIB) == "512.0 MiB"
    assert format_sizes(512 * MIB, 96 * MIB) == ("512.0 MiB", "96.0 MiB")
    assert format_sizes(96 * MIB + 1, 96 * MIB) == ("100663297 bytes", "100663296 bytes")


@pytest.mark.parametrize("step", [1000, ZERO_GRAIN, MIB, 10 * MIB])
def test_a_probe_of_a_stream_is_that_of_the_file(tmp_path: Path, step: int) -> None:
    noise = random.Random(11)
    path = tmp_path / "image"
    path.write_bytes(noise.randbytes(MIB + 5) + bytes(4 * MIB) + noise.randbytes(100_000))
    data = path.read_bytes()
    with open(path, "rb") as file:
        wanted = probe_file(file.fileno(), len(data))
    probe = Probe()
    for start in range(0, len(data), step):
        for _, view, length in split_zeros(start, memoryview(data)[start : start + step]):
            if view is None:
                probe.zeros(length)
            else:
                probe.data(view)
    assert probe.hexdigest() == wanted
    for block, seen in ((0, True), (1, True), (2, True), (3, False), (4, True)):
        changed = bytearray(data)
        changed[block * MIB + 77] ^= 1
        other = Probe()
        other.data(memoryview(changed))
        assert (other.hexdigest() != wanted) is seen


def test_block_numbers_travel_as_runs() -> None:
    assert pack_blocks([3, 1, 2, 9]) == [[1, 3], [9, 1]]
    assert unpack_blocks([[1.0, 3.0], [9, 1]]) == [1, 2, 3, 9]
