# SPDX-License-Identifier: Apache-2.0
"""Emulated USB devices in the test guest: its kernel attaches them over USB/IP (vhci-hcd), its udev names them."""

from __future__ import annotations

import threading
from typing import Any

from guest_machine import HOST, Guest
from usb_boards import Stick
from usb_bus import Bus


class GuestUsb:
    """The guest's virtual USB host controller, with devices that are plugged in and pulled out."""

    def __init__(self, guest: Guest, bus: Bus) -> None:
        self.guest, self.bus = guest, bus
        self._turn = threading.Lock()  # usbip looks for a free port and then takes it
        guest.modprobe("vhci-hcd", "cdc_acm", "sd_mod", "usbhid")
        guest.run(["modprobe", "usb_storage", "delay_use=0"])

    def plug(self, device: Any) -> None:
        """Plug in, and wait until the kernel has asked it who it is and udev has dealt with it."""
        serial = device._strings[device.iSerialNumber]
        with self._turn:
            name = self.bus.plug(device)
            # usbip refuses to work while the kernel is still busy with the device before.
            ready = "until usbip port >/dev/null 2>&1; do sleep 0.1; done"
            attach = f"usbip --tcp-port {self.bus.port} attach -r {HOST} -b {name}"
            there = f"until cat /sys/bus/usb/devices/*/serial | grep -qx {serial}; do sleep 0.1; done"
            self.guest.shell(f"{ready}; {attach}; {ready}; {there}; udevadm settle")

    def plug_disk(self, stick: Stick) -> None:
        """Plug mass storage in, and wait for its disk."""
        self.plug(stick.usb)
        self.guest.shell(f"until [ -e {stick.by_id} ]; do sleep 0.1; done")

    def unplug(self, device: Any) -> None:
        """Pull out."""
        with self._turn:
            self.bus.unplug(device)

    def unplug_all(self) -> None:
        """Pull everything of this bus out, and wait until the guest's kernel has let go of it. Others' devices stay."""
        devices = list(self.bus.devices.values())
        for device in devices:
            self.unplug(device)
        for device in devices:
            serial = device._strings[device.iSerialNumber]
            gone = f"while cat /sys/bus/usb/devices/*/serial 2>/dev/null | grep -qx {serial}; do sleep 0.1; done"
            self.guest.shell(gone, timeout=60)
