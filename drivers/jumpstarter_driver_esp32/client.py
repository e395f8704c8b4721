# SPDX-License-Identifier: Apache-2.0
"""Client of `Esp32Flasher`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jumpstarter.client.flasher import FlasherClient

if TYPE_CHECKING:
    import click

__all__ = ["Esp32FlasherClient"]


@dataclass(kw_only=True)
class Esp32FlasherClient(FlasherClient):
    """Flashes an Espressif chip; targets are addresses in its flash."""

    def get_chip_info(self) -> dict[str, str]:
        """What the chip says it is: chip, features, mac, crystal."""
        return dict(self.call("get_chip_info"))

    def erase(self) -> None:
        """Erase the whole flash."""
        self.call("erase")

    def hard_reset(self) -> None:
        """Reset the chip, so that it runs what is in its flash."""
        self.call("hard_reset")

    def enter_bootloader(self) -> None:
        """Reset the chip into its serial bootloader."""
        self.call("enter_bootloader")

    def cli(self) -> click.Group:
        """Commands: flash, dump, chip-info, erase, reset, bootloader."""
        import click

        group = super().cli()
        for command in ("flash", "dump"):
            _add_address(group.commands[command])

        @group.command("chip-info")
        def chip_info() -> None:
            """Print what the chip says it is."""
            for key, value in self.get_chip_info().items():
                click.echo(f"{key}: {value}")

        @group.command("erase")
        def erase() -> None:
            """Erase the whole flash."""
            self.erase()

        @group.command("reset")
        def reset() -> None:
            """Reset the chip, so that it runs what is in its flash."""
            self.hard_reset()

        @group.command("bootloader")
        def bootloader() -> None:
            """Reset the chip into its serial bootloader."""
            self.enter_bootloader()

        return group


def _add_address(command: click.Command) -> None:
    """``-a ADDRESS`` is another way to write the target."""
    for parameter in command.params:
        if "--target" in parameter.opts:
            parameter.opts += ["--address", "-a"]
            parameter.help = "address in flash, such as 0x10000 (dump: ADDRESS:SIZE)"
