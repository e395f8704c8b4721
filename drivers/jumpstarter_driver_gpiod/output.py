# SPDX-License-Identifier: Apache-2.0
"""What clients see of an output that can be read back, whatever library drives it."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod

import anyio

from jumpstarter.driver import export
from jumpstarter.driver.calls import call_to_end
from jumpstarter_driver_power.common import PowerState

__all__ = ["OutputCalls"]


class OutputCalls(metaclass=ABCMeta):
    """The calls of an output, by `_set` and `_state`. Before the driver's other bases: its `read_pin` is that of an
    output."""

    @abstractmethod
    def _set(self, active: bool) -> None:
        """Drive the output; blocking. Raises when it does not read so afterwards."""

    @abstractmethod
    def _state(self) -> PowerState:
        """How the output reads; blocking."""

    @export(readonly=True)
    def read_pin(self) -> int:
        """1 when the output is active, 0 when it is not."""
        return int(self._state() == "on")

    @export
    def on(self) -> None:
        """Make the output active. Raises when it does not read so afterwards."""
        self._set(True)

    @export
    def off(self) -> None:
        """Make the output inactive. Raises when it does not read so afterwards."""
        self._set(False)

    @export
    async def cycle(self, wait: float = 2.0) -> None:
        """Make the output inactive, wait that many seconds, make it active."""
        if wait < 0:
            raise ValueError(f"cycle: wait is {wait:g} s, must not be negative")
        await call_to_end(self.off)
        await anyio.sleep(wait)
        await call_to_end(self.on)

    @export(readonly=True)
    def status(self) -> PowerState:
        """ "on" when the output is active, "off" when it is not; as it reads, not as it was set."""
        return self._state()
