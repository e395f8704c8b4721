# SPDX-License-Identifier: Apache-2.0
"""Compressed data is accepted only when it is whole: made by the real tools, cut and spoiled at many places."""

from __future__ import annotations

import random
import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from storage_helpers import pack

from jumpstarter.streams.archive import inspect_archive
from jumpstarter.streams.encoding import (
    CompressedDataError,
    Compression,
    Decompressor,
    compressor,
    decompress,
    detect_compression_from_signature,
)

TOOLS = {Compression.GZIP: "gzip", Compression.XZ: "xz", Compression.BZ2: "bzip2", Compression.ZSTD: "zstd"}
ALL = pytest.mark.parametrize("compression", list(Compression))


@pytest.fixture(scope="module")
def plain() -> bytes:
    return random.Random(1).randbytes(150_000) + bytes(1_500_000) + b"a line that repeats\n" * 20_000


@pytest.fixture(scope="module")
def packed(plain: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[Compression, bytes]:
    path = tmp_path_factory.mktemp("packed") / "file"
    path.write_bytes(plain)
    return {compression: pack(path, tool).read_bytes() for compression, tool in TOOLS.items()}


def chunks(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def unpack(data: bytes, compression: Compression, size: int = 65536) -> bytes:
    return b"".join(decompress(chunks(data, size), compression))


@ALL
@pytest.mark.parametrize("size", [1000, 65536, 1 << 20])
def test_what_the_tools_pack_is_unpacked(
    compression: Compression, size: int, packed: dict[Compression, bytes], plain: bytes
) -> None:
    assert unpack(packed[compression], compression, size) == plain


@ALL
@pytest.mark.parametrize("size", [1, 7, 4096])
def test_chunk_borders_anywhere_in_headers_do_no_harm(compression: Compression, size: int, tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"short" * 100)
    data = pack(path, TOOLS[compression]).read_bytes()
    assert unpack(data + data, compression, size) == b"short" * 200


@ALL
def test_members_one_after_the_other_are_one_stream(
    compression: Compression, packed: dict[Compression, bytes], plain: bytes
) -> None:
    assert unpack(packed[compression] * 3, compression) == plain * 3


@ALL
@pytest.mark.parametrize("whole_before", [0, 1], ids=["only member", "second member"])
def test_truncation_is_found_wherever_it_happens(
    compression: Compression, whole_before: int, packed: dict[Compression, bytes], tmp_path: Path
) -> None:
    data = packed[compression]
    noise = random.Random(2)
    cuts = [1, 3, 5, 11, len(data) // 2, len(data) - 9, len(data) - 4, len(data) - 1]
    for cut in cuts + [noise.randrange(1, len(data)) for _ in range(8)]:
        short = data * whole_before + data[:cut]
        with pytest.raises(CompressedDataError, match="truncated|follows its end"):
            unpack(short, compression)
        if compression in (Compression.XZ, Compression.ZSTD):
            path = tmp_path / "short"
            path.write_bytes(short)
            with open(path, "rb") as file, pytest.raises(CompressedDataError):
                inspect_archive(file.fileno(), compression)


@ALL
def test_garbage_behind_the_end_is_refused(compression: Compression, packed: dict[Compression, bytes]) -> None:
    for garbage in (b"x", b"garbage " * 3, b"\0\0\0x"):
        with pytest.raises(CompressedDataError, match="follows its end"):
            unpack(packed[compression] + garbage, compression)


def test_padding_that_the_formats_allow_is_no_garbage(packed: dict[Compression, bytes], plain: bytes) -> None:
    assert unpack(packed[Compression.XZ] + bytes(8), Compression.XZ) == plain
    assert unpack(packed[Compression.XZ] + bytes(4) + packed[Compression.XZ], Compression.XZ) == plain * 2
    assert unpack(packed[Compression.GZIP] + bytes(100), Compression.GZIP) == plain
    with pytest.raises(CompressedDataError):
        unpack(packed[Compression.XZ] + bytes(3), Compression.XZ)


@ALL
def test_a_flipped_bit_is_found(compression: Compression, packed: dict[Compression, bytes], plain: bytes) -> None:
    data = bytearray(packed[compression])
    data[len(data) // 2] ^= 0x10
    with pytest.raises(CompressedDataError):
        unpack(bytes(data), compression)


@ALL
def test_empty_input_is_no_compressed_file(compression: Compression) -> None:
    with pytest.raises(CompressedDataError, match="empty"):
        unpack(b"", compression)


def test_zstd_skippable_frames_carry_nothing(packed: dict[Compression, bytes], plain: bytes) -> None:
    skippable = b"\x50\x2a\x4d\x18\x05\x00\x00\x00hello"
    data = packed[Compression.ZSTD]
    for mixed in (skippable + data, data + skippable, skippable + data + skippable + data):
        assert unpack(mixed, Compression.ZSTD, 100) == plain * mixed.count(data)


@pytest.mark.parametrize(
    ("compression", "options"), [(Compression.XZ, ("--block-size=100000", "-T2")), (Compression.ZSTD, ())]
)
def test_structure_tells_the_size_of_the_content(
    compression: Compression, options: tuple[str, ...], plain: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(plain)
    twice = pack(path, TOOLS[compression], *options).read_bytes() * 2
    path.write_bytes(twice)
    with open(path, "rb") as file:
        assert inspect_archive(file.fileno(), compression) == (2 * len(plain), True)


def test_zstd_from_a_pipe_does_not_tell_its_size_but_its_end(plain: bytes, tmp_path: Path) -> None:
    data = subprocess.run(["zstd", "-q", "-c"], input=plain, capture_output=True, check=True).stdout
    path = tmp_path / "file"
    path.write_bytes(data)
    with open(path, "rb") as file:
        assert inspect_archive(file.fileno(), Compression.ZSTD) == (None, True)


@ALL
def test_signatures(compression: Compression, packed: dict[Compression, bytes]) -> None:
    assert detect_compression_from_signature(packed[compression][:8]) is compression
    assert detect_compression_from_signature(b"BZhello!") is None
    assert detect_compression_from_signature(bytes(8)) is None


@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.XZ, Compression.BZ2])
def test_a_bomb_is_unpacked_in_bounded_memory(compression: Compression, tmp_path: Path) -> None:
    path = tmp_path / "zeros"
    with open(path, "wb") as file:
        file.truncate(200 << 20)
    data = pack(path, TOOLS[compression], "-1").read_bytes()
    decoder = Decompressor(compression)
    tracemalloc.start()
    try:
        total = sum(len(out) for out in decoder.feed(data))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    decoder.finish()
    assert total == 200 << 20
    assert peak < 64 << 20


@ALL
def test_what_we_pack_the_tools_unpack(compression: Compression, plain: bytes) -> None:
    encoder = compressor(compression)
    data = b"".join(encoder.compress(chunk) for chunk in chunks(plain, 100_000)) + encoder.finish()
    tool = [TOOLS[compression], "-d", "-c"]
    assert subprocess.run(tool, input=data, capture_output=True, check=True).stdout == plain
    assert len(data) < len(plain)
