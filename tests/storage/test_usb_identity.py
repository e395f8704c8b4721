# SPDX-License-Identifier: Apache-2.0
"""A USB card reader is known by the serial of its USB device. The sysfs tree is a fake: there is no USB bus here."""

from __future__ import annotations

from pathlib import Path

import pytest

from jumpstarter_driver_storage import blockdev


def test_serial_of_a_card_reader_is_that_of_its_usb_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usb = tmp_path / "devices" / "pci0" / "usb1" / "1-2"
    scsi = usb / "1-2:1.0" / "host6" / "target6:0:0" / "6:0:0:0"
    disk = scsi / "block" / "sda"
    disk.mkdir(parents=True)
    (usb / "idVendor").write_text("0424\n")
    (usb / "serial").write_text("000000225001\n")
    (scsi / "model").write_text("Ultra HS-COMBO\n")
    (disk / "device").symlink_to(scsi)
    block = tmp_path / "block"
    block.mkdir()
    (block / "8:0").symlink_to(disk)
    monkeypatch.setattr(blockdev, "_SYS", block)
    assert blockdev.identity((8, 0)) == {"serial": "000000225001", "model": "Ultra HS-COMBO"}
