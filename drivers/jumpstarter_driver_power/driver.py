# SPDX-License-Identifier: Apache-2.0
"""The power interface every supply, relay and emulator implements, and two mocks of it."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from typing import ClassVar

from jumpstarter.driver import Driver, export
from jumpstarter_driver_power.common import PowerReading, PowerState

__all__ = [
    "MockPower",
    "PowerInterface",
    "PowerReading",
    "PowerState",
    "SyncMockPower",
    "VirtualPowerInterface",
]


class PowerInterface(metaclass=ABCMeta):
    """Switch a device on and off, and measure what it draws.

    The contract, the same for every implementation:

    - `on` and `off` return when the supply is in the asked state, and raise when it is not. Asking for the state it
      already has is no error and changes nothing.
    - `read` is a *stream* of readings, also when the hardware only knows one: it yields at least one, each taken when
      it is asked for, and a driver that cannot measure raises `NotImplementedError`.
    - `status` changes nothing and tells what the hardware says, or "unknown" when the hardware cannot be asked.
      Drivers that can tell override it.
    - `cycle` runs on the exporter, so that a slow or lost link does not stretch the pause. A cycle that is cancelled
      in its pause leaves the device off.

    Implementations may be sync or async.
    """

    driver_type: ClassVar[str] = "power"

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_power.client.PowerClient"

    @abstractmethod
    async def on(self) -> None:
        """Switch on."""

    @abstractmethod
    async def off(self) -> None:
        """Switch off."""

    @abstractmethod
    def read(self) -> AsyncGenerator[PowerReading, None]:
        """Yield readings: volts and amperes."""

    @export(readonly=True)
    def status(self) -> PowerState:
        """Tell whether the supply is "on" or "off", or "unknown" where the hardware cannot be asked."""
        return "unknown"

    @export
    async def cycle(self, wait: float = 2.0) -> None:
        """Switch off, wait that many seconds, switch on."""
        # These are at work on every exporter, but clients that never switch anything import the interface, too.
        import anyio

        from jumpstarter.driver.calls import call_to_end

        if wait < 0:
            raise ValueError(f"cycle: wait is {wait:g} s, must not be negative")
        await call_to_end(self.off)
        await anyio.sleep(wait)
        await call_to_end(self.on)


class VirtualPowerInterface(PowerInterface):
    """Power of a device that is made when it is switched on, and can be destroyed when switched off."""

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_power.client.VirtualPowerClient"

    @abstractmethod
    async def off(self, destroy: bool = False) -> None:
        """Switch off; with `destroy` also give up what the device keeps while it is off."""


@dataclass(kw_only=True)
class MockPower(PowerInterface, Driver):
    """A supply without hardware: remembers its state and logs what it was asked to do."""

    _state: PowerState = field(init=False, default="off", repr=False)

    @export
    async def on(self) -> None:
        """Switch on."""
        self.logger.info("power on")
        self._state = "on"

    @export
    async def off(self) -> None:
        """Switch off."""
        self.logger.info("power off")
        self._state = "off"

    @export(readonly=True)
    async def read(self) -> AsyncGenerator[PowerReading, None]:
        """Yield two made-up readings."""
        yield PowerReading(voltage=0.0, current=0.0)
        yield PowerReading(voltage=5.0, current=2.0)

    @export(readonly=True)
    def status(self) -> PowerState:
        """Tell the remembered state."""
        return self._state


@dataclass(kw_only=True)
class SyncMockPower(PowerInterface, Driver):
    """`MockPower` written with plain functions, which the exporter runs in worker threads."""

    _state: PowerState = field(init=False, default="off", repr=False)

    @export
    def on(self) -> None:  # type: ignore[override]  # the interface allows either colour
        """Switch on."""
        self.logger.info("power on")
        self._state = "on"

    @export
    def off(self) -> None:  # type: ignore[override]
        """Switch off."""
        self.logger.info("power off")
        self._state = "off"

    @export(readonly=True)
    def read(self) -> Generator[PowerReading, None, None]:  # type: ignore[override]
        """Yield two made-up readings."""
        yield PowerReading(voltage=0.0, current=0.0)
        yield PowerReading(voltage=5.0, current=2.0)

    @export(readonly=True)
    def status(self) -> PowerState:
        """Tell the remembered state."""
        return self._state
