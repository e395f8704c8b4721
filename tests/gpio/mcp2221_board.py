# SPDX-License-Identifier: Apache-2.0
"""Fake: a Microchip MCP2221 (USB to UART and I2C bridge with four GPIO lines), as far as its GPIO goes.

Written from Microchip's data sheet DS20005565. The kernel's driver (hid-mcp2221) is the real one; it has no interrupts.
"""

from __future__ import annotations

import threading

from guest_machine import Guest
from usbip import USBDevice
from usbip.classes.device.hid import HID

#: Vendor-defined reports of 64 bytes both ways.
_DESCRIPTOR = bytes.fromhex("0600ff0901a101150026ff007508954009018102954009019102c0")


class Mcp2221:
    """The chip. levels: what its pins are at; outputs: which of them it drives."""

    def __init__(self, serial: str) -> None:
        self.serial = serial
        self.levels = [False] * 4
        self.outputs = [False] * 4
        self._lock = threading.Lock()
        self.usb = USBDevice(0x04D8, 0x00DD, manufacturer="Microchip", product="MCP2221", serial=serial)
        self._hid = HID(_DESCRIPTOR, in_interval=1, out_ep=0x01, out_interval=1, on_output=self._obey)
        self.usb.add(self._hid)

    def _obey(self, report: bytes) -> None:
        answer = bytearray(64)
        answer[0] = report[0]
        with self._lock:
            match report[0]:
                case 0x50:
                    answer[2:18] = report[2:18]
                    for line in range(4):
                        change, value, turn, is_input = report[2 + 4 * line : 6 + 4 * line]
                        if turn:
                            self.outputs[line] = not is_input
                        if change:
                            self.levels[line] = bool(value)
                case 0x51:
                    for line in range(4):
                        # In the order in which Linux reads them, which is not the data sheet's.
                        answer[2 + 2 * line : 4 + 2 * line] = bytes([not self.outputs[line], self.levels[line]])
                case 0x10:
                    answer[3] = 0x20  # the bus speed was set
                case _:
                    answer[1] = 1  # not supported
        self._hid.send_report(bytes(answer))

    def drive(self, line: int, high: bool) -> None:
        """Something outside drives a line."""
        with self._lock:
            self.levels[line] = high

    def device(self, guest: Guest) -> str:
        """The chip's device in the guest, once it is there."""
        each = "for d in /sys/bus/gpio/devices/*; do"
        mine = f"grep -q HID_UNIQ={self.serial} $(readlink -f $d/..)/uevent"
        find = f"{each} if {mine}; then echo /dev/${{d##*/}}; fi; done"
        return guest.shell(f'until [ "$({find})" ]; do sleep 0.1; done; udevadm settle; {find}').strip()
