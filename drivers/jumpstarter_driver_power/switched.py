# SPDX-License-Identifier: Apache-2.0
"""A base for supplies that can be asked: switch, read back, and fail when the hardware says otherwise."""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import Driver, export
from jumpstarter_driver_power.common import PowerReading, PowerState
from jumpstarter_driver_power.driver import PowerInterface

__all__ = ["PowerError", "SwitchedPower", "wait_for_state"]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 0.5  # seconds between two questions for the state


class PowerError(OSError):
    """The supply answered, and is not in the state that was asked for, or says what cannot be understood."""


@dataclass(kw_only=True)
class SwitchedPower(PowerInterface, Driver):
    """A supply behind `switch` and `state`; everything a client sees is here.

    verify: read the state back after switching, and fail when it is not what was asked for. False is for hardware that
    cannot be asked. settle: seconds the hardware may take until it reports the new state.
    """

    verify: bool = True
    settle: float = 4.0

    _turn: threading.Lock = field(init=False, repr=False, compare=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.settle <= 60:
            raise ConfigurationError(f"settle is {self.settle:g}, must be 0 to 60 seconds")

    @property
    @abstractmethod
    def target(self) -> str:
        """What is switched, for messages: "outlet 3 of pdu.example"."""

    @abstractmethod
    def switch(self, on: bool) -> None:
        """Tell the hardware; blocking. Raises when the hardware does not take it."""

    @abstractmethod
    def state(self) -> PowerState:
        """Ask the hardware; blocking. Raises when it does not answer."""

    def measure(self) -> PowerReading:
        """Ask the hardware for one reading; blocking. Raises `NotImplementedError` where there is no meter."""
        raise NotImplementedError(f"{self.target} cannot measure")

    @export
    def on(self) -> None:  # type: ignore[override]  # the interface allows either colour
        """Switch on. Raises `PowerError` when the hardware does not report it in time."""
        self._switch_verified(True)

    @export
    def off(self) -> None:  # type: ignore[override]
        """Switch off. Raises `PowerError` when the hardware does not report it in time."""
        self._switch_verified(False)

    @export(readonly=True)
    def status(self) -> PowerState:
        """Tell what the hardware says: "on", "off", or "unknown" while it is between the two."""
        return self.state()

    @export(readonly=True)
    def read(self) -> Generator[PowerReading, None, None]:  # type: ignore[override]
        """Yield one reading: volts and amperes."""
        yield self.measure()

    def _switch_verified(self, on: bool) -> None:
        with self._turn:  # a client's switch and the session's last "off" must not mix
            self.switch(on)
            self.logger.info("%s: switched %s", self.target, "on" if on else "off")
            if self.verify:
                wait_for_state(self.state, "on" if on else "off", self.settle, self.target)


def wait_for_state(state: Callable[[], PowerState], wanted: PowerState, settle: float, target: str) -> None:
    """Ask until the state is the wanted one, at least twice and for `settle` seconds.

    A question that the network swallowed is asked again. Raises `PowerError` with what was seen last, or the last
    error of asking.
    """
    deadline = time.monotonic() + settle
    pause = _FIRST_PAUSE
    last = False
    while True:
        problem: OSError | None = None
        seen: PowerState = "unknown"
        try:
            seen = state()
        except (ConnectionError, TimeoutError) as error:
            problem = error
        if seen == wanted:
            return
        if last:
            break
        left = deadline - time.monotonic()
        last = left <= pause
        time.sleep(max(0.0, min(pause, left)))
        pause = min(pause * 2, _LONGEST_PAUSE)
    if problem is not None:
        raise problem
    raise PowerError(
        f'{target}: was told to switch {wanted} and still reports "{seen}" after {settle:g} s; '
        "the relay may be stuck or the outlet locked: look at the device, or give it more time with settle:"
    )
