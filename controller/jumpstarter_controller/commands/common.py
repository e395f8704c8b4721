# SPDX-License-Identifier: Apache-2.0
"""What the commands share: options, and the database of a configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import click

from jumpstarter_controller.config import ControllerConfig, seconds
from jumpstarter_controller.state.address import PostgresAddress
from jumpstarter_controller.state.bus import LAB_TOPIC
from jumpstarter_controller.state.database import Database, Transaction, open_database

__all__ = [
    "Command",
    "OpenLab",
    "config_option",
    "folder_option",
    "labels_of",
    "namespace_option",
    "opened",
    "seconds_of",
]

Command = TypeVar("Command", bound=Callable[..., Any])
P = ParamSpec("P")
T = TypeVar("T")

config_option = click.option(
    "--config",
    "path",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The controller's configuration file.",
)
namespace_option = click.option("--namespace", help="Default: the one in the configuration.")
folder_option = click.option(
    "--dir",
    "folder",
    default=".",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the authority's ca.crt and ca.key are.",
)


def labels_of(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Callback of a repeated KEY=VALUE."""
    labels = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f'"{text}" is not KEY=VALUE')
        labels[key] = value
    return labels


def seconds_of(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """Callback of a duration such as 2h."""
    if value is None:
        return None
    try:
        return float(str(seconds(value)))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@dataclass(frozen=True)
class OpenLab:
    """A configuration and its database, while a controller may serve from it."""

    config: ControllerConfig
    database: Database

    def change(self, body: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``body`` in a transaction; running controllers take it up at once."""

        def changing(tx: Transaction) -> T:
            value = body(tx, *args, **kwargs)
            tx.touch(LAB_TOPIC)
            return value

        return self.database.write_now(changing)

    def read(self, body: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``body`` on a snapshot."""
        return self.database.read_now(body, *args, **kwargs)


@contextmanager
def opened(path: Path) -> Iterator[OpenLab]:
    """Context: the lab of a configuration file."""
    from jumpstarter_controller.state.nudge import nudge

    config = ControllerConfig.load(path)
    address = config.database
    database = open_database(address)
    if not isinstance(address, PostgresAddress):  # PostgreSQL tells the controllers itself
        database.on_write_now = lambda topics: nudge(address, topics)
    try:
        yield OpenLab(config, database)
    finally:
        database.close()
