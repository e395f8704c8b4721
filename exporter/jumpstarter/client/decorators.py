# SPDX-License-Identifier: Apache-2.0
"""Click groups and commands of driver clients, with the help texts the exporter's configuration gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from jumpstarter.client.base import DriverClient

__all__ = ["driver_click_command", "driver_click_group"]


def driver_click_group(client: DriverClient, **kwargs: Any) -> Callable[[Callable[..., Any]], click.Group]:
    """Like ``click.group``; the driver's description and method descriptions replace the built-in help."""

    def decorate(function: Callable[..., Any]) -> click.Group:
        if client.description:
            kwargs["help"] = client.description
        return click.group(cls=_described_group(client), **kwargs)(function)

    return decorate


def _described_group(client: DriverClient) -> type[click.Group]:
    class DescribedGroup(click.Group):
        def add_command(self, cmd: click.Command, name: str | None = None) -> None:
            text = client.methods_description.get(name or cmd.name or "")
            if text:
                cmd.help = text
                cmd.short_help = text.partition("\n")[0]
            super().add_command(cmd, name)

    return DescribedGroup


def driver_click_command(client: DriverClient, **kwargs: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Like ``click.command``; the driver's description replaces the built-in help."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        if client.description:
            kwargs["help"] = client.description
        command: click.Command = click.command(**kwargs)(function)
        return command

    return decorate
