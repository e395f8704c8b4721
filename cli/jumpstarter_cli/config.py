# SPDX-License-Identifier: Apache-2.0
"""`jmp config`."""

from __future__ import annotations

import click

from jumpstarter_cli.lazy import Entry, LazyGroup

__all__ = ["client", "config", "exporter"]


@click.group(
    cls=LazyGroup,
    entries={
        "client": Entry("jumpstarter_cli.config:client", "Manage client configurations."),
        "exporter": Entry("jumpstarter_cli.config:exporter", "Manage exporter configurations."),
    },
)
def config() -> None:
    """Manage client and exporter configurations."""


@click.group(
    cls=LazyGroup,
    entries={
        "create": Entry("jumpstarter_cli.config_client:create", "Create a client configuration."),
        "delete": Entry("jumpstarter_cli.config_client:delete", "Delete a client configuration."),
        "list": Entry("jumpstarter_cli.config_client:list_clients", "List client configurations."),
        "use": Entry("jumpstarter_cli.config_client:use", "Make a client configuration the current one."),
    },
)
def client() -> None:
    """Manage client configurations."""


@click.group(
    cls=LazyGroup,
    entries={
        "create": Entry("jumpstarter_cli.config_exporter:create", "Create an exporter configuration."),
        "delete": Entry("jumpstarter_cli.config_exporter:delete", "Delete an exporter configuration."),
        "edit": Entry("jumpstarter_cli.config_exporter:edit", "Edit an exporter configuration."),
        "list": Entry("jumpstarter_cli.config_exporter:list_exporters", "List exporter configurations."),
    },
)
def exporter() -> None:
    """Manage exporter configurations."""
