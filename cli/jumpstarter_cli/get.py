# SPDX-License-Identifier: Apache-2.0
"""`jmp get`, `jmp create`, `jmp update`, `jmp delete`: what a controller has for its clients."""

from __future__ import annotations

import click

from jumpstarter_cli.lazy import Entry, LazyGroup

__all__ = ["create", "delete", "get", "update"]


@click.group(
    cls=LazyGroup,
    entries={
        "exporters": Entry("jumpstarter_cli.get_exporters:get_exporters", "List the exporters of the lab."),
        "leases": Entry("jumpstarter_cli.get_leases:get_leases", "List leases."),
    },
)
def get() -> None:
    """Show the exporters and leases of a lab."""


@click.group(cls=LazyGroup, entries={"lease": Entry("jumpstarter_cli.create_lease:create_lease", "Lease an exporter.")})
def create() -> None:
    """Create a lease."""


@click.group(
    cls=LazyGroup,
    entries={"lease": Entry("jumpstarter_cli.update_lease:update_lease", "Change the times or the owner of a lease.")},
)
def update() -> None:
    """Change a lease."""


@click.group(
    cls=LazyGroup, entries={"leases": Entry("jumpstarter_cli.delete_leases:delete_leases", "Give leases back.")}
)
def delete() -> None:
    """Give leases back."""
