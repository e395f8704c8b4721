# SPDX-License-Identifier: Apache-2.0
"""The volume as a real USB disk with FAT, in the test guest: the device leaves the bus while the copy is flushed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_pico import make_uf2
from usb_lab import PICO_VOLUME, UsbLab

pytestmark = pytest.mark.xdist_group("guest-usb")  # disks of the guest are one for everybody


def test_a_board_that_leaves_the_bus_during_the_flush_has_taken_the_firmware(usb_lab: UsbLab, tmp_path: Path) -> None:
    guest = usb_lab.guest
    guest.modprobe("dummy_hcd", "libcomposite", "usb_f_mass_storage", "usb-storage", "vfat", "nls_cp437", "nls_ascii")
    name = guest.name("pico")
    image, mount = f"/run/tmp/{name}", PICO_VOLUME
    guest.shell("mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config")
    local = tmp_path / "volume.img"
    local.write_bytes(bytes(4 << 20))
    tools = {**os.environ, "MTOOLS_SKIP_CHECK": "1"}
    subprocess.run(
        ["mformat", "-i", local, "-v", "RPI-RP2", "-T", "8192", "-h", "64", "-s", "32", "::"], check=True, env=tools
    )
    info = tmp_path / "INFO_UF2.TXT"
    info.write_text("UF2 Bootloader v3.0\r\nModel: Raspberry Pi RP2\r\nBoard-ID: RPI-RP2\r\n")
    subprocess.run(["mcopy", "-i", local, info, "::INFO_UF2.TXT"], check=True, env=tools)
    guest.put(image, local.read_bytes())
    guest.put(f"{image}.py", Path(__file__).with_name("pico_gadget.py").read_bytes())
    uf2 = tmp_path / "app.uf2"
    uf2.write_bytes(make_uf2(2000))
    data = uf2.read_bytes()
    wanted = hashlib.sha256(b"".join(data[512 * n + 32 : 512 * n + 288] for n in range(2000))).hexdigest()
    is_it = "udevadm info -q property $d | grep -q E0C9125B0D9B"
    find = f"for d in /sys/block/sd*; do {is_it} && echo /dev/${{d##*/}}; done; true"
    with guest.start([sys.executable, "-IS", f"{image}.py", image]) as board:
        board.wait_for("plugged")
        deadline = time.monotonic() + 30
        while not (disk := guest.shell(find).strip()):
            assert time.monotonic() < deadline, guest.shell("dmesg | tail -20")
            time.sleep(0.1)
        guest.shell(f"mkdir -p {mount} && mount -t vfat {disk} {mount}")
        try:
            with usb_lab.exporter.client() as client:
                assert client.pico.bootloader_info()["Board-ID"] == "RPI-RP2"
                result = client.pico.flash(uf2)
            assert (result.changed, result.size) == (True, len(data))
            board.wait(30)
            assert f"took {wanted}" in board.stdout.decode()
        finally:
            guest.shell(f"umount -l {mount}; rm -rf {image} {image}.*")
