# SPDX-License-Identifier: Apache-2.0
"""The DUTLink board's USB control protocol, and what all of its drivers have in common.

Facts from the firmware (github.com/jumpstarter-dev/dutlink-firmware, application/src/control.rs): vendor requests to
the interface of class ff/01/01, wIndex its number. Request 0 (out) makes the board latch its measurements, 1 (out) is
the power, 2 (out) the storage, with the action in wValue; 4 (in) reads a text: 1 is "1.05W 5.00V 0.21A". A request the
firmware does not know is stalled. The board tells neither the position of its switches nor that it moved them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Final

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.common.usb import UsbDevice, UsbKind, usb_opened
from jumpstarter.driver import Driver
from jumpstarter_driver_power.common import PowerReading
from jumpstarter_driver_power.switched import PowerError

__all__ = ["DUTLINK", "DutlinkConfig"]

DUTLINK: Final = UsbKind(name="DUTLink", ids=[(0x2B23, 0x1012)])
_CLASS: Final = (0xFF, 0x01, 0x01)
_OUT, _IN = 0x41, 0xC1  # vendor requests, recipient interface
_REFRESH, _POWER, _STORAGE, _READ = 0, 1, 2, 4
_POWER_ACTIONS: Final = {"off": 0, "on": 1, "force-off": 2, "force-on": 3, "rescue": 4}
_STORAGE_ACTIONS: Final = {"off": 0, "host": 1, "dut": 2}
_READING_POWER: Final = 1
_READING_LENGTH: Final = 512
_READING: Final = re.compile(r"(-?\d+(?:\.\d+)?)W (-?\d+(?:\.\d+)?)V (-?\d+(?:\.\d+)?)A")


@dataclass(kw_only=True)
class DutlinkConfig(Driver):
    """Which board. serial: its USB serial number; not needed while there is only one.

    timeout_s: seconds a request may take; the board answers a power sequence only when that is through.
    """

    needs: ClassVar[tuple[str, ...]] = ("usb",)

    serial: str | None = None
    timeout_s: float = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        self.serial = str(self.serial) if self.serial is not None else None
        if not 0 < self.timeout_s <= 600:
            raise ConfigurationError(f"timeout_s is {self.timeout_s:g}, must be more than 0 and at most 600 seconds")

    @property
    def target(self) -> str:
        """The board, for messages."""
        return DUTLINK.where(self.serial)

    def set_power(self, action: str) -> None:
        """Switch the power; blocking. action: off, on, force-off, force-on or rescue."""
        with self._control() as (device, number):
            device.control_out(_OUT, _POWER, _POWER_ACTIONS[action], number, f"switch the power to {action}")

    def set_storage(self, action: str) -> None:
        """Switch the storage; blocking. action: off, host or dut."""
        with self._control() as (device, number):
            device.control_out(_OUT, _STORAGE, _STORAGE_ACTIONS[action], number, f"switch the storage to {action}")

    def measure(self) -> PowerReading:
        """Volts and amperes now; blocking."""
        with self._control() as (device, number):
            device.control_out(_OUT, _REFRESH, 0, number, "measure")
            text = device.control_in(_IN, _READ, _READING_POWER, number, _READING_LENGTH, "tell what it measured")
        match = _READING.fullmatch(text.decode("ascii", "replace").strip("\0 \r\n"))
        if match is None:
            raise PowerError(f"{self.target}: measured {text[:64]!r}, which is not watts, volts and amperes")
        return PowerReading(voltage=float(match[2]), current=float(match[3]))

    def true_serial(self) -> str:
        """Serial number of the board, when the configuration leaves it open; blocking."""
        with usb_opened(DUTLINK, self.serial, self.timeout_s) as device:
            return device.serial

    @contextmanager
    def _control(self) -> Iterator[tuple[UsbDevice, int]]:
        with usb_opened(DUTLINK, self.serial, self.timeout_s) as device:
            yield device, device.interface(*_CLASS)
