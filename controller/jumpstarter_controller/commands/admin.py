# SPDX-License-Identifier: Apache-2.0
"""`jumpstarter-controller admin`: clients, exporters, tokens and policies, directly in the database.

Running controllers take every change up at once. It needs no administrator, and makes the first one.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from jumpstarter_controller.commands.common import config_option, namespace_option, opened
from jumpstarter_controller.commands.create import create
from jumpstarter_controller.commands.options import (
    allow_option,
    endpoint_option,
    kind_argument,
    labels_option,
    name_argument,
    reached_at,
    save_option,
    unsafe_option,
    username_option,
    write_file,
)

__all__ = ["admin"]


@click.group()
def admin() -> None:
    """Clients, exporters, tokens and policies, directly in the database."""


admin.add_command(create)


@admin.command("update")
@config_option
@namespace_option
@labels_option
@click.option("--unlabel", multiple=True, help="Remove the label with this key; repeatable.")
@username_option
@click.option("--admin/--no-admin", "administrator", default=None, help="A client may administer the lab, or not.")
@click.option("--enable/--disable", "enabled", default=None, help="An exporter may be leased, or not.")
@kind_argument
@name_argument
def update(
    path: Path,
    namespace: str | None,
    labels: dict[str, str],
    unlabel: tuple[str, ...],
    username: str | None,
    administrator: bool | None,
    enabled: bool | None,
    kind: Any,
    name: str,
) -> None:
    """Change a client or exporter. A current lease of an exporter that is disabled goes on."""
    from jumpstarter_controller.administration.subjects import LOCAL_ACTOR, change_subject, find_subject

    if (kind == "client" and enabled is not None) or (kind == "exporter" and administrator is not None):
        raise click.UsageError("clients have --admin/--no-admin, exporters --enable/--disable")

    def change(tx: Any, space: str) -> None:
        old = find_subject(tx, kind, space, name)
        wanted = {key: value for key, value in {**old.labels, **labels}.items() if key not in unlabel}
        change_subject(
            tx,
            LOCAL_ACTOR,
            kind,
            space,
            name,
            labels=wanted,
            username=username,
            administrator=administrator,
            enabled=enabled,
        )

    with opened(path) as lab:
        lab.change(change, namespace or lab.config.namespace)


@admin.command("delete")
@config_option
@namespace_option
@click.option("--force", is_flag=True, help="End the active leases of a client or exporter.")
@click.argument("kind", type=click.Choice(["client", "exporter", "policy", "router"]))
@name_argument
def delete(path: Path, namespace: str | None, force: bool, kind: Any, name: str) -> None:
    """Delete a client, exporter, policy or router. Tokens and certificates are worth nothing from then on."""
    from jumpstarter_controller.administration.policies import delete_policy
    from jumpstarter_controller.administration.subjects import LOCAL_ACTOR, delete_subject
    from jumpstarter_controller.routers import delete_router

    with opened(path) as lab:
        space = namespace or lab.config.namespace
        if kind == "policy":
            lab.change(delete_policy, LOCAL_ACTOR, space, name)
        elif kind == "router":
            lab.change(delete_router, space, name)
        else:
            lab.change(delete_subject, LOCAL_ACTOR, kind, space, name, force=force)


@admin.command("list")
@config_option
@namespace_option
@click.argument("what", type=click.Choice(["clients", "exporters", "policies", "routers"]))
def list_(path: Path, namespace: str | None, what: Any) -> None:
    """Print the clients, exporters, policies or routers of a namespace, one JSON object a line."""
    from jumpstarter_controller.administration.listing import listing

    with opened(path) as lab:
        for line in lab.read(listing, what, namespace or lab.config.namespace):
            click.echo(json.dumps(line))


@admin.command("tokens")
@config_option
@namespace_option
@kind_argument
@name_argument
def tokens(path: Path, namespace: str | None, kind: Any, name: str) -> None:
    """Print what is known of the tokens and certificates of a client or exporter, one JSON object a line."""
    from jumpstarter_controller.administration.listing import token_listing

    with opened(path) as lab:
        for line in lab.read(token_listing, kind, namespace or lab.config.namespace, name):
            click.echo(json.dumps(line))


@admin.command("revoke")
@config_option
@namespace_option
@click.option("--id", "ids", multiple=True, help="Only this token or certificate; repeatable.")
@kind_argument
@name_argument
def revoke(path: Path, namespace: str | None, ids: tuple[str, ...], kind: Any, name: str) -> None:
    """Make the tokens and certificates of a client or exporter worthless."""
    from jumpstarter_controller.administration.subjects import LOCAL_ACTOR, find_subject
    from jumpstarter_controller.identity.tokens import revoke_tokens

    def change(tx: Any, space: str) -> int:
        return revoke_tokens(tx, find_subject(tx, kind, space, name), LOCAL_ACTOR, ids=ids or None)

    with opened(path) as lab:
        click.echo(f"{lab.change(change, namespace or lab.config.namespace)} revoked")


@admin.command("end-lease")
@config_option
@namespace_option
@click.option("--reason", default="", help="What its holder is told.")
@name_argument
def end_lease(path: Path, namespace: str | None, reason: str, name: str) -> None:
    """End anybody's lease."""
    from jumpstarter_controller.administration.subjects import LOCAL_ACTOR, end_any_lease

    with opened(path) as lab:
        lab.change(end_any_lease, LOCAL_ACTOR, namespace or lab.config.namespace, name, reason)


@admin.command("import")
@config_option
@namespace_option
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def import_(path: Path, namespace: str | None, file: Path) -> None:
    """Make or change what a YAML file says, all or nothing: the keys clients, exporters and policies are maps by name.

    What the file does not name stays as it is.
    """
    from jumpstarter_controller.administration.imports import LabFile, import_lab

    content = LabFile.load(file)
    with opened(path) as lab:
        for line in lab.change(import_lab, namespace or lab.config.namespace, content):
            click.echo(line)


@admin.command("rotate")
@config_option
@namespace_option
@endpoint_option
@save_option(required=True)
@allow_option
@unsafe_option
@kind_argument
@name_argument
def rotate(
    path: Path,
    namespace: str | None,
    endpoint: str | None,
    save: Path,
    allow: tuple[str, ...],
    unsafe: bool,
    kind: Any,
    name: str,
) -> None:
    """Revoke every token of a client or exporter and write a file with a new one."""
    from jumpstarter_controller.administration import subjects

    with opened(path) as lab:
        space, reached = namespace or lab.config.namespace, reached_at(lab, path, endpoint)
        token = lab.change(subjects.revoke, kind, space, name, lab.config.tokens.lifetime)
        write_file(lab, kind, space, name, reached, token, save, allow, unsafe)
    click.echo(save)


@admin.command("rotate-keys")
@config_option
@click.option("--retire", is_flag=True, help="Refuse from now on what the older keys have signed.")
def rotate_signing_keys(path: Path, retire: bool) -> None:
    """Sign tokens with a new key from now on."""
    from jumpstarter_controller.administration.subjects import LOCAL_ACTOR
    from jumpstarter_controller.identity import retire_keys, rotate_keys

    with opened(path) as lab:
        click.echo(f"key {lab.change(rotate_keys, LOCAL_ACTOR).kid} signs")
        if retire:
            click.echo(f"{lab.change(retire_keys, LOCAL_ACTOR)} older keys are retired")


@admin.command("audit")
@config_option
@click.option("--namespace", default="", help="Only of this namespace.")
@click.option("--lease", default="", help="Only what concerns this lease.")
@click.option("--exporter", default="", help="Only what concerns this exporter.")
@click.option("--client", default="", help="Only what concerns this client, or what it did.")
@click.option("--action", default="", help="Only actions that contain this.")
@click.option("--since", type=click.DateTime(), help="Only from this time (UTC) on.")
@click.option("--until", type=click.DateTime(), help="Only before this time (UTC).")
@click.option("-n", "--limit", default=100, show_default=True, type=click.IntRange(1), help="How many entries.")
def audit(path: Path, since: datetime | None, until: datetime | None, limit: int, **wanted: Any) -> None:
    """Print who did what, one JSON object a line, the newest last."""
    from jumpstarter_controller.administration.audit import AuditQuery, read_audit

    query = AuditQuery(**wanted, since=_utc(since), until=_utc(until))
    with opened(path) as lab:
        for entry in reversed(lab.read(read_audit, query, limit)):
            line = {
                "at": datetime.fromtimestamp(entry.at, UTC).isoformat(),
                "actor": entry.actor,
                "action": entry.action,
                "namespace": entry.namespace,
                "lease": entry.lease,
                "exporter": entry.exporter,
                "client": entry.client,
                **entry.detail,
            }
            click.echo(json.dumps({key: value for key, value in line.items() if value is not None}))


def _utc(time: datetime | None) -> float | None:
    return None if time is None else time.replace(tzinfo=time.tzinfo or UTC).timestamp()
