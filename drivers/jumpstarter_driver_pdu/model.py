# SPDX-License-Identifier: Apache-2.0
"""What a model of a PDU is to the driver."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_driver_power.common import PowerReading, PowerState

if TYPE_CHECKING:
    from jumpstarter_driver_pdu.driver import Pdu

__all__ = ["Backend", "Model", "outlet_index", "outlet_number"]

Kind = Literal["snmp", "http", "tcp"]


class Backend(Protocol):
    """One outlet of a device; all methods block and raise `OSError`s."""

    def switch(self, on: bool) -> None:
        """Tell the device."""

    def state(self) -> PowerState:
        """Ask the device."""

    def measure(self) -> PowerReading:
        """Ask the meter. Raises `NotImplementedError` where there is none, or none that is documented."""

    def close(self) -> None:
        """Let go of what is held; switches nothing."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A row of the table.

    title: the devices. source: where the facts of the protocol are public. kind: what it speaks. port: its default.
    outlets: how outlets are named, for people. check: raises `ConfigurationError` for a name that cannot be one. make:
    builds the backend of a driver; called when something is switched, may import.
    """

    title: str
    source: str
    kind: Kind
    port: int
    outlets: str
    check: Callable[[str], None]
    make: Callable[[Pdu], Backend]


def outlet_number(first: int, last: int) -> Callable[[str], None]:
    """A check for outlets that are numbered from `first` to at most `last`."""

    def check(outlet: str) -> None:
        if not (outlet.isdecimal() and first <= int(outlet) <= last):
            raise ConfigurationError(f"outlet is {outlet}, must be {first} to {last}")

    return check


def outlet_index(prefix: str) -> Callable[[str], None]:
    """A check for outlets in an SNMP table: a number (`prefix` is put before it), or all parts of the index."""
    levels = len(prefix.split(".")) + 1 if prefix else 1

    def check(outlet: str) -> None:
        parts = outlet.split(".")
        if not re.fullmatch(r"\d+(\.\d+)*", outlet) or len(parts) not in (1, levels):
            whole = ".".join(["N"] * levels)
            raise ConfigurationError(f"outlet is {outlet}, must be a number" + (f" or {whole}" if prefix else ""))

    return check
