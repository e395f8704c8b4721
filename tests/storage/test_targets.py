# SPDX-License-Identifier: Apache-2.0
"""A target that is not what the configuration declares is refused before the first write, in one clear line."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from storage_helpers import MIB, loop_device

from jumpstarter_driver_storage.driver import BlockFlasher, Flasher
from jumpstarter_driver_storage.errors import StorageRefused
from jumpstarter_driver_storage.target import Target, check, open_for_writing


def refusal(fields: Any, **options: Any) -> StorageRefused:
    with pytest.raises(StorageRefused) as caught:
        check("disk", Target.parse("disk", fields), "storage", **options)
    assert str(caught.value).endswith("; nothing was written")
    assert "\n" not in str(caught.value)
    assert 'target "disk" of driver storage' in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "field path"),
        ({"path": ""}, "field path"),
        ({"path": "/"}, "field path: / is a directory"),
        ({"path": "a\0b"}, r"field path: 'a\\x00b' holds a NUL"),
        ({"path": "/x", "size": "lots"}, "field size"),
        ({"path": "/x", "size": True}, "field size"),
        ({"path": "/x", "size": 10**24}, "field size: 10+ is more than any"),
        ({"path": "/x", "min_size": -1}, "field min_size"),
        ({"path": "/x", "kind": "tape"}, "field kind"),
        ({"path": "/x", "sizes": 3}, "unknown field 'sizes'"),
        ({"path": "/x", "identity": {"colour": "red"}}, "field identity"),
        ({"path": "/x", "kind": "file", "identity": {"serial": "1"}}, "only block devices"),
    ],
)
def test_a_wrong_declaration_names_target_and_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f'target "disk".*{message}'):
        Target.parse("disk", fields)


def test_a_flasher_without_targets_or_with_an_unknown_default_is_refused() -> None:
    with pytest.raises(ValueError, match="targets"):
        Flasher(targets={})
    with pytest.raises(ValueError, match='default_target: there is no target "b"; targets: a'):
        Flasher(targets={"a": "/x"}, default_target="b")


def test_file_of_another_size(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(1000))
    error = refusal({"path": str(path), "size": 2000})
    assert f"{path} holds 1000 bytes, the configuration declares 2.0 KiB" in error.message
    assert error.code == "mismatch"
    assert path.read_bytes() == bytes(1000)


def test_missing_folder_and_missing_device(tmp_path: Path) -> None:
    assert f"folder {tmp_path}/no does not exist" in refusal({"path": f"{tmp_path}/no/disk"}).message
    assert "does not exist (not plugged in?)" in refusal({"path": "/dev/no-such-disk"}).message
    assert refusal({"path": str(tmp_path / "sd"), "kind": "block"}).code == "not_found"


def test_directory_and_character_device(tmp_path: Path) -> None:
    path = tmp_path / "later"
    declared = Target.parse("disk", str(path))
    path.mkdir()  # after the configuration was read
    assert "is a directory" in refusal(declared).message
    assert "is a special file" in refusal({"path": "/dev/null"}).message


def test_file_where_a_device_is_declared_and_the_other_way_round(tmp_path: Path, block_device: str) -> None:
    path = tmp_path / "file"
    path.touch()
    assert "declares a block device" in refusal({"path": str(path), "kind": "block"}).message
    assert "declares a file" in refusal({"path": block_device, "kind": "file"}).message


def test_device_of_another_size(block_device: str) -> None:
    error = refusal({"path": block_device, "size": "16MiB"})
    assert f"{block_device} holds 8.0 MiB, the configuration declares 16.0 MiB" in error.message
    error = refusal({"path": block_device, "min_size": "1GiB"})
    assert "holds 8.0 MiB, the configuration wants at least 1.0 GiB" in error.message


def test_device_of_another_identity(block_device: str, tmp_path: Path) -> None:
    wanted = {"backing_file": "/elsewhere/card"}
    error = refusal({"path": block_device, "identity": wanted})
    assert f"has backing_file '{tmp_path}/backing', the configuration declares '/elsewhere/card'" in error.message
    error = refusal({"path": block_device, "identity": {"serial": "4C53"}})
    assert "tells no serial, the configuration declares '4C53'" in error.message


def test_device_that_is_what_was_declared(block_device: str, tmp_path: Path) -> None:
    identity = {"backing_file": f"{tmp_path}/backing"}
    checked = check("sd", Target.parse("sd", {"path": block_device, "size": 8 * MIB, "identity": identity}), "storage")
    assert (checked.kind, checked.capacity) == ("block", 8 * MIB)


def test_mounted_device(block_device: str, mounted: Callable[..., Path]) -> None:
    subprocess.run(["mkfs.ext4", "-q", block_device], check=True)
    point = mounted("ext4", block_device)
    error = refusal({"path": block_device})
    assert f"is in use on the exporter host: mounted on {point}" in error.message
    assert error.code == "busy"


def test_device_held_by_a_program(block_device: str) -> None:
    holder = os.open(block_device, os.O_RDWR | os.O_EXCL)
    try:
        checked = check("disk", Target.parse("disk", block_device), "storage")
        with pytest.raises(StorageRefused, match="held by another program"):
            open_for_writing(checked)
    finally:
        os.close(holder)


def test_read_only_device(block_device: str) -> None:
    subprocess.run(["blockdev", "--setro", block_device], check=True)
    try:
        assert "read-only" in refusal({"path": block_device}).message
    finally:  # the mark would stay with the device's name
        subprocess.run(["blockdev", "--setrw", block_device], check=True)


def test_file_locked_by_a_virtual_machine(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    with open(path, "r+b") as machine:
        # QEMU locks single bytes of an image with open-file-description locks
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 100, 1, 0)
        fcntl.fcntl(machine.fileno(), 37, lock)
        assert "locked by a running program" in refusal({"path": str(path)}).message
    check("disk", Target.parse("disk", str(path)), "storage")


def test_no_permission(tmp_path: Path, block_device: str) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(10))
    path.chmod(0o600)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o755)
    os.chmod(tmp_path, 0o755)
    for parent in tmp_path.parents:
        if stat.S_IMODE(parent.stat().st_mode) & 0o011 != 0o011:  # pytest's own folders: let the other user in
            parent.chmod(0o755)
    script = """
import os, sys
from jumpstarter_driver_storage.target import Target, check
from jumpstarter_driver_storage.errors import StorageRefused
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for path in sys.argv[1:]:
    try:
        check("disk", Target.parse("disk", path), "storage")
    except StorageRefused as error:
        print(error.code, error)
"""
    argv = [sys.executable, "-c", script, str(path), f"{locked}/new", block_device]
    lines = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("permission") and f"no permission to write {path} as uid 65534" in lines[0]
    assert lines[1].startswith("permission") and f"no permission to write in {locked}" in lines[1]
    assert lines[2].startswith("permission") and block_device in lines[2]


def test_targets_tell_their_problem_to_clients(client: Callable[[Any], Any], tmp_path: Path) -> None:
    flasher = client(Flasher(targets={"good": str(tmp_path / "a"), "bad": "/dev/no-such-disk"}, default_target="good"))
    good, bad = flasher.targets()
    assert (good.name, good.problem, good.default) == ("good", None, True)
    assert "not plugged in" in bad.problem and bad.code == "not_found"


def test_a_refused_device_keeps_every_byte(client: Callable[[Any], Any], block_device: str, image: Path) -> None:
    before = Path(block_device).read_bytes()
    flasher = client(BlockFlasher(path=block_device, size="16MiB"))
    with pytest.raises(Exception, match="declares 16.0 MiB; nothing was written"):
        flasher.flash(image)
    assert Path(block_device).read_bytes() == before


def test_a_device_that_got_another_ones_name_after_the_check_is_not_written(tmp_path: Path) -> None:
    name = tmp_path / "usb-stick"
    with loop_device(tmp_path / "a", MIB) as checked_one, loop_device(tmp_path / "b", MIB) as another:
        name.symlink_to(checked_one)
        checked = check("disk", Target.parse("disk", {"path": str(name)}), "storage")
        os.close(open_for_writing(checked))
        name.unlink()
        name.symlink_to(another)
        with pytest.raises(StorageRefused, match="is another device than a moment ago; nothing was written"):
            open_for_writing(checked)
