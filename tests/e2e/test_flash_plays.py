# SPDX-License-Identifier: GPL-3.0-or-later
"""What a play promises about flashing: nothing twice, nothing damaged, nothing where it does not belong."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import disk_images as images
import pytest
from benches import Bench
from disk_images import MIB
from playing import Played

MakeBench = Callable[..., Bench]


@pytest.fixture
def board(bench: MakeBench) -> Iterator[Bench]:
    """A board whose disk is a file of 16 MiB."""
    made = bench({"dut": {"jumpstarter_exporter_config": "dut.yaml"}})
    disk = {"type": "jumpstarter_driver_storage.driver.FileFlasher"}
    made.config("dut", {"storage": {**disk, "config": {"path": str(made.folder / "disk"), "size": 16 * MIB}}})
    yield made
    made.wait_gone()


def flash(board: Bench, src: Path | str, *args: str, **options: Any) -> Played:
    task = {"name": "Write it", "jumpstarter.lab.flash": {"src": str(src), **options}}
    return board.run([task], *args)


def test_image_lands_on_the_disk_and_the_second_run_changes_nothing(board: Bench) -> None:
    image = images.patterned(board.folder / "i.img", 16)
    first = flash(board, image).result("dut")
    assert (first["changed"], first["verified"], first["size"]) == (True, True, 16 * MIB)
    assert first["sha256"] == images.sha256(image) == images.sha256(board.folder / "disk")
    written_at = (board.folder / "disk").stat().st_mtime_ns
    second = flash(board, image).result("dut")
    assert (second["changed"], second["written_bytes"], second["verified"]) == (False, 0, True)
    assert (board.folder / "disk").stat().st_mtime_ns == written_at


def test_a_corrupt_block_is_found_and_repaired(board: Bench) -> None:
    image = images.patterned(board.folder / "i.img", 16)
    flash(board, image)
    images.corrupt(board.folder / "disk", 5 * MIB + 17)
    repaired = flash(board, image, verify=True).result("dut")
    assert (repaired["changed"], repaired["repaired_blocks"]) == (True, 1)
    assert repaired["written_bytes"] <= 2 * MIB
    assert images.sha256(board.folder / "disk") == images.sha256(image)
    assert flash(board, image).result("dut")["changed"] is False


def test_zeros_are_neither_moved_nor_written(board: Bench) -> None:
    image = images.patterned(board.folder / "i.img", 16, zeros_from=2)
    result = flash(board, image).result("dut")
    assert result["changed"] is True
    assert result["written_bytes"] <= 3 * MIB and result["moved_bytes"] <= 3 * MIB
    assert result["skipped_bytes"] >= 13 * MIB
    assert images.sha256(board.folder / "disk") == images.sha256(image)


@pytest.mark.parametrize("suffix", ["gz", "xz", "bz2", "zst"])
def test_compressed_images_are_unpacked_on_the_way(board: Bench, suffix: str) -> None:
    image = images.patterned(board.folder / "i.img", 4)
    packed = board.folder / f"i.img.{suffix}"
    with packed.open("wb") as out:
        subprocess.run([*_PACKERS[suffix], str(image)], stdout=out, check=True)
    result = flash(board, packed).result("dut")
    assert (result["changed"], result["sha256"]) == (True, images.sha256(image))


_PACK_BZ2 = "import bz2, sys; sys.stdout.buffer.write(bz2.compress(open(sys.argv[1], 'rb').read()))"
_PACKERS = {
    "gz": ["gzip", "-c"],
    "xz": ["xz", "-0", "-c"],
    "bz2": [sys.executable, "-c", _PACK_BZ2],
    "zst": ["zstd", "-c"],
}


@pytest.mark.parametrize("compression", ["gzip", "xz", "bzip2", "zstd"])
def test_wrong_compression_is_refused(board: Bench, compression: str) -> None:
    image = images.patterned(board.folder / "i.img", 1)
    played = flash(board, image, compression=compression)
    assert played.rc == 2
    assert played.result("dut")["error_code"] != "internal", played.output


def test_truncated_image_is_refused_and_never_reported_as_flashed(board: Bench) -> None:
    packed = images.truncated_xz(board.folder / "i.img.xz", 4)
    for _attempt in range(2):
        played = flash(board, packed)
        result = played.result("dut")
        assert played.rc == 2 and result["outcome"] == "failed"
        assert not result["changed"]
        assert "i.img.xz" in result["msg"] or "truncated" in result["msg"], result["msg"]


def test_image_that_does_not_fit_is_refused_before_the_first_write(board: Bench) -> None:
    small = images.patterned(board.folder / "small.img", 16)
    flash(board, small)
    result = flash(board, images.patterned(board.folder / "big.img", 17, seed=5)).result("dut")
    assert result["outcome"] == "failed"
    for words in ("17.0 MiB", "16.0 MiB", "disk", "nothing was written"):
        assert words in result["msg"], result["msg"]
    assert images.sha256(board.folder / "disk") == images.sha256(small)


def test_wrong_checksum_is_refused_before_the_first_write(board: Bench) -> None:
    image = images.patterned(board.folder / "i.img", 2)
    result = flash(board, image, checksum="sha256:" + "0" * 64).result("dut")
    assert result["outcome"] == "failed" and images.sha256(image) in result["msg"]
    assert not (board.folder / "disk").exists() or (board.folder / "disk").stat().st_blocks == 0


def test_unknown_target_is_named_with_those_that_exist(board: Bench) -> None:
    image = images.patterned(board.folder / "i.img", 1)
    result = flash(board, image, target="emmc").result("dut")
    assert "emmc" in result["msg"] and "disk" in result["msg"]


def test_check_mode_predicts_and_writes_nothing(board: Bench) -> None:
    image = images.patterned(board.folder / "i.img", 4)
    would = flash(board, image, "--check", "--diff")
    assert would.result("dut")["changed"] is True
    assert not (board.folder / "disk").exists() or (board.folder / "disk").stat().st_blocks == 0
    flash(board, image)
    assert flash(board, image, "--check").result("dut")["changed"] is False


def test_progress_is_shown_while_it_writes(board: Bench) -> None:
    played = flash(board, images.patterned(board.folder / "i.img", 16))
    assert "dut | i.img" in played.stdout and "MiB" in played.stdout


def test_image_from_an_address(board: Bench) -> None:
    image = images.patterned(board.folder / "i.img", 4)
    handler = partial(SimpleHTTPRequestHandler, directory=str(board.folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        result = flash(board, f"http://127.0.0.1:{server.server_port}/i.img").result("dut")
        server.shutdown()
    assert (result["changed"], result["sha256"]) == (True, images.sha256(image))


def test_dump_gives_back_what_was_flashed(board: Bench) -> None:
    image = images.patterned(board.folder / "i.img", 16)
    tasks: list[dict[str, Any]] = [
        {"name": "Write it", "jumpstarter.lab.flash": {"src": str(image)}},
        {"name": "Read it", "jumpstarter.lab.storage": {"dump": {"path": "dumped.img"}}},
    ]
    played = board.run(tasks)
    assert played.rc == 0, played.output
    assert played.result("dut")["sha256"] == images.sha256(image)
    assert images.sha256(board.folder / "dumped.img") == images.sha256(image)


def test_flash_in_the_background_and_wait_for_it(board: Bench) -> None:
    image = images.patterned(board.folder / "i.img", 16)
    operation = "{{ flashing.operation.id }}"
    tasks: list[dict[str, Any]] = [
        {"name": "Start", "jumpstarter.lab.flash": {"src": str(image), "wait": False}, "register": "flashing"},
        {"name": "Look", "jumpstarter.lab.operation": {"id": operation, "state": "status"}},
        {"name": "Wait", "jumpstarter.lab.operation": {"id": operation}},
    ]
    played = board.run(tasks)
    assert played.rc == 0, played.output
    assert played.result("dut")["operation"]["state"] == "succeeded"
    assert images.sha256(board.folder / "disk") == images.sha256(image)


def test_canceled_flash_stops_and_says_so(board: Bench) -> None:
    image = images.slow_to_unpack(board.folder / "i.img.bz2", 16)
    operation = "{{ flashing.operation.id }}"
    tasks: list[dict[str, Any]] = [
        {"name": "Start", "jumpstarter.lab.flash": {"src": str(image), "wait": False}, "register": "flashing"},
        {"name": "Stop", "jumpstarter.lab.operation": {"id": operation, "state": "canceled"}},
        {"name": "Wait", "jumpstarter.lab.operation": {"id": operation}, "ignore_errors": True},
    ]
    played = board.run(tasks)
    assert played.result("dut", 1)["operation"]["state"] == "canceled"
    assert played.result("dut", 2)["error_code"] == "canceled"
