# SPDX-License-Identifier: Apache-2.0
"""What the Linux kernel made of a USB device, from sysfs: its hub, block devices and terminals. Needs no udev."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jumpstarter.common.usb import UsbKind

__all__ = ["UsbBlockDevice", "UsbTerminal", "block_devices_on_hub_of", "places_of", "terminals_of"]

_DEVICES = Path("/sys/bus/usb/devices")
_TERMINALS = Path("/sys/class/tty")


@dataclass(frozen=True)
class UsbBlockDevice:
    """A disk behind USB. path: /dev/...; usb: sysfs name of the device ("1-1.1"); ids: its vendor and product id."""

    path: str
    usb: str
    ids: tuple[int, int]
    serial: str

    @property
    def on_root_hub(self) -> bool:
        """Whether it is plugged into the machine itself, not into a hub."""
        return "." not in self.usb

    def __str__(self) -> str:
        return f"{self.path} (USB {self.usb}, {self.ids[0]:04x}:{self.ids[1]:04x})"


@dataclass(frozen=True)
class UsbTerminal:
    """A terminal behind USB. path: /dev/...; interface: number of the USB interface it belongs to."""

    path: str
    interface: int


def places_of(kind: UsbKind, serial: str | None) -> list[tuple[int, int]]:
    """Bus and address of every device of *kind* (with that serial number). Asks no device: the kernel has asked."""
    found = []
    for device in sorted(_DEVICES.iterdir()) if _DEVICES.exists() else ():
        ids, place = _ids(device), _place(device)
        if ids is None or place is None or serial not in (None, _read(device / "serial")):
            continue
        fits = ids in kind.ids and kind.product in (None, _read(device / "product"))
        if fits or (serial and ids in kind.serial_ids):
            found.append(place)
    return found


def block_devices_on_hub_of(place: tuple[int, int]) -> list[UsbBlockDevice]:
    """Disks plugged into the same hub as the USB device at *place* (bus and address), the device itself included."""
    device = _find(place)
    if device is None:
        return []
    found = []
    for sibling in _siblings(device.parent):
        ids = _ids(sibling)
        if ids is None:
            continue  # an attribute or an interface of the hub
        for name in _disks_of(sibling):
            found.append(UsbBlockDevice(f"/dev/{name}", sibling.name, ids, _read(sibling / "serial")))
    return found


def terminals_of(ids: tuple[int, int], serial: str) -> list[UsbTerminal]:
    """Terminals of the USB device with these ids and this serial number."""
    found = []
    for terminal in sorted(_TERMINALS.iterdir()) if _TERMINALS.exists() else ():
        if not (terminal / "device").exists():
            continue  # not hardware
        interface = (terminal / "device").resolve()
        for part in (interface, *interface.parents):
            if (known := _ids(part)) is not None:
                if known == ids and _read(part / "serial") == serial:
                    found.append(UsbTerminal(f"/dev/{terminal.name}", _number(interface)))
                break
    return found


def _find(place: tuple[int, int]) -> Path | None:
    for device in _DEVICES.iterdir() if _DEVICES.exists() else ():
        if _place(device) == place:
            return device.resolve()
    return None


def _siblings(hub: Path) -> list[Path]:
    try:
        return sorted(hub.iterdir())
    except OSError:  # the hub was unplugged at this moment
        return []


def _disks_of(device: Path) -> Iterator[str]:
    """Names of the disks below a USB device, not those of devices plugged into it when it is a hub itself."""
    for folder, names, _ in os.walk(device):
        here = Path(folder)
        names[:] = [name for name in names if not (here / name / "idVendor").exists()]
        if here.name == "block":
            yield from sorted(names)
            names.clear()


def _ids(device: Path) -> tuple[int, int] | None:
    """Vendor and product id; None for what is no USB device, or was one until this moment."""
    texts = _read(device / "idVendor"), _read(device / "idProduct")
    return (int(texts[0], 16), int(texts[1], 16)) if all(texts) else None


def _place(device: Path) -> tuple[int, int] | None:
    texts = _read(device / "busnum"), _read(device / "devnum")
    return (int(texts[0]), int(texts[1])) if all(texts) else None


def _number(interface: Path) -> int:
    for part in (interface, *interface.parents):
        if text := _read(part / "bInterfaceNumber"):
            return int(text, 16)
    return -1


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:  # this kind of device has no such attribute, or it was just unplugged
        return ""
