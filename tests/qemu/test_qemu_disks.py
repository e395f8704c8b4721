# SPDX-License-Identifier: Apache-2.0
"""Disks and firmware of a virtual board: golden images stay golden, a kept disk is kept, nothing shrinks."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest_qemu import UBOOT, board, served, wait_console

from jumpstarter.common.exceptions import DriverError
from jumpstarter.common.utils import serve
from jumpstarter.driver import Driver
from jumpstarter_driver_composite.driver import Composite
from jumpstarter_driver_uboot.driver import UbootConsole

MIB = 1 << 20
Serving = Callable[[Any], Any]


def with_uboot(machine: Any) -> Any:
    """The board with its U-Boot command line, to look at its disk from inside."""
    uboot = UbootConsole(children={"power": machine.children["power"], "serial": machine.children["console"]})
    return Composite(children={"qemu": machine, "uboot": uboot})


def image(path: Path, size: int, first: bytes = b"golden") -> Path:
    with open(path, "wb") as file:
        file.write(first)
        file.truncate(size)
    return path


def fingerprint(path: Path) -> tuple[bytes, int, int]:
    return hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns, path.stat().st_ino


def run(client: Any, command: str) -> list[str]:
    result = client.uboot.call("run", command, 30)
    assert result["rc"] == 0, result
    lines: list[str] = result["lines"]
    return lines


def boot_to_prompt(client: Any) -> None:
    client.uboot.call("reboot_to_prompt", 0, 30)
    run(client, "virtio scan")


def write_first_block(client: Any, value: int) -> None:
    """Let the guest write to the first block of its disk."""
    run(client, f"mw.l 0x42000000 {value:#x} 0x80")
    run(client, "virtio write 0x42000000 0 1")


def first_word(client: Any) -> int:
    """What the guest reads at the start of its disk."""
    run(client, "mw.l 0x42000000 0 0x80")
    run(client, "virtio read 0x42000000 0 1")
    return int(run(client, "md.l 0x42000000 1")[0].split()[1], 16)


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_golden_image_is_untouched_by_a_guest_that_writes(serving: Serving, tmp_path: Path, kind: str) -> None:
    golden = image(tmp_path / "golden.img", 4 * MIB)
    if kind == "qcow2":
        converted = tmp_path / "golden.qcow2"
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", golden, converted], check=True)
        golden = converted
    before = fingerprint(golden)
    client = serving(with_uboot(board(default_partitions={"root": golden}, disk_size="8M")))
    boot_to_prompt(client)
    assert first_word(client) == int.from_bytes(b"gold", "little")
    write_first_block(client, 0x1234)
    assert first_word(client) == 0x1234
    boot_to_prompt(client)
    assert first_word(client) == 0x1234, "what the guest wrote lasts as long as the session"
    client.qemu.power.off()
    assert fingerprint(golden) == before


def test_next_session_starts_from_the_golden_image_again(tmp_path: Path) -> None:
    golden = image(tmp_path / "golden.img", 4 * MIB)
    for _ in range(2):
        with serve(with_uboot(board(default_partitions={"root": golden}))) as client:
            boot_to_prompt(client)
            assert first_word(client) == int.from_bytes(b"gold", "little")
            write_first_block(client, 0x99)


def test_kept_disk_starts_as_copy_and_survives_the_session(tmp_path: Path) -> None:
    golden = image(tmp_path / "golden.img", 4 * MIB)
    before = fingerprint(golden)

    def machine() -> Any:
        state = str(tmp_path / "state")
        return with_uboot(board(default_partitions={"root": golden}, disk={"size": "16M"}, state_dir=state))

    with serve(machine()) as client:
        boot_to_prompt(client)
        assert first_word(client) == int.from_bytes(b"gold", "little")
        write_first_block(client, 0x77)
    with serve(machine()) as client:
        boot_to_prompt(client)
        assert first_word(client) == 0x77
        assert any("Capacity: 16.0 MB" in line for line in run(client, "virtio info"))
    assert fingerprint(golden) == before
    disk = tmp_path / "state" / "root"
    assert disk.stat().st_size == 16 * MIB and disk.stat().st_blocks * 512 < 2 * MIB, "copied without its holes"
    assert disk.stat().st_mode & 0o777 == 0o600


def test_flashed_again_after_the_exporter_was_restarted_is_unchanged(tmp_path: Path) -> None:
    source = image(tmp_path / "image.img", 3 * MIB, b"flashed" + os.urandom(MIB))

    def machine() -> Any:
        return with_uboot(board(disk={"size": "8M", "path": str(tmp_path / "disk.img")}))

    with serve(machine()) as client:
        first = client.qemu.flasher.flash(source)
        assert first.changed and first.target == "root"
        boot_to_prompt(client)
        assert first_word(client) == int.from_bytes(b"flas", "little")
        client.qemu.power.off()
        assert not client.qemu.flasher.flash(source).changed, "the guest read, but did not write"
    disk = tmp_path / "disk.img"
    assert disk.stat().st_size == 8 * MIB
    before = disk.stat().st_mtime_ns
    with serve(machine()) as client:
        again = client.qemu.flasher.flash(source)
        assert not again.changed and again.written_bytes == 0
        assert disk.stat().st_mtime_ns == before
        boot_to_prompt(client)
        write_first_block(client, 0x55)
        client.qemu.power.off()
        repaired = client.qemu.flasher.flash(source)
        assert repaired.changed, "what the guest wrote is noticed"
        boot_to_prompt(client)
        assert first_word(client) == int.from_bytes(b"flas", "little")


def test_image_larger_than_the_disk_is_refused_before_the_first_write(serving: Serving, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    client = serving(board(disk={"size": "4M", "path": str(disk)}))
    with pytest.raises(Exception, match=r"image is 5.0 MiB, target \"root\" of driver flasher holds 4.0 MiB"):
        client.flasher.flash(image(tmp_path / "big.img", 5 * MIB))
    assert not disk.exists() or not any(disk.read_bytes())


def test_partition_names_are_checked(serving: Serving, tmp_path: Path) -> None:
    client = serving(board())
    assert [t.name for t in client.flasher.targets()] == ["root", "bios", "OVMF_CODE.fd", "OVMF_VARS.fd"]
    with pytest.raises(Exception, match="root, bios, OVMF_CODE.fd, OVMF_VARS.fd"):
        client.flasher.flash(image(tmp_path / "x", MIB), target="../../etc/passwd")


def test_flashed_firmware_is_booted_and_the_golden_one_stays(serving: Serving, tmp_path: Path) -> None:
    golden = tmp_path / "u-boot.bin"
    golden.write_bytes(UBOOT.read_bytes())
    patched = tmp_path / "patched.bin"
    patched.write_bytes(UBOOT.read_bytes().replace(b"U-Boot 2023", b"U-Boot 2099"))
    before = fingerprint(golden)
    client = serving(board(default_partitions={"bios": golden}))
    client.flasher.flash(patched, target="bios")
    client.power.on()
    wait_console(client, rb"U-Boot 2099")
    client.power.off()
    assert fingerprint(golden) == before


def test_disk_grows_but_never_shrinks(serving: Serving, tmp_path: Path) -> None:
    client = serving(with_uboot(board(disk={"size": "4M", "path": str(tmp_path / "disk")})))
    boot_to_prompt(client)
    with pytest.raises(ValueError, match="holds 4.0 MiB and cannot shrink to 2.0 MiB"):
        client.qemu.set_disk_size("2M")
    client.qemu.set_disk_size("12M")
    boot_to_prompt(client)
    assert any("Capacity: 12.0 MB" in line for line in run(client, "virtio info"))


def test_disk_that_outgrew_its_configuration_is_refused_and_left_alone(tmp_path: Path) -> None:
    disk = image(tmp_path / "disk", 8 * MIB)
    before = fingerprint(disk)
    with served(board(disk={"size": "4M", "path": str(disk)})) as client:
        with pytest.raises(ValueError, match="holds 8.0 MiB and cannot shrink to 4.0 MiB"):
            client.power.on()
        assert client.power.status() == "off"
    golden = image(tmp_path / "golden", 8 * MIB)
    with (
        served(board(default_partitions={"root": golden}, disk_size="4M")) as client,
        pytest.raises(ValueError, match="holds 8.0 MiB and cannot shrink to 4.0 MiB"),
    ):
        client.power.on()
    assert fingerprint(disk) == before


def test_disk_larger_than_the_free_space_is_refused(serving: Serving, tmp_path: Path) -> None:
    client = serving(board(disk={"size": "4M", "path": str(tmp_path / "disk")}))
    with pytest.raises(ValueError, match=r"cannot grow by .*TiB: only .* free"):
        client.set_disk_size("9000T")


def test_flash_is_refused_while_the_machine_runs(serving: Serving, tmp_path: Path) -> None:
    client = serving(board(disk_size="4M"))
    client.power.on()
    with pytest.raises(Exception, match="machine is running; power it off first"):
        client.flasher.flash(image(tmp_path / "x", MIB))
    with pytest.raises(Exception, match="machine is running; power it off first"):
        client.flasher.dump(tmp_path / "out")
    client.power.off()
    assert client.flasher.flash(tmp_path / "x").changed


def test_power_on_is_refused_while_a_flash_is_under_way(serving: Serving) -> None:
    driver = board(disk_size="4M")
    client = serving(driver)
    with driver.exclusive("write root"):
        with pytest.raises(DriverError, match="cannot power on: 'write root' is not finished"):
            client.power.on()
        with pytest.raises(DriverError, match="busy with 'write root'"), driver.exclusive("write bios"):
            pass
    client.power.on()
    assert client.power.status() == "on"


def test_two_exporters_do_not_share_a_board(tmp_path: Path) -> None:
    config = {"disk": {"size": "4M"}, "state_dir": str(tmp_path / "state")}
    with served(board(**config)) as first:
        first.power.on()
        with served(board(**config)) as second:
            with pytest.raises(DriverError, match=rf"in use by another exporter \(pid {os.getpid()}\)"):
                second.power.on()
            assert second.power.status() == "off"
        assert first.power.status() == "on"
    with served(board(**config)) as third:
        third.power.on()


def test_flashed_image_may_not_pull_in_files_of_the_exporter(serving: Serving, tmp_path: Path) -> None:
    secret = image(tmp_path / "secret", MIB, b"secret")
    evil = tmp_path / "evil.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret, evil], check=True)
    client = serving(with_uboot(board()))
    with pytest.raises(Exception, match=r"refers to another file .*flash a complete image"):
        client.qemu.flasher.flash(evil)
    boot_to_prompt_without_disk(client)


def boot_to_prompt_without_disk(client: Any) -> None:
    client.uboot.call("reboot_to_prompt", 0, 30)
    result = client.uboot.call("run", "virtio scan; virtio info")
    assert not any("Capacity" in line for line in result["lines"]), "the refused image is not used"


def test_raw_disk_that_the_guest_made_look_like_qcow2_stays_raw(tmp_path: Path) -> None:
    """Guessing the format again would let a guest open any file of the host as backing file."""
    secret = image(tmp_path / "secret", MIB, b"secret")
    header = tmp_path / "header.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret, header], check=True)
    disk = tmp_path / "disk"
    with serve(with_uboot(board(disk={"size": "4M", "path": str(disk)}))) as client:
        client.qemu.power.on()
        client.qemu.power.off()
        with open(disk, "r+b") as file:  # as the guest would, block by block
            file.write(header.read_bytes()[: 64 << 10])
        boot_to_prompt(client)
        assert first_word(client) == int.from_bytes(b"QFI\xfb", "little"), "the guest sees its own bytes"


def test_flashed_qcow2_is_booted_as_such(serving: Serving, tmp_path: Path) -> None:
    raw = image(tmp_path / "image", 4 * MIB, b"inside")
    packed = tmp_path / "image.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, packed], check=True)
    client = serving(with_uboot(board()))
    client.qemu.flasher.flash(packed)
    boot_to_prompt(client)
    assert first_word(client) == int.from_bytes(b"insi", "little")
    client.qemu.power.off()
    client.qemu.flasher.flash(raw)
    boot_to_prompt(client)
    assert first_word(client) == int.from_bytes(b"insi", "little") and "Capacity: 4.0 MB" in str(
        run(client, "virtio info")
    )


def test_dump_gives_the_disk_as_the_guest_left_it(serving: Serving, tmp_path: Path) -> None:
    golden = image(tmp_path / "golden", 2 * MIB)
    client = serving(with_uboot(board(default_partitions={"root": golden})))
    boot_to_prompt(client)
    write_first_block(client, 0x4242)
    client.qemu.power.off()
    client.qemu.flasher.dump(tmp_path / "out")
    out = (tmp_path / "out").read_bytes()
    assert len(out) == 2 * MIB and out[:4] == b"\x42\x42\0\0" and not any(out[512:])
    assert golden.read_bytes()[:6] == b"golden"


def test_stopping_the_session_in_mid_flash_lets_the_board_go(tmp_path: Path) -> None:
    config = {"disk": {"size": "64M"}, "state_dir": str(tmp_path / "state")}
    driver = board(**config)
    source = tmp_path / "image"
    source.write_bytes(os.urandom(48 * MIB))
    started = threading.Event()

    def flash(client: Any) -> None:
        with pytest.raises(Exception):  # noqa: B017 - however it is told, it does not succeed
            client.flasher.flash(source, progress=lambda _: started.set())

    with served(driver) as client:
        worker = threading.Thread(target=flash, args=(client,))
        worker.start()
        assert started.wait(20)
        driver.close()
    worker.join(10)
    assert not worker.is_alive()
    with served(board(**config)) as client:
        assert client.flasher.flash(source).changed, "half an image is never taken for a whole one"


def test_default_place_of_a_kept_disk_needs_an_exporter_configuration() -> None:
    with pytest.raises(Exception, match="set disk.path or state_dir"):
        board(disk={"size": "4M"})


def test_transfer_of_the_exporter_may_take_flash_timeout_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Driver, "resource", lambda self, handle, timeout=7200: (handle, timeout))
    flasher = board(flash_timeout=77).children["flasher"]
    assert flasher.resource("handle") == ("handle", 77) and flasher.resource("handle", 5) == ("handle", 5)
