# SPDX-License-Identifier: Apache-2.0
"""GPIO pins of a Raspberry Pi, by gpiozero.

gpiozero numbers pins in many ways (17, "GPIO17", "BOARD11", "J8:11", ...) and has several ways to reach them ("pin
factories"; the environment variable GPIOZERO_PIN_FACTORY of the exporter chooses one). It gives a pin back by making it
an input: an output loses its level when the session ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from jumpstarter.driver import Driver, export
from jumpstarter.driver.cancellation import call_cancelled
from jumpstarter_driver_gpiod.output import OutputCalls
from jumpstarter_driver_power.common import PowerState
from jumpstarter_driver_power.switched import wait_for_state

if TYPE_CHECKING:
    import gpiozero

__all__ = ["DigitalInput", "DigitalOutput"]

#: Seconds between two looks whether somebody still waits.
_SLICE = 0.2
#: Seconds a pin may take until it reads what was written.
_SETTLE = 0.5


@dataclass(kw_only=True)
class _Pin(Driver):
    """A pin. pin: number or name as gpiozero takes it. active_high: whether the pin is active when it is high."""

    driver_type: ClassVar[str] = "gpio"
    needs: ClassVar[tuple[str, ...]] = ("gpiozero",)

    pin: int | str
    active_high: bool = True

    _lock: threading.RLock = field(init=False, repr=False, default_factory=threading.RLock)
    _device: Any = field(init=False, repr=False, default=None)

    def close(self) -> None:
        """Give the pin back."""
        super().close()
        with self._lock:
            device, self._device = self._device, None
        if device is not None:
            device.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import gpiozero

        try:
            yield
        except (gpiozero.GPIOZeroError, OSError) as error:
            if isinstance(error, (ConnectionError, TimeoutError)):
                raise
            raise ConnectionError(f"gpiozero: pin {self.pin}: {error or type(error).__name__}") from error


@dataclass(kw_only=True)
class DigitalOutput(OutputCalls, _Pin):
    """A pin that is driven, from the first `on` or `off` on; until then it is only read."""

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_raspberrypi.client.DigitalOutputClient"

    def _set(self, active: bool) -> None:
        import gpiozero

        with self._errors(), self._lock:
            if not isinstance(self._device, gpiozero.DigitalOutputDevice):
                if self._device is not None:
                    self._device.close()
                    self._device = None
                # With the value it shall have, so that it does not flicker.
                self._device = gpiozero.DigitalOutputDevice(
                    self.pin, active_high=self.active_high, initial_value=active
                )
            elif active:
                self._device.on()
            else:
                self._device.off()
            wait_for_state(self._state, "on" if active else "off", _SETTLE, f"gpiozero: pin {self.pin}")

    def _state(self) -> PowerState:
        import gpiozero

        with self._errors(), self._lock:
            if self._device is None:
                self._device = gpiozero.InputDevice(self.pin, pull_up=None, active_state=self.active_high)
            return "on" if self._device.is_active else "off"


@dataclass(kw_only=True)
class DigitalInput(_Pin):
    """A pin that is read. pull_up: true pulls it up, false down, None (the default) leaves it floating.

    With a pull-up gpiozero takes low as active, whatever `active_high` says.
    """

    pull_up: bool | None = None

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_raspberrypi.client.DigitalInputClient"

    def _input(self) -> gpiozero.DigitalInputDevice:
        import gpiozero

        with self._errors(), self._lock:
            if self._device is None:
                active = self.active_high if self.pull_up is None else None
                self._device = gpiozero.DigitalInputDevice(self.pin, pull_up=self.pull_up, active_state=active)
            return self._device

    @export(readonly=True)
    def read_pin(self) -> int:
        """1 when the pin is active, 0 when it is not."""
        device = self._input()
        with self._errors():
            return int(device.is_active)

    @export
    def wait_for_active(self, timeout: float | None = None) -> None:
        """Return when the pin is active, at once when it is. Raises TimeoutError after `timeout` seconds."""
        self._wait(True, timeout)

    @export
    def wait_for_inactive(self, timeout: float | None = None) -> None:
        """Return when the pin is inactive, at once when it is. Raises TimeoutError after `timeout` seconds."""
        self._wait(False, timeout)

    def _wait(self, active: bool, timeout: float | None) -> None:
        device = self._input()
        wait = device.wait_for_active if active else device.wait_for_inactive
        end = None if timeout is None else time.monotonic() + timeout
        with self._errors():
            while True:
                left = _SLICE if end is None else min(_SLICE, max(end - time.monotonic(), 0))
                if wait(left):
                    return
                if end is not None and time.monotonic() >= end:
                    what = "active" if active else "inactive"
                    raise TimeoutError(f"gpiozero: pin {self.pin}: not {what} within {timeout:g} s")
                if call_cancelled():
                    raise ConnectionError(f"gpiozero: pin {self.pin}: the caller went away")
