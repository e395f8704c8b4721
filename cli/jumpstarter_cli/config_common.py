# SPDX-License-Identifier: Apache-2.0
"""What the two kinds of configuration commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import click

from jumpstarter.common.exceptions import JumpstarterException

__all__ = ["SECRETS", "opt_nointeractive", "public", "readable"]

T = TypeVar("T")

#: Never printed by a command.
SECRETS = ("token", "refresh_token")

opt_nointeractive = click.option("--nointeractive", is_flag=True, help="Ask nothing: fail when something is missing.")


def public(config: Any) -> dict[str, Any]:
    """The content of a configuration without its secrets, with where it is from."""
    data = {key: value for key, value in config.to_dict().items() if key not in SECRETS}
    return {**data, "alias": config.alias, "path": str(config.path)}


def readable(names: Iterable[str], load: Callable[[str], T]) -> Iterator[T]:
    """Load each configuration; one that is broken is reported on stderr and does not hide the others."""
    for name in names:
        try:
            yield load(name)
        except JumpstarterException as error:
            click.echo(click.style(f"Warning: {error}", fg="yellow"), err=True)
