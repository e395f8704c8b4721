# SPDX-License-Identifier: Apache-2.0
"""DUTLink: a board that switches a device's power, its storage and its console, driven over USB."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from jumpstarter.driver import export
from jumpstarter_driver_composite.driver import CompositeInterface
from jumpstarter_driver_dutlink.board import DUTLINK, DutlinkConfig
from jumpstarter_driver_dutlink.console import DutlinkSerial
from jumpstarter_driver_power.common import PowerReading
from jumpstarter_driver_power.driver import PowerInterface
from jumpstarter_driver_pyserial.driver import PySerial
from jumpstarter_driver_storage.mux import Side, StorageMuxFlasherInterface
from jumpstarter_driver_storage.removable import RemovableMux
from jumpstarter_driver_storage.target import Target

__all__ = ["Dutlink", "DutlinkConfig", "DutlinkPower", "DutlinkSerial", "DutlinkStorageMux"]

_INTERVAL = 1.0  # seconds between two readings


@dataclass(kw_only=True)
class DutlinkPower(PowerInterface, DutlinkConfig):
    """The power of the device under test.

    The board accepts a switch or refuses it, and does not tell its position: `status` is "unknown". Every call reaches
    the board; that it was asked for the same before says nothing about what has happened since.
    """

    @export
    def on(self) -> None:  # type: ignore[override]  # the interface allows either colour
        """Switch on, with the board's own sequence for it."""
        self.set_power("on")

    @export
    def off(self) -> None:  # type: ignore[override]
        """Switch off, with the board's own sequence for it."""
        self.set_power("off")

    @export
    def rescue(self) -> None:
        """Switch on into the rescue mode, with the board's sequence for it."""
        self.set_power("rescue")
        self.note_switched(True)

    @export(readonly=True)
    async def read(self) -> AsyncGenerator[PowerReading, None]:
        """Yield a reading at once and then one each second, for as long as somebody listens."""
        while True:
            yield await asyncio.to_thread(self.measure)
            await asyncio.sleep(_INTERVAL)


@dataclass(kw_only=True)
class DutlinkStorageMux(StorageMuxFlasherInterface, RemovableMux, DutlinkConfig):
    """The USB storage that the board connects to the exporter host, to the device under test, or to neither.

    storage_device: its device node on the exporter host; take the one below /dev/disk/by-id, which does not change.
    The rest: see `RemovableMux`. The board does not tell where the storage is, so it is looked for: it must appear on
    the exporter host after `host` and be gone after `dut` and `off`.
    """

    storage_device: str
    _target: Target = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._target = Target.parse("storage", {"path": self.storage_device, "kind": "block"})

    @property
    def target(self) -> str:
        """The storage, for messages."""
        return f"storage of {DUTLINK.where(self.serial)}"

    def select(self, side: Side) -> None:
        """Tell the board."""
        self.set_storage(side)

    def storage_path(self) -> str:
        """The configured device node."""
        return self._target.path

    def storage_targets(self) -> Mapping[str, Target]:
        """The storage, called ``storage``."""
        return {"storage": self._target}

    async def connected_to(self) -> Side:
        """The host when it can be read here, else what was switched last."""
        if await asyncio.to_thread(self.storage_there):
            return "host"
        return self._side if self._side in ("dut", "off") else "unknown"


@dataclass(kw_only=True)
class Dutlink(CompositeInterface, DutlinkConfig):
    """A whole board: children ``power``, ``storage`` and ``console``.

    storage_device, storage_timeout, storage_leeway, storage_fsync_timeout: see `DutlinkStorageMux`. alternate_console:
    serial port (or another url of `PySerial`) that is the device's console instead of the board's own; it may appear
    only when the device has power. baudrate: of the console.
    """

    driver_type: ClassVar[str] = "composite"

    storage_device: str
    alternate_console: str | None = None
    baudrate: int = 115200
    storage_timeout: float = 10
    storage_leeway: float = 0
    storage_fsync_timeout: float = 900

    def __post_init__(self) -> None:
        super().__post_init__()
        self.children["power"] = DutlinkPower(serial=self.serial, timeout_s=self.timeout_s)
        self.children["storage"] = DutlinkStorageMux(
            serial=self.serial,
            timeout_s=self.timeout_s,
            storage_device=self.storage_device,
            storage_timeout=self.storage_timeout,
            storage_leeway=self.storage_leeway,
            storage_fsync_timeout=self.storage_fsync_timeout,
        )
        if self.alternate_console is None:
            self.children["console"] = DutlinkSerial(
                serial=self.serial, timeout_s=self.timeout_s, baudrate=self.baudrate
            )
        else:
            self.children["console"] = PySerial(url=self.alternate_console, baudrate=self.baudrate, check_present=False)
