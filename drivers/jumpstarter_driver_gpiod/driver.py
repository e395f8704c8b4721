# SPDX-License-Identifier: Apache-2.0
"""GPIO lines of the Linux kernel (/dev/gpiochip*), by libgpiod 2."""

from __future__ import annotations

import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import ClassVar

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import Driver, export
from jumpstarter.driver.cancellation import call_cancelled
from jumpstarter_driver_gpiod.line import BIASES, DRIVES, Line, choice
from jumpstarter_driver_gpiod.output import OutputCalls
from jumpstarter_driver_power.common import PowerReading, PowerState
from jumpstarter_driver_power.driver import PowerInterface
from jumpstarter_driver_power.switched import wait_for_state

__all__ = ["DigitalInput", "DigitalOutput", "PowerSwitch"]

_INITIAL: dict[str | bool, bool] = {
    "active": True,
    "on": True,
    True: True,
    "inactive": False,
    "off": False,
    False: False,
}

#: Seconds a chip may take until it reads what was written.
_SETTLE = 0.5


@dataclass(kw_only=True)
class _GpioLine(Driver):
    """A line. device: its chip. line: offset on the chip, or the name the line has there. bias: as_is, pull_up,
    pull_down or disabled; None leaves it as it is. active_low: the line is active when it is low.
    """

    driver_type: ClassVar[str] = "gpio"
    needs: ClassVar[tuple[str, ...]] = ("gpiod",)

    device: str = "/dev/gpiochip0"
    line: int | str
    drive: str | None = None
    active_low: bool = False
    bias: str | None = None

    _line: Line = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.line, int) and self.line < 0:
            raise ConfigurationError(f"gpiod: line is {self.line}, must not be negative")
        self._line = Line(
            self.device,
            self.line,
            active_low=self.active_low,
            bias=choice("bias", self.bias, BIASES),
            drive=choice("drive", self.drive, DRIVES),
        )

    def close(self) -> None:
        """Give the line back to the kernel."""
        super().close()
        self._line.close()

    @export(readonly=True)
    def read_pin(self) -> int:
        """1 when the line is active, 0 when it is not."""
        return int(self._line.get())


@dataclass(kw_only=True)
class DigitalOutput(OutputCalls, _GpioLine):
    """A line that is driven.

    drive: push_pull (None is the same), open_drain, open_source. initial_value: active, on or true, inactive, off or
    false: what the line is set to when a session begins. None (the default) leaves it as it is until it is used.
    """

    initial_value: str | bool | None = None

    _initial: threading.Thread | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        value = self.initial_value
        if value is not None and (value.lower() if isinstance(value, str) else value) not in _INITIAL:
            raise ConfigurationError(
                f"gpiod: initial_value is {value!r}, must be active, on, true, inactive, off, false or null"
            )

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_gpiod.client.DigitalOutputClient"

    def reset(self) -> None:
        """A session begins: set the initial value, if one is configured."""
        super().reset()
        value = self.initial_value
        if value is not None:
            # Not in the caller's thread, which is the exporter's event loop; the first call waits for it.
            active = _INITIAL[value.lower() if isinstance(value, str) else value]
            self._initial = threading.Thread(target=self._set_initial, args=(active,), name="gpiod initial value")
            self._initial.start()

    def close(self) -> None:
        """Give the line back to the kernel."""
        self._settle()
        super().close()

    def _set_initial(self, active: bool) -> None:
        try:
            self._set(active)
        except OSError as error:
            # The session is of use without this line; whoever uses the line is told again.
            self.logger.error("gpiod: the initial value was not set: %s", error)

    def _settle(self) -> None:
        """Wait until the initial value is set."""
        initial = self._initial
        if initial is not None and initial is not threading.current_thread():
            initial.join()
            self._initial = None

    def _set(self, active: bool) -> None:
        self._settle()
        self._line.set(active)
        if self._line.drives(active):
            wait_for_state(self._state, "on" if active else "off", _SETTLE, f"gpiod: {self._line.where}")

    def _state(self) -> PowerState:
        self._settle()
        return "on" if self._line.get() else "off"


@dataclass(kw_only=True)
class DigitalInput(_GpioLine):
    """A line that is read. Waiting uses the kernel's edge events where the chip has interrupts."""

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_gpiod.client.DigitalInputClient"

    @export(readonly=True)
    def read_pin(self) -> int:
        """1 when the line is active, 0 when it is not."""
        self._line.open_input()
        return int(self._line.get())

    @export
    def wait_for_active(self, timeout: float | None = None) -> None:
        """Return when the line is active, at once when it is. Raises TimeoutError after `timeout` seconds."""
        self._line.wait_level(True, timeout, call_cancelled)

    @export
    def wait_for_inactive(self, timeout: float | None = None) -> None:
        """Return when the line is inactive, at once when it is. Raises TimeoutError after `timeout` seconds."""
        self._line.wait_level(False, timeout, call_cancelled)

    @export
    def wait_for_edge(self, edge_type: str, timeout: float | None = None) -> None:
        """Return at the next edge, "rising" or "falling". Raises TimeoutError after `timeout` seconds.

        Raises NotImplementedError on a chip without interrupts.
        """
        if edge_type not in ("rising", "falling"):
            raise ValueError(f'gpiod: edge_type is "{edge_type}", must be rising or falling')
        self._line.wait_edge(edge_type == "rising", timeout, call_cancelled)


@dataclass(kw_only=True)
class PowerSwitch(PowerInterface, DigitalOutput):
    """A relay or a load switch on a line: power on is active. mode: drive by another name."""

    driver_type: ClassVar[str] = "power"

    mode: str = "push_pull"

    def __post_init__(self) -> None:
        choice("mode", self.mode, DRIVES)
        if self.drive is None and self.mode != "push_pull":
            self.drive = self.mode
        super().__post_init__()

    @export
    def on(self) -> None:  # type: ignore[override]  # the interface allows either colour
        """Switch on. Raises when the line does not read so afterwards."""
        self._set(True)

    @export
    def off(self) -> None:  # type: ignore[override]
        """Switch off. Raises when the line does not read so afterwards."""
        self._set(False)

    @export(readonly=True)
    def status(self) -> PowerState:
        """ "on" or "off", as the line reads."""
        return self._state()

    @export(readonly=True)
    def read(self) -> Generator[PowerReading, None, None]:  # type: ignore[override]
        """A line has no meter."""
        raise NotImplementedError(f"gpiod: {self._line.where}: a switch on a GPIO line cannot measure")
        yield
