# SPDX-License-Identifier: Apache-2.0
"""Clients of GPIO lines, and the `j` commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from jumpstarter.client import DriverClient
from jumpstarter_driver_power.client import PowerClient

if TYPE_CHECKING:
    import click

__all__ = ["DigitalInputClient", "DigitalOutputClient", "PinState"]


class PinState(Enum):
    """State of a line, with active_low already considered."""

    ACTIVE = 1
    INACTIVE = 0

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(kw_only=True)
class DigitalOutputClient(PowerClient):
    """Client of an output."""

    def read(self) -> PinState:  # type: ignore[override]  # a line has a state, a supply has readings
        """The state of the line as it reads."""
        return PinState(int(self.call("read_pin")))

    def cli(self) -> click.Group:
        """Commands: on, off, cycle, read."""
        import click

        from jumpstarter.client.decorators import driver_click_group

        @driver_click_group(self)
        def output() -> None:
            """Drive a GPIO line."""

        @output.command("on")
        def on() -> None:
            """Make the line active."""
            self.on()

        @output.command("off")
        def off() -> None:
            """Make the line inactive."""
            self.off()

        @output.command("cycle")
        @click.option(
            "--wait", "-w", type=click.FloatRange(min=0), default=2.0, show_default=True, help="Seconds in between."
        )
        def cycle(wait: float) -> None:
            """Make the line inactive and active again."""
            self.cycle(wait)

        @output.command("read")
        def read() -> None:
            """Print active or inactive."""
            click.echo(str(self.read()))

        return output


@dataclass(kw_only=True)
class DigitalInputClient(DriverClient):
    """Client of an input."""

    def read(self) -> PinState:
        """The state of the line."""
        return PinState(int(self.call("read_pin")))

    def wait_for_active(self, timeout: float | None = None) -> None:
        """Return when the line is active. Raises `DriverError` (DEADLINE_EXCEEDED) after `timeout` seconds."""
        self.call("wait_for_active", timeout)

    def wait_for_inactive(self, timeout: float | None = None) -> None:
        """Return when the line is inactive. Raises `DriverError` (DEADLINE_EXCEEDED) after `timeout` seconds."""
        self.call("wait_for_inactive", timeout)

    def wait_for_edge(self, edge_type: str, timeout: float | None = None) -> None:
        """Return at the next edge, "rising" or "falling". Raises `DriverError` after `timeout` seconds."""
        self.call("wait_for_edge", edge_type, timeout)

    def cli(self) -> click.Group:
        """Commands: read, wait-for-active, wait-for-inactive, wait-for-edge."""
        import click

        from jumpstarter.client.decorators import driver_click_group

        @driver_click_group(self)
        def input_line() -> None:
            """Read a GPIO line."""

        def with_timeout(function: Callable[..., None]) -> Callable[..., None]:
            return click.option(
                "--timeout",
                "-t",
                type=click.FloatRange(min=0),
                default=3600.0,
                show_default=True,
                help="Seconds to wait at most.",
            )(function)

        @input_line.command("read")
        def read() -> None:
            """Print active or inactive."""
            click.echo(str(self.read()))

        @input_line.command("wait-for-active")
        @with_timeout
        def wait_for_active(timeout: float) -> None:
            """Wait until the line is active."""
            self.wait_for_active(timeout)

        @input_line.command("wait-for-inactive")
        @with_timeout
        def wait_for_inactive(timeout: float) -> None:
            """Wait until the line is inactive."""
            self.wait_for_inactive(timeout)

        @input_line.command("wait-for-edge")
        @click.argument("edge", type=click.Choice(["rising", "falling"]))
        @with_timeout
        def wait_for_edge(edge: str, timeout: float) -> None:
            """Wait for the next EDGE of the line."""
            self.wait_for_edge(edge, timeout)

        return input_line
