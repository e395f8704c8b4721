# SPDX-License-Identifier: Apache-2.0
"""Client of `PiPicoFlasher`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jumpstarter.client.flasher import FlasherClient

if TYPE_CHECKING:
    import click

__all__ = ["PiPicoClient"]


@dataclass(kw_only=True)
class PiPicoClient(FlasherClient):
    """Flashes a board with a UF2 bootloader."""

    def enter_bootloader(self) -> None:
        """Bring the board into its bootloader."""
        self.call("enter_bootloader")

    def bootloader_info(self) -> dict[str, str]:
        """What the bootloader says of the board."""
        return dict(self.call("bootloader_info"))

    def cli(self) -> click.Group:
        """Commands: flash, bootloader, bootloader-info."""
        import click

        group = super().cli()
        group.commands.pop("dump")
        for parameter in group.commands["flash"].params:
            if "--target" in parameter.opts:
                parameter.opts += ["--name", "-n"]
                parameter.help = "the file's name on the volume"

        @group.command("bootloader")
        def bootloader() -> None:
            """Bring the board into its bootloader."""
            self.enter_bootloader()
            click.echo("the board is in its bootloader")

        @group.command("bootloader-info")
        def bootloader_info() -> None:
            """Print what the bootloader says of the board."""
            for key, value in self.bootloader_info().items():
                click.echo(f"{key}: {value}")

        return group
