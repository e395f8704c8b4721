# SPDX-License-Identifier: GPL-3.0-or-later
"""jumpstarter.lab.flash through a board's own bootloader: the same task as for any other storage."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from benches import Bench

sys.path.insert(0, str(Path(__file__).parents[1] / "flashers"))

from flasher_boards import UBOOT, image, left_over, loopback, make_disk, sha256_of

SIZE = 3 << 20


def test_flash_through_u_boot_changes_the_board_once(bench: Callable[..., Bench]) -> None:
    made = bench({"dut": {"jumpstarter_exporter_config": "dut.yaml"}})
    disk = make_disk(made.folder)
    extra = ["-drive", f"if=none,id=target,format=raw,file={disk}", "-device", "nvme,serial=1,drive=target"]
    qemu = {
        "arch": "aarch64", "mem": "160M", "smp": 1, "vnc": False, "cloud_init": False, "powerdown_timeout": 0,
        "default_partitions": {"bios": str(UBOOT)}, "extra_args": extra,
    }  # fmt: skip
    tftp = {"root_dir": str(made.folder / "tftp"), "host": loopback(), "port": 69}
    flasher = {
        "flasher_bundle": None, "uboot_targets": {"disk": "nvme 0"}, "uboot_chunk": "1M", "power_wait": 0,
        "cache_dir": str(made.folder / "cache"), "state_dir": str(made.folder / "records"),
        "http_dir": str(made.folder / "http"),
    }  # fmt: skip
    made.config("dut", {
        "qemu": {"type": "jumpstarter_driver_qemu.driver.Qemu", "config": qemu},
        "storage": {
            "type": "jumpstarter_driver_flashers.driver.BaseFlasher",
            "config": flasher,
            "children": {
                "serial": {"ref": "qemu.console"},
                "power": {"ref": "qemu.power"},
                "tftp": {"type": "jumpstarter_driver_tftp.driver.Tftp", "config": tftp},
            },
        },
    })  # fmt: skip
    source = image(made.folder, SIZE)
    task = {"jumpstarter.lab.flash": {"src": str(source)}}
    played = made.run([{**task, "name": "Write it"}, {**task, "name": "Write it again"}])
    first, second = played.result("dut", -2), played.result("dut", -1)
    assert (first["changed"], first["verified"], first["target"], first["size"]) == (True, True, "disk", SIZE)
    assert first["sha256"] == sha256_of(source) == sha256_of(disk, SIZE)
    assert (second["changed"], second["verified"]) == (False, True)
    assert left_over(made.folder) == []
    made.wait_gone()
