# SPDX-License-Identifier: Apache-2.0
"""The machine's power switch."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jumpstarter.driver import Driver, export
from jumpstarter_driver_power.common import PowerReading, PowerState
from jumpstarter_driver_power.driver import PowerInterface

if TYPE_CHECKING:
    from jumpstarter_driver_qemu.driver import Qemu

__all__ = ["QemuPower"]


@dataclass(kw_only=True)
class QemuPower(PowerInterface, Driver):
    """Starts and ends the QEMU process; `status` is whether that process lives."""

    parent: Qemu = field(repr=False)

    @export
    async def on(self) -> None:
        """Start the machine. Nothing happens when it runs.

        Raises MachineError with QEMU's own reason when it does not start, MachineBusy while an image is being written.
        """
        await self.parent.start()

    @export
    async def off(self) -> None:
        """Press the power button, wait ``powerdown_timeout`` seconds for the guest, then pull the plug."""
        await self.parent.stop()

    @export(readonly=True)
    async def read(self) -> AsyncGenerator[PowerReading, None]:
        """Raise NotImplementedError: an emulator draws no current."""
        raise NotImplementedError("an emulated machine has no power meter")
        yield  # a stream like every other driver's read, so that clients get this error and no other

    @export(readonly=True)
    def status(self) -> PowerState:
        """Tell whether the QEMU process lives; a crash shows as "off"."""
        return "on" if self.parent.running else "off"
