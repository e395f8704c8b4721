# SPDX-License-Identifier: Apache-2.0
"""Flashing through a served driver: what is written, what is not, what the target holds afterwards."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from storage_helpers import MIB, allocated, corrupt, loop_device, pack, sha256

from jumpstarter.client.imaging import ImagingError, Progress
from jumpstarter_driver_storage.driver import BlockFlasher, FileFlasher, Flasher

Client = Callable[[Any], Any]
ZEROS = 3 * MIB
"""Zeros in the image that lie on whole grains, at least."""


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "disk"


@pytest.fixture(params=["own connection", "inside gRPC"])
def flasher(client: Client, disk: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "inside gRPC":
        monkeypatch.setenv("JUMPSTARTER_DATA_OVER_GRPC", "1")
    return client(FileFlasher(path=str(disk), size="8MiB"))


def test_the_target_holds_the_image_and_zeros_behind_it(flasher: Any, disk: Path, image: Path) -> None:
    disk.write_bytes(b"\xa5" * (8 * MIB))
    result = flasher.flash(image)
    data = image.read_bytes()
    assert disk.read_bytes() == data + bytes(8 * MIB - len(data))
    assert (result.changed, result.verified, result.target) == (True, True, "disk")
    assert (result.size, result.sha256) == (len(data), sha256(data))
    assert result.written_bytes + result.skipped_bytes == len(data)


def test_zeros_are_neither_moved_nor_written(flasher: Any, disk: Path, image: Path) -> None:
    result = flasher.flash(image)
    size = image.stat().st_size
    assert result.skipped_bytes >= ZEROS
    assert result.moved_bytes < size - ZEROS + 1000
    assert allocated(disk) <= size - ZEROS + 65536


def test_a_sparse_image_of_a_gibibyte_moves_only_its_data(client: Client, tmp_path: Path) -> None:
    source, disk = tmp_path / "big", tmp_path / "big-disk"
    with open(source, "wb") as file:
        file.seek(512 * MIB)
        file.write(b"somewhere in the middle")
        file.truncate(1024 * MIB)
    result = client(FileFlasher(path=str(disk))).flash(source)
    assert (result.size, result.moved_bytes < 100_000, allocated(disk) < 100_000) == (1024 * MIB, True, True)
    with open(disk, "rb") as file:
        file.seek(512 * MIB)
        assert file.read(23) == b"somewhere in the middle"


def test_flashing_the_same_image_again_writes_nothing(flasher: Any, disk: Path, image: Path) -> None:
    flasher.flash(image)
    before = os.stat(disk)
    result = flasher.flash(image)
    assert (result.changed, result.written_bytes, result.moved_bytes, result.verified) == (False, 0, 0, True)
    assert result.reason == "the target already holds this image"
    assert os.stat(disk).st_mtime_ns == before.st_mtime_ns


def test_the_same_image_is_known_without_the_clients_cache(
    client: Client, disk: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flasher = client(FileFlasher(path=str(disk)))
    flasher.flash(image)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    assert not flasher.flash(image).changed


def test_the_record_outlives_the_exporter(client: Client, disk: Path, image: Path) -> None:
    client(FileFlasher(path=str(disk))).flash(image)
    assert not client(FileFlasher(path=str(disk))).flash(image).changed


def test_another_image_replaces_the_first(flasher: Any, disk: Path, image: Path, tmp_path: Path) -> None:
    flasher.flash(image)
    other = tmp_path / "other"
    other.write_bytes(b"other" * 100_000)
    result = flasher.flash(other)
    assert (result.changed, result.reason) == (True, "the target holds another image")
    assert disk.read_bytes() == other.read_bytes() + bytes(8 * MIB - 500_000)


def test_another_image_of_the_same_size_is_seen_without_reading_all_of_it(flasher: Any, image: Path) -> None:
    flasher.flash(image)
    corrupt(image, 100)
    told: list[Progress] = []
    assert flasher.flash(image, progress=told.append).changed
    assert "hashing" not in {step.phase for step in told}
    corrupt(image, 3 * MIB + 100)  # in a block the probe does not look at
    assert flasher.flash(image, progress=told.append).changed
    assert "hashing" in {step.phase for step in told}


def test_an_image_of_the_same_size_but_another_content_is_another_image(flasher: Any, disk: Path, image: Path) -> None:
    flasher.flash(image)
    corrupt(image, 100)
    assert flasher.flash(image).changed
    assert disk.read_bytes()[: image.stat().st_size] == image.read_bytes()


@pytest.mark.parametrize("offset", [0, 5 * MIB + 5, 3 * MIB], ids=["data", "second data", "hole"])
def test_one_changed_block_is_found_and_only_it_repaired(flasher: Any, disk: Path, image: Path, offset: int) -> None:
    flasher.flash(image)
    corrupt(disk, offset)
    result = flasher.flash(image)
    assert (result.changed, result.repaired_blocks, result.verified) == (True, 1, True)
    assert result.written_bytes + result.skipped_bytes <= MIB
    assert result.moved_bytes < MIB + 1000
    data = image.read_bytes()
    assert disk.read_bytes() == data + bytes(8 * MIB - len(data))
    assert not flasher.flash(image).changed


def test_repair_from_a_compressed_image(flasher: Any, disk: Path, image: Path) -> None:
    packed = pack(image, "xz")
    flasher.flash(packed)
    corrupt(disk, 17)
    corrupt(disk, 5 * MIB + 17)
    result = flasher.flash(packed)
    assert (result.changed, result.repaired_blocks) == (True, 2)
    assert disk.read_bytes()[: image.stat().st_size] == image.read_bytes()


def test_a_target_that_became_longer_or_went_away_is_flashed_again(client: Client, disk: Path, image: Path) -> None:
    flasher = client(FileFlasher(path=str(disk)))
    flasher.flash(image)
    with open(disk, "ab") as file:
        file.write(bytes(4096))  # a virtual machine's disk grows to whole sectors: still the same image
    assert not flasher.flash(image).changed
    with open(disk, "ab") as file:
        file.write(b"appended")
    assert flasher.flash(image).changed
    assert disk.read_bytes() == image.read_bytes()
    disk.unlink()
    assert flasher.flash(image, check=True).changed
    assert flasher.flash(image).changed
    assert disk.read_bytes() == image.read_bytes()


def test_a_file_written_just_now_is_not_remembered(flasher: Any, image: Path, tmp_path: Path) -> None:
    """Two writes within one tick of the clock leave the same time stamp: the cache must not believe it."""
    image.write_bytes(image.read_bytes())
    flasher.flash(image)
    assert not list((tmp_path / "cache").rglob("*.json"))
    os.utime(image, (1_700_000_000, 1_700_000_000))
    flasher.flash(image)
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 1


def test_without_verification_a_foreign_write_is_still_noticed(flasher: Any, disk: Path, image: Path) -> None:
    flasher.flash(image, verify=False)
    assert not flasher.flash(image, verify=False).changed
    corrupt(disk, 17)
    result = flasher.flash(image, verify=False)
    assert (result.changed, result.reason) == (True, "the target was written to since it was flashed")
    assert disk.read_bytes()[:MIB] == image.read_bytes()[:MIB]


def test_force_writes_all_of_it_again(flasher: Any, image: Path) -> None:
    flasher.flash(image)
    result = flasher.flash(image, force=True)
    assert (result.changed, result.reason) == (True, "forced")
    assert result.written_bytes > 0


@pytest.mark.parametrize("tool", ["xz", "gzip", "bzip2", "zstd"])
def test_compressed_images(flasher: Any, disk: Path, image: Path, tool: str) -> None:
    packed = pack(image, tool)
    result = flasher.flash(packed)
    data = image.read_bytes()
    assert disk.read_bytes() == data + bytes(8 * MIB - len(data))
    assert (result.sha256, result.size) == (sha256(data), len(data))
    assert result.moved_bytes == packed.stat().st_size
    assert result.skipped_bytes >= ZEROS
    assert not flasher.flash(packed).changed


def test_gzip_of_what_is_there_already_is_the_same_image(flasher: Any, image: Path) -> None:
    flasher.flash(image)
    assert not flasher.flash(pack(image, "gzip")).changed


@pytest.mark.parametrize("tool", ["xz", "gzip", "bzip2", "zstd"])
def test_a_truncated_image_is_refused_before_the_first_write(flasher: Any, disk: Path, image: Path, tool: str) -> None:
    packed = pack(image, tool)
    whole = packed.read_bytes()
    disk.write_bytes(b"\xa5" * (8 * MIB))
    for cut in (1, 20, len(whole) // 2, len(whole) - 30):
        packed.write_bytes(whole[:-cut])
        with pytest.raises(ImagingError, match="truncated.*nothing was written") as caught:
            flasher.flash(packed)
        assert caught.value.code == "bad_image"
    assert disk.read_bytes() == b"\xa5" * (8 * MIB)


@pytest.mark.parametrize("tool", ["xz", "zstd"])
def test_damage_inside_a_compressed_image_is_never_success(flasher: Any, disk: Path, image: Path, tool: str) -> None:
    flasher.flash(image)
    packed = pack(image, tool)
    corrupt(packed, packed.stat().st_size * 2 // 3)
    with pytest.raises(ImagingError, match="corrupt.*bytes written, target is incomplete") as caught:
        flasher.flash(packed)
    assert caught.value.written > 0
    result = flasher.flash(image)
    assert (result.changed, result.reason) == (True, "the last flash of the target was not completed")


def test_a_name_that_promises_compression_must_keep_it(flasher: Any, image: Path) -> None:
    fake = image.rename(image.with_name("disk.img.xz"))
    with pytest.raises(ImagingError, match="is named like xz data but holds something else; nothing was written"):
        flasher.flash(fake)


@pytest.mark.parametrize("tool", [None, "xz", "gzip", "zstd"])
def test_an_image_larger_than_the_target(client: Client, disk: Path, image: Path, tool: str | None) -> None:
    flasher = client(FileFlasher(path=str(disk), size="2MiB"))
    source = pack(image, tool) if tool else image
    wanted = 'image is 6.1 MiB, target "disk" of driver .* holds 2.0 MiB; nothing was written'
    with pytest.raises(ImagingError, match=wanted) as caught:
        flasher.flash(source)
    assert caught.value.code == "too_large"
    assert not disk.exists()


def test_check_mode_touches_nothing_and_tells_the_truth(flasher: Any, disk: Path, image: Path) -> None:
    result = flasher.flash(image, check=True)
    assert (result.changed, result.written_bytes, disk.exists()) == (True, 0, False)
    flasher.flash(image)
    before = os.stat(disk).st_mtime_ns
    assert not flasher.flash(image, check=True).changed
    assert flasher.flash(image, check=True, force=True).changed
    assert os.stat(disk).st_mtime_ns == before
    corrupt(disk, 0)
    before = os.stat(disk).st_mtime_ns
    result = flasher.flash(image, check=True)
    assert (result.changed, result.repaired_blocks, result.written_bytes) == (True, 1, 0)
    assert os.stat(disk).st_mtime_ns == before


def test_a_wrong_checksum_stops_before_the_first_write(flasher: Any, disk: Path, image: Path) -> None:
    with pytest.raises(ImagingError, match="has sha256 .* expected 0000.*nothing was written") as caught:
        flasher.flash(image, checksum="sha256:" + "0" * 64)
    assert caught.value.code == "checksum"
    assert not disk.exists()
    assert flasher.flash(image, checksum="sha256:" + sha256(image.read_bytes()).upper()).changed
    with pytest.raises(ImagingError, match="is no sha256"):
        flasher.flash(image, checksum="md5:0123")


def test_bad_sources_are_named(flasher: Any, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    for source, message in ((tmp_path / "no", "does not exist"), (empty, "is empty"), (tmp_path, "is no file")):
        with pytest.raises(ImagingError, match=f"image {source} {message}; nothing was written"):
            flasher.flash(source)


def test_an_unknown_target_lists_those_there_are(client: Client, tmp_path: Path, image: Path) -> None:
    flasher = client(Flasher(targets={"boot": str(tmp_path / "a"), "root": str(tmp_path / "b")}))
    with pytest.raises(ImagingError, match='has no target "disk"; targets: boot, root; nothing was written'):
        flasher.flash(image, target="disk")
    with pytest.raises(ImagingError, match="several targets, name one: boot, root"):
        flasher.flash(image)
    results = flasher.flash({"boot": image, "root": image})
    assert [results[name].target for name in ("boot", "root")] == ["boot", "root"]


def test_progress_tells_phases_amounts_and_rate(flasher: Any, image: Path) -> None:
    told: list[Progress] = []
    flasher.flash(image, progress=told.append)
    assert {"writing", "syncing"} <= {step.phase for step in told}
    last = told[-1]
    assert last.total == image.stat().st_size
    assert all(step.done <= (step.total or step.done) for step in told)
    assert "MiB" in last.text


def test_records_and_caches_are_for_the_owner_only(flasher: Any, image: Path, tmp_path: Path) -> None:
    flasher.flash(image)
    flasher.flash(image)
    for name in ("state/jumpstarter-lab/storage", "cache/jumpstarter-lab/images"):
        folder = tmp_path / name
        files = list(folder.iterdir())
        assert files and stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_a_record_of_another_version_or_a_damaged_one_is_as_good_as_none(
    flasher: Any, image: Path, tmp_path: Path
) -> None:
    flasher.flash(image)
    (record,) = (tmp_path / "state" / "jumpstarter-lab" / "storage").glob("*.json")
    good = record.read_text()
    for bad in ("{", "[]", "{}", json.dumps({**json.loads(good), "version": 0})):
        record.write_text(bad)
        assert flasher.flash(image).reason == "the exporter has no record of what the target holds"


def test_dump_gives_back_what_the_target_holds(flasher: Any, disk: Path, image: Path, tmp_path: Path) -> None:
    flasher.flash(image)
    result = flasher.dump(tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == disk.read_bytes()
    assert (result.size, result.sha256) == (8 * MIB, sha256(disk.read_bytes()))
    assert allocated(tmp_path / "back") <= 8 * MIB - ZEROS
    flasher.dump(tmp_path / "back.xz", compression="xz")
    import lzma

    assert lzma.decompress((tmp_path / "back.xz").read_bytes()) == disk.read_bytes()


def test_dump_of_nothing_leaves_nothing(flasher: Any, tmp_path: Path) -> None:
    with pytest.raises(ImagingError, match="does not exist"):
        flasher.dump(tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir() if "back" in path.name] == []


# --- block devices ---------------------------------------------------------------------------------------------


def test_a_block_device_holds_the_image_and_real_zeros(client: Client, block_device: str, image: Path) -> None:
    before = Path(block_device).read_bytes()
    result = client(BlockFlasher(path=block_device, size="8MiB")).flash(image)
    data = image.read_bytes()
    assert Path(block_device).read_bytes() == data + before[len(data) :]
    assert (result.changed, result.verified, result.sha256) == (True, True, sha256(data))
    assert result.skipped_bytes >= ZEROS - MIB


def test_a_block_device_is_known_again_and_repaired(
    client: Client, block_device: str, image: Path, tmp_path: Path
) -> None:
    flasher = client(BlockFlasher(path=block_device, identity={"backing_file": str(tmp_path / "backing")}))
    assert flasher.flash(image).changed
    assert not flasher.flash(image).changed
    assert not flasher.flash(image, verify=False).changed
    corrupt(block_device, 3 * MIB + 7)
    result = flasher.flash(image)
    assert (result.changed, result.repaired_blocks) == (True, 1)
    assert Path(block_device).read_bytes()[: image.stat().st_size] == image.read_bytes()


def test_another_card_in_the_same_reader_is_not_taken_for_the_first(
    client: Client, image: Path, tmp_path: Path
) -> None:
    with loop_device(tmp_path / "card1", 8 * MIB) as path:
        client(BlockFlasher(path=path)).flash(image)
    with loop_device(tmp_path / "card2", 8 * MIB) as again:
        result = client(BlockFlasher(path=again)).flash(image, verify=False)
        assert result.changed
        assert Path(again).read_bytes()[: image.stat().st_size] == image.read_bytes()
