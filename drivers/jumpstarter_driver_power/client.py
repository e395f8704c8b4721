# SPDX-License-Identifier: Apache-2.0
"""Clients of power drivers: Python methods and the `j power ...` commands."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from jumpstarter.client import DriverClient
from jumpstarter.common.exceptions import DriverError
from jumpstarter_driver_power.common import PowerReading, PowerState

if TYPE_CHECKING:
    import click

__all__ = ["PowerClient", "VirtualPowerClient"]


@dataclass(kw_only=True)
class PowerClient(DriverClient):
    """Client of `PowerInterface`."""

    def on(self) -> None:
        """Switch the device on."""
        self.call("on")

    def off(self) -> None:
        """Switch the device off."""
        self.call("off")

    def status(self) -> PowerState:
        """Tell "on" or "off", or "unknown" when the driver (or an exporter of before `status`) cannot say."""
        if not self.has_method("status"):
            return "unknown"
        return cast(PowerState, self.call("status"))

    def cycle(self, wait: float = 2) -> None:
        """Switch off, wait that many seconds, switch on: on the exporter where it can, from here otherwise."""
        if self.has_method("cycle"):
            self.call("cycle", wait)
            return
        self.off()
        time.sleep(wait)
        self.on()

    def rescue(self) -> None:
        """Start the device in its rescue mode.

        Raises `DriverMethodNotImplemented` for drivers without one.
        """
        self.call("rescue")

    def read(self) -> Generator[PowerReading, None, None]:
        """Yield the driver's readings as it takes them.

        A driver that declares `read` as a plain call (some do) gives one reading.
        """
        try:
            for value in self.streamingcall("read"):
                yield PowerReading.from_wire(value)
        except DriverError as error:
            if error.code not in ("NOT_FOUND", "UNIMPLEMENTED"):
                raise
            try:
                value = self.call("read")
            except DriverError:
                # Neither form exists: the first answer is the driver's own ("this supply cannot measure").
                raise error from None
            yield PowerReading.from_wire(value)

    def monitor(self, count: int | None = None, interval: float = 1.0) -> Iterator[PowerReading]:
        """Yield `count` readings (None: without end), `interval` seconds apart.

        A driver whose `read` ends is asked again. Raises `DriverError` when it gives nothing at all.
        """
        taken = 0
        while count is None or taken < count:
            before = taken
            readings = self.read()
            try:
                for reading in readings:
                    if taken:
                        time.sleep(interval)
                    yield reading
                    taken += 1
                    if count is not None and taken >= count:
                        return
            finally:
                readings.close()
            if taken == before:
                raise DriverError(
                    f'driver "{self.path}" gave no power reading', code="INTERNAL", driver=self.path, method="read"
                )

    def cli(self) -> click.Group:
        """Commands: on, off, cycle, rescue, status, read."""
        return _power_group(self)


@dataclass(kw_only=True)
class VirtualPowerClient(PowerClient):
    """Client of `VirtualPowerInterface`: `off` may also destroy the device."""

    def off(self, destroy: bool = False) -> None:
        """Switch off; with `destroy` also give up what the device keeps while it is off."""
        if destroy:
            self.call("off", destroy)
        else:
            # Without the argument, so that a driver with the plain interface can be driven as well.
            self.call("off")

    def cli(self) -> click.Group:
        """As `PowerClient.cli`, with `off --destroy`."""
        import click

        group = _power_group(self)

        @click.option("--destroy", is_flag=True, help="Also destroy the device's instance.")
        def off(destroy: bool) -> None:
            """Switch the device off."""
            self.off(destroy)

        group.add_command(click.command()(off))
        return group


def _power_group(client: PowerClient) -> click.Group:
    """The command group of a power client."""
    import click

    from jumpstarter.client.decorators import driver_click_group

    @driver_click_group(client)
    def power() -> None:
        """Switch the device on and off, and measure what it draws."""

    @power.command()
    def on() -> None:
        """Switch the device on."""
        client.on()

    @power.command()
    def off() -> None:
        """Switch the device off."""
        client.off()

    @power.command()
    @click.option(
        "--wait", "-w", type=click.FloatRange(min=0), default=2.0, show_default=True, help="Seconds to stay off."
    )
    def cycle(wait: float) -> None:
        """Switch the device off and on again."""
        client.cycle(wait)

    @power.command()
    def rescue() -> None:
        """Start the device in its rescue mode."""
        client.rescue()

    @power.command()
    def status() -> None:
        """Print on, off or unknown."""
        click.echo(client.status())

    @power.command()
    @click.option("--count", "-n", type=click.IntRange(min=1), default=1, show_default=True, help="Number of readings.")
    @click.option(
        "--interval", "-i", type=click.FloatRange(min=0), default=1.0, show_default=True, help="Seconds between two."
    )
    def read(count: int, interval: float) -> None:
        """Print readings: volts, amperes, volt-amperes."""
        for reading in client.monitor(count, interval):
            click.echo(str(reading))

    return power
