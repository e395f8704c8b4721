# SPDX-License-Identifier: Apache-2.0
"""SDWire: an SD card that is either in a card reader of the exporter host or in the device under test.

Protocol facts: the switch hangs on pin CBUS0 of an FTDI FT200X, driven by vendor requests to the device as FTDI's chips
have them: 0x0B sets the bit mode (0x20: CBUS pins; high nibble of the mask: outputs, low nibble: levels), 0x0C reads
the pins. CBUS0 is high when the card is connected to the host. Card reader and FT200X sit on a hub of the board.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from jumpstarter.common.usb import UsbDevice, UsbKind, usb_opened
from jumpstarter.common.usb_sysfs import UsbBlockDevice, block_devices_on_hub_of, places_of
from jumpstarter_driver_storage.errors import StorageRefused
from jumpstarter_driver_storage.mux import Side, StorageMuxFlasherInterface
from jumpstarter_driver_storage.removable import RemovableMux
from jumpstarter_driver_storage.target import Target

__all__ = ["SDWire"]

_KIND: Final = UsbKind(
    name="SDWire",
    ids=[(0x04E8, 0x6001)],
    product="sd-wire",
    serial_ids=[(0x0403, 0x6015)],  # an FT200X as FTDI sells it: a board whose EEPROM was never written
)
_READER: Final = (0x0424, 0x4050)
_TO_DEVICE, _FROM_DEVICE = 0x40, 0xC0  # vendor requests, recipient device
_SET_BIT_MODE, _READ_PINS = 0x0B, 0x0C
_CBUS: Final = {"host": 0x20F1, "dut": 0x20F0}
_USB_TIMEOUT: Final = 5.0
_SETTLE: Final = 1.0  # seconds the pin may take; it takes microseconds


@dataclass(kw_only=True)
class SDWire(StorageMuxFlasherInterface, RemovableMux):
    """The card of one SDWire.

    serial: USB serial number of the board (its FT200X); not needed while there is only one. storage_device: device
    node of the card reader; not needed while it is the only disk on the board's hub. The rest: see `RemovableMux`.

    An SDWire has two positions only: ``off`` leaves the card with the exporter host, as Jumpstarter's driver does.
    """

    needs: ClassVar[tuple[str, ...]] = ("usb",)
    # A reader may be slow to notice that its card is gone; the pin tells where the card is.
    leaving_is_certain: ClassVar[bool] = False
    away: ClassVar[Side] = "dut"  # there is no third position

    serial: str | None = None
    storage_device: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.serial = str(self.serial) if self.serial is not None else None
        if self.storage_device is not None:
            Target.parse("storage", {"path": self.storage_device, "kind": "block"})

    @property
    def target(self) -> str:
        """The board, for messages."""
        return _KIND.where(self.serial)

    async def connect_to(self, side: Side) -> None:
        """As the base; the switch knows no third position."""
        await super().connect_to("host" if side == "off" else side)

    async def connected_to(self) -> Side:
        """What the pin says."""
        return await asyncio.to_thread(self._query)

    def select(self, side: Side) -> None:
        """Drive the pin and read it back."""
        assert side in _CBUS
        with usb_opened(_KIND, self.serial, _USB_TIMEOUT) as device:
            name = "exporter host" if side == "host" else "DUT"
            device.control_out(_TO_DEVICE, _SET_BIT_MODE, _CBUS[side], 0, f"switch the card to the {name}")
            deadline = time.monotonic() + _SETTLE
            while (found := _read_side(device)) != side:
                if time.monotonic() > deadline:
                    raise OSError(
                        errno.EIO,
                        f"{device.name}: was told to switch the card to the {name} and still reports {found}: "
                        "its EEPROM does not let pin CBUS0 be driven (sd-mux-ctrl --init sets that)",
                    )
                time.sleep(0.05)

    def storage_path(self) -> str:
        """The configured device node, else that of the disk on the board's hub."""
        if self.storage_device is not None:
            return self.storage_device
        found = self._readers()
        if len(found) == 1:
            return found[0].path
        if found:
            raise StorageRefused(self._unclear(found), code="mismatch")
        raise FileNotFoundError(errno.ENOENT, self._unclear(found))

    def storage_targets(self) -> Mapping[str, Target]:
        """The card, called ``storage``."""
        if self.storage_device is not None:
            return {"storage": Target.parse("storage", {"path": self.storage_device, "kind": "block"})}
        found = self._readers()
        if len(found) != 1:
            # Whoever asks for the targets shall see what is the matter, and nothing can be written to such a path.
            return {"storage": Target(path=f"/dev/({self._unclear(found)})", kind="block")}
        identity = {"serial": found[0].serial} if found[0].serial else {}
        return {"storage": Target(path=found[0].path, kind="block", identity=identity)}

    def storage_is_amiss(self) -> bool:
        """The card reader stays when the card goes, so there must be exactly one."""
        return self.storage_device is None and len(self._readers()) != 1

    def storage_is_certain(self) -> bool:
        """The card reader that these boards have, on the hub of this one, is no other disk."""
        return any(
            disk.ids == _READER and disk.path == os.path.realpath(self.storage_device or disk.path)
            for disk in self._readers()
        )

    def _readers(self) -> list[UsbBlockDevice]:
        """Disks on the hub of the board; the known card reader alone when others are plugged in there too."""
        places = places_of(_KIND, self.serial)
        found = block_devices_on_hub_of(places[0]) if len(places) == 1 else []
        # What is plugged into the machine itself has nothing to do with a board, which brings a hub.
        return [disk for disk in found if disk.ids == _READER] or [disk for disk in found if not disk.on_root_hub]

    def _unclear(self, found: list[UsbBlockDevice]) -> str:
        if not found:
            return f"the exporter host has no card reader beside {self.target}"
        disks = ", ".join(str(disk) for disk in found)
        return f"{len(found)} disks beside {self.target}, name one with storage_device: {disks}"

    def _query(self) -> Literal["host", "dut"]:
        with usb_opened(_KIND, self.serial, _USB_TIMEOUT) as device:
            return _read_side(device)


def _read_side(device: UsbDevice) -> Literal["host", "dut"]:
    pins = device.control_in(_FROM_DEVICE, _READ_PINS, 0, 0, 1, "tell where the card is")
    if len(pins) != 1:
        raise OSError(errno.EPROTO, f"{device.name}: does not tell where the card is: not an FT200X?")
    return "host" if pins[0] & 1 else "dut"
