# SPDX-License-Identifier: Apache-2.0
"""Output formats that the commands share: json, yaml, name, path, and a plain table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import click

__all__ = ["opt_output", "print_data", "print_table"]

F = TypeVar("F", bound=Callable[..., Any])


def opt_output(*formats: str) -> Callable[[F], F]:
    """The option -o/--output with these choices."""
    return click.option(
        "-o", "--output", type=click.Choice(formats), default=None, help="Output format (default: for people)."
    )


def print_data(data: Mapping[str, Any], output: str) -> None:
    """Write `data` as "json" (indented by 4) or "yaml"."""
    if output == "json":
        click.echo(json.dumps(data, indent=4, ensure_ascii=False))
    else:
        import yaml

        click.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), nl=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write rows under upper-case column names, aligned, without borders."""
    table = [[str(cell) for cell in row] for row in rows]
    if not table:
        click.echo("No resources found.")
        return
    lines = [list(columns), *table]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
