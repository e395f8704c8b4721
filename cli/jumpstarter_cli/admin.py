# SPDX-License-Identifier: Apache-2.0
"""`jmp admin`: the table of its commands."""

from __future__ import annotations

import click

from jumpstarter_cli.lazy import Entry, LazyGroup

__all__ = ["admin", "create", "delete", "end", "get", "import_", "rotate", "update"]

#: Commands of the original that are about Kubernetes, and what takes their place.
_ABSENT = {
    "install": "a lab needs no cluster: `jumpstarter-controller serve` on any machine is a lab",
    "cluster": "a lab needs no cluster; for one on Kubernetes use the original's `jmp admin`",
    "clusters": "a lab needs no cluster; for one on Kubernetes use the original's `jmp admin`",
}


class _AdminGroup(LazyGroup):
    """A group that says why a command of the original is not here."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name."""
        if cmd_name in _ABSENT:
            ctx.fail(f'there is no "{cmd_name}": {_ABSENT[cmd_name]}')
        return super().get_command(ctx, cmd_name)


@click.group(
    cls=_AdminGroup,
    entries={
        "create": Entry("jumpstarter_cli.admin:create", "Create a client, an exporter or an access policy."),
        "delete": Entry("jumpstarter_cli.admin:delete", "Delete clients, exporters or policies; revoke tokens."),
        "end": Entry("jumpstarter_cli.admin:end", "End anybody's lease."),
        "get": Entry("jumpstarter_cli.admin:get", "Show clients, exporters, policies, tokens, leases, the audit log."),
        "import": Entry("jumpstarter_cli.admin:import_", "Write a configuration file for a client or exporter."),
        "rotate": Entry("jumpstarter_cli.admin:rotate", "Replace the tokens of a client or exporter by a new one."),
        "update": Entry("jumpstarter_cli.admin:update", "Change a client, an exporter or an access policy."),
    },
)
def admin() -> None:
    """Administer a lab: clients, exporters, policies, the audit log.

    All of it needs a client that is an administrator. The first one is made on the controller's host:
    `jumpstarter-controller admin create client`.
    """


@click.group(
    cls=_AdminGroup,
    entries={
        "audit": Entry("jumpstarter_cli.admin_audit:get_audit", "Show who did what, when, on which lease."),
        "client": Entry("jumpstarter_cli.admin_client:get_client", "Show clients."),
        "exporter": Entry("jumpstarter_cli.admin_exporter:get_exporter", "Show exporters."),
        "lease": Entry("jumpstarter_cli.admin_lease:get_lease", "Show the leases of all clients."),
        "policy": Entry("jumpstarter_cli.admin_policy:get_policy", "Show access policies."),
        "token": Entry("jumpstarter_cli.admin_token:get_token", "Show the tokens of a client or exporter."),
    },
)
def get() -> None:
    """Show clients, exporters, policies, tokens, leases, the audit log."""


@click.group(
    cls=_AdminGroup,
    entries={
        "client": Entry("jumpstarter_cli.admin_client:create_client", "Create a client."),
        "exporter": Entry("jumpstarter_cli.admin_exporter:create_exporter", "Create an exporter."),
        "policy": Entry("jumpstarter_cli.admin_policy:create_policy", "Create an access policy."),
    },
)
def create() -> None:
    """Create a client, an exporter or an access policy."""


@click.group(
    cls=_AdminGroup,
    entries={
        "client": Entry("jumpstarter_cli.admin_client:update_client", "Change a client."),
        "exporter": Entry("jumpstarter_cli.admin_exporter:update_exporter", "Change an exporter."),
        "policy": Entry("jumpstarter_cli.admin_policy:update_policy", "Change an access policy."),
    },
)
def update() -> None:
    """Change a client, an exporter or an access policy."""


@click.group(
    cls=_AdminGroup,
    entries={
        "client": Entry("jumpstarter_cli.admin_client:delete_client", "Delete clients."),
        "exporter": Entry("jumpstarter_cli.admin_exporter:delete_exporter", "Delete exporters."),
        "policy": Entry("jumpstarter_cli.admin_policy:delete_policy", "Delete access policies."),
        "token": Entry("jumpstarter_cli.admin_token:delete_token", "Revoke tokens of a client or exporter."),
    },
)
def delete() -> None:
    """Delete clients, exporters or policies; revoke tokens."""


@click.group(
    cls=_AdminGroup,
    entries={
        "client": Entry("jumpstarter_cli.admin_token:rotate_client", "Replace the tokens of a client by a new one."),
        "exporter": Entry(
            "jumpstarter_cli.admin_token:rotate_exporter", "Replace the tokens of an exporter by a new one."
        ),
    },
)
def rotate() -> None:
    """Replace the tokens of a client or exporter by a new one."""


@click.group(
    "import",
    cls=_AdminGroup,
    entries={
        "client": Entry("jumpstarter_cli.admin_token:import_client", "Write a configuration file for a client."),
        "exporter": Entry("jumpstarter_cli.admin_token:import_exporter", "Write a configuration file for an exporter."),
    },
)
def import_() -> None:
    """Write a configuration file for a client or exporter."""


@click.group(cls=_AdminGroup, entries={"lease": Entry("jumpstarter_cli.admin_lease:end_lease", "End leases.")})
def end() -> None:
    """End anybody's lease."""
