# SPDX-License-Identifier: Apache-2.0
"""Clients of GPIO pins: those of GPIO lines, but for edges, which gpiozero does not wait for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jumpstarter_driver_gpiod.client import DigitalInputClient as LineInputClient
from jumpstarter_driver_gpiod.client import DigitalOutputClient as LineOutputClient
from jumpstarter_driver_gpiod.client import PinState

if TYPE_CHECKING:
    import click

__all__ = ["DigitalInputClient", "DigitalOutputClient", "PinState"]


@dataclass(kw_only=True)
class DigitalOutputClient(LineOutputClient):
    """Client of an output pin."""


@dataclass(kw_only=True)
class DigitalInputClient(LineInputClient):
    """Client of an input pin."""

    def cli(self) -> click.Group:
        """Commands: read, wait-for-active, wait-for-inactive."""
        group = super().cli()
        del group.commands["wait-for-edge"]
        return group
