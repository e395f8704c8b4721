# SPDX-License-Identifier: Apache-2.0
"""All emulated boards in the test guest, and an exporter there that has drivers for them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from guest_exporter import GuestExporter, guest_exporter
from guest_machine import Guest
from usb_boards import MIB, Card, Dutlink, SDWire, Stick, Ykush
from usb_bus import Bus
from usb_guest import GuestUsb

#: Where the exporter looks for the volume of a Pico in its bootloader; a test plugs one in.
PICO_VOLUME = "/run/tmp/pico-volume"


@dataclass
class UsbLab:
    """The boards, the guest they are plugged into, and an exporter with their drivers there."""

    usb: GuestUsb
    ykush: Ykush
    ykush3: Ykush
    sdwire: SDWire
    dutlink: Dutlink
    stick: Stick
    exporter: GuestExporter

    @property
    def guest(self) -> Guest:
        return self.usb.guest

    def j(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run `j` on this machine."""
        return subprocess.run(
            [Path(sys.executable).with_name("j"), *args],
            env={**os.environ, **self.exporter.environment}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip


@contextmanager
def plugged_lab(guest: Guest) -> Iterator[UsbLab]:
    """Plug everything in, serve it, and pull it out again."""
    bus = Bus()
    usb = GuestUsb(guest, bus)
    card = Card(3 * MIB)
    stick = Stick(card, "dl-stick")

    def switched(side: str) -> None:
        if side == "host":
            usb.plug(stick.usb)
        else:
            usb.unplug(stick.usb)

    ykush, ykush3, sdwire = Ykush("YK1"), Ykush("Y3-1", 0xF11B), SDWire("sdw1", card=Card(3 * MIB))
    dutlink = Dutlink("dl1", card=card, on_storage=switched)
    export = {
        "ykush": {"type": "jumpstarter_driver_yepkit.driver.Ykush", "config": {"serial": "YK1", "port": "1"}},
        "ykush3": {"type": "jumpstarter_driver_yepkit.driver.Ykush", "config": {"serial": "Y3-1", "port": "1"}},
        "card": {"type": "jumpstarter_driver_sdwire.driver.SDWire", "config": {"storage_timeout": 20}},
        "dut": {
            "type": "jumpstarter_driver_dutlink.driver.Dutlink",
            "config": {"serial": "dl1", "storage_device": stick.by_id, "storage_timeout": 20},
        },
        "pico": {
            "type": "jumpstarter_driver_pi_pico.driver.PiPicoFlasher",
            "config": {"volume": PICO_VOLUME, "bootloader_wait_seconds": 20, "settle_seconds": 0.5},
        },
    }
    try:
        for device in (ykush.usb, ykush3.usb, sdwire.usb, sdwire.stick.usb, dutlink.usb):
            usb.plug(device)
        with guest_exporter(guest, export) as exporter:
            yield UsbLab(usb, ykush, ykush3, sdwire, dutlink, stick, exporter)
    finally:
        usb.unplug_all()
        bus.close()
