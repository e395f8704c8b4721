# SPDX-License-Identifier: Apache-2.0
"""`jmp driver`."""

from __future__ import annotations

import sys

import click

from jumpstarter_cli.lazy import Entry, LazyGroup
from jumpstarter_cli.output import opt_output, print_data, print_table

__all__ = ["driver", "list_drivers", "main"]


@click.group(
    cls=LazyGroup,
    entries={
        "list": Entry("jumpstarter_cli.driver:list_drivers", "List the drivers that are installed here."),
        "version": Entry("jumpstarter_cli.version:version", "Show the version."),
    },
)
def driver() -> None:
    """Show the drivers that are installed here."""


@click.command("list")
@opt_output("json", "yaml", "name")
def list_drivers(output: str | None) -> None:
    """List the drivers that are installed here.

    What is listed registered itself (entry-point group jumpstarter.drivers). An exporter's `type:` may name any other
    driver class by its dotted path as well.
    """
    from importlib.metadata import entry_points

    found = sorted((e.name, e.value.replace(":", ".")) for e in entry_points(group="jumpstarter.drivers"))
    if output == "name":
        for _, path in found:
            click.echo(path)
    elif output:
        print_data({"items": [{"name": name, "type": path} for name, path in found]}, output)
    elif not found:
        click.echo("No drivers found.")
    else:
        print_table(("NAME", "TYPE"), found)


def main() -> None:
    """Entry point of `jmp-driver`."""
    from jumpstarter_cli.errors import run

    sys.exit(run(driver.main, prog_name="jmp-driver"))
