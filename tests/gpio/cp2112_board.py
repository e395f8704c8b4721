# SPDX-License-Identifier: Apache-2.0
"""Fake: a Silicon Labs CP2112 (USB to SMBus bridge with eight GPIO lines), byte for byte at its USB interface.

Written from Silicon Labs' application note AN495. What is fake is the chip; the kernel's driver (hid-cp2112), its
/dev/gpiochip and its interrupts are the real ones. `levels` is what the pins of the world outside are at.
"""

from __future__ import annotations

import threading
from typing import Any

from guest_machine import Guest
from usbip import USBDevice
from usbip.classes.device.hid import HID
from usbip.core import Stall

_CONFIG, _GET, _SET, _VERSION, _SMBUS = 2, 3, 4, 5, 6

#: Vendor-defined page: feature reports of four bytes behind ids 1 to 6, enough for the kernel to take it for a HID.
_DESCRIPTOR = (
    bytes.fromhex("0600ff0901a101150026ff007508")
    + b"".join(bytes([0x85, number, 0x95, 4, 0x09, 1, 0xB1, 2]) for number in range(1, 7))
    + bytes.fromhex("8510953d09018102")
    + b"\xc0"
)


class Cp2112:
    """The chip. outputs: bits of lines that are outputs; latch: what is written to them; push_pull: bits of those."""

    def __init__(self, serial: str) -> None:
        self.serial = serial
        self.outputs = 0
        self.push_pull = 0
        self.latch = 0xFF
        self.outside = 0x00
        self.stuck = 0
        self.reads = 0
        self.writes: list[tuple[int, int]] = []
        self._changed = threading.Condition()
        self.usb = USBDevice(0x10C4, 0xEA90, manufacturer="Silicon Laboratories", product="CP2112", serial=serial)
        self._smbus = bytes.fromhex("06000186a0020000000000000000")
        hid = HID(_DESCRIPTOR, in_mps=64, get_report=self._report, set_report=self._take, out_ep=0x01, out_mps=64)
        self.usb.add(hid)

    @property
    def levels(self) -> int:
        """What a voltmeter would say: of outputs what is driven, of others what is outside. A stuck line stays low."""
        driven = self.outputs & (self.push_pull | ~self.latch & 0xFF)
        return (self.latch & driven | self.outside & ~driven) & ~self.stuck & 0xFF

    def device(self, guest: Guest) -> str:
        """The chip's device in the guest, once it is there."""
        each = "for d in /sys/bus/gpio/devices/*; do"
        mine = f"grep -q HID_UNIQ={self.serial} $(readlink -f $d/..)/uevent"
        find = f"{each} if {mine}; then echo /dev/${{d##*/}}; fi; done"
        return guest.shell(f'until [ "$({find})" ]; do sleep 0.1; done; udevadm settle; {find}').strip()

    def drive(self, line: int, high: bool) -> None:
        """Something outside pulls a line."""
        with self._changed:
            self.outside = self.outside | 1 << line if high else self.outside & ~(1 << line)

    def wait_polled(self, timeout: float = 20) -> None:
        """Return when the kernel, which looks for edges by reading, has seen and reported what is there now."""
        with self._changed:
            enough = self.reads + 3
            assert self._changed.wait_for(lambda: self.reads >= enough, timeout)

    def wait_for(self, line: int, high: bool, timeout: float = 5) -> None:
        """Return when the line was driven so."""
        with self._changed:
            assert self._changed.wait_for(lambda: bool(self.levels >> line & 1) is high, timeout), bin(self.levels)

    def _report(self, kind: int, number: int, length: int) -> bytes:
        with self._changed:
            match number:
                case 2:
                    return bytes([_CONFIG, self.outputs, self.push_pull, 0, 0])
                case 3:
                    self.reads += 1
                    self._changed.notify_all()
                    return bytes([_GET, self.levels])
                case 5:
                    return bytes([_VERSION, 0x0C, 0x03])
                case 6:
                    return self._smbus
                case 0x20:
                    return b"\x20\x00"
        raise Stall

    def _take(self, kind: int, number: int, payload: Any) -> None:
        payload = bytes(payload)
        with self._changed:
            match number:
                case 2:
                    self.outputs, self.push_pull = payload[1], payload[2]
                case 4:
                    value, mask = payload[1], payload[2]
                    self.latch = self.latch & ~mask & 0xFF | value & mask
                    self.writes.append((value & mask, mask))
                case 6:
                    self._smbus = payload
                case _:
                    return
            self._changed.notify_all()
