# SPDX-License-Identifier: Apache-2.0
"""What `jmp admin` says after it made or changed something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from jumpstarter_cli.admin_files import Destination
from jumpstarter_cli.lease_view import plain
from jumpstarter_cli.output import print_data

__all__ = ["print_changed", "print_made", "print_token"]


def print_made(
    kind: str, made: Any, path: Path | None, destination: Destination, output: str | None, *, tokenless: bool
) -> None:
    """A new client or exporter. tokenless: nobody can be it yet."""
    # With --out - the file is what goes to standard output.
    aside = destination.out == "-"
    if output == "name":
        click.echo(made.name, err=aside)
    elif output:
        if aside:
            raise click.UsageError("--out - and -o json or yaml exclude each other")
        print_data({**plain(made), "config": str(path) if path else None}, output)
    else:
        click.echo(f'{kind} "{made.name}" created' + (f"; configuration {path}" if path else ""), err=aside)
    if tokenless:
        click.echo(f"It has no token: `jmp admin rotate {kind} {made.name} --out FILE` makes one", err=True)


def print_changed(kind: str, changed: Any, output: str | None) -> None:
    """A client, exporter or policy that was changed."""
    if output == "name":
        click.echo(changed.name)
    elif output:
        print_data(plain(changed), output)
    else:
        click.echo(f'{kind} "{changed.name}" updated')


def print_token(kind: str, name: str, path: Path | None, revoked: int, rotated: bool) -> None:
    """A new token."""
    done = f'token of {kind} "{name}" {"rotated" if rotated else "issued"}'
    count = f", {revoked} older revoked" if rotated else ""
    click.echo(f"{done}{count}" + (f"; configuration {path}" if path else ""), err=path is None)
