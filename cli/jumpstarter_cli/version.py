# SPDX-License-Identifier: Apache-2.0
"""`jmp version`, `jmp driver version`."""

from __future__ import annotations

import sys

import click

from jumpstarter_cli.output import opt_output, print_data

__all__ = ["version", "version_line"]


def version_line() -> str:
    """Version, place and interpreter, in one line."""
    return f"Jumpstarter v{_version()} (jumpstarter-lab) from {_place()} (Python {sys.version.split()[0]})"


def _version() -> str:
    from importlib.metadata import version as distribution_version

    return distribution_version("jumpstarter-lab")


def _place() -> str:
    import jumpstarter

    return (jumpstarter.__file__ or "").removesuffix("/__init__.py")


@click.command("version")
@opt_output("json", "yaml")
def version(output: str | None) -> None:
    """Show the version."""
    if output is None:
        click.echo(version_line())
    else:
        print_data({"gitVersion": _version(), "pythonVersion": sys.version.split()[0]}, output)
