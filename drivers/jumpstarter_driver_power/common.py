# SPDX-License-Identifier: Apache-2.0
"""What power drivers and their clients exchange."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["PowerReading", "PowerState"]

#: What `status()` answers. "unknown" means that the hardware cannot tell, never that asking failed.
PowerState = Literal["on", "off", "unknown"]


@dataclass(kw_only=True)
class PowerReading:
    """One measurement of a supply: volts, amperes, and their product in volt-amperes."""

    voltage: float
    current: float
    apparent_power: float = field(init=False)

    def __post_init__(self) -> None:
        self.voltage = float(self.voltage)
        self.current = float(self.current)
        self.apparent_power = self.voltage * self.current

    @classmethod
    def from_wire(cls, value: PowerReading | Mapping[str, Any]) -> PowerReading:
        """Build a reading from what a driver sent; the product is always computed here.

        Raises `ValueError` when the value is no reading.
        """
        if isinstance(value, PowerReading):
            return value
        try:
            return cls(voltage=value["voltage"], current=value["current"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a power reading: {value!r} (needs numbers for voltage and current)") from error

    def __str__(self) -> str:
        return f"{self.voltage:g} V, {self.current:g} A, {self.apparent_power:g} VA"
