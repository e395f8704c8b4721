# SPDX-License-Identifier: Apache-2.0
"""`jmp admin get audit`."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import click

from jumpstarter_cli.admin_common import Reach, opt_admin, print_items
from jumpstarter_cli.output import opt_output
from jumpstarter_cli.times import TIME, local

if TYPE_CHECKING:
    from jumpstarter.client.admin import AdminClient, AuditRecord

__all__ = ["get_audit"]


@click.command("audit")
@opt_admin
@click.option("--lease", default="", metavar="NAME", help="Only what concerns this lease.")
@click.option("--exporter", default="", metavar="NAME", help="Only what concerns this exporter.")
@click.option("--by", default="", metavar="CLIENT", help="Only what this client did.")
@click.option("--action", default="", metavar="TEXT", help="Only actions with this text in their name.")
@click.option("--since", type=TIME, metavar="TIME", help="Only from this time on: 2026-01-31T08:00.")
@click.option("--until", type=TIME, metavar="TIME", help="Only up to this time.")
@click.option("--limit", type=click.IntRange(min=1), default=100, help="How many entries, the newest (default: 100).")
@click.option("-A", "--all-namespaces", is_flag=True, help="Of all namespaces, and of the controller itself.")
@opt_output("json", "yaml")
def get_audit(
    reach: Reach,
    lease: str,
    exporter: str,
    by: str,
    action: str,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    all_namespaces: bool,
    output: str | None,
) -> None:
    """Show who did what, when, on which lease.

    The newest entry is the last one.
    """

    async def ask(admin: AdminClient) -> list[AuditRecord]:
        return await admin.list_audit(
            lease=lease,
            exporter=exporter,
            client=by,
            action=action,
            since=since,
            until=until,
            limit=limit,
            everywhere=all_namespaces,
        )

    def row(entry: AuditRecord) -> tuple[str, ...]:
        detail = " ".join(f"{key}={_text(value)}" for key, value in entry.detail.items() if value not in ("", None))
        return local(entry.at), entry.actor, entry.action, entry.lease, entry.exporter, detail

    entries = reach.run(ask)[::-1]
    print_items("entries", entries, output, ("AT", "ACTOR", "ACTION", "LEASE", "EXPORTER", "DETAIL"), row)


def _text(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # numbers of a Struct are floats
    if isinstance(value, dict):
        return ",".join(f"{key}:{_text(item)}" for key, item in value.items()) or "{}"
    if isinstance(value, list):
        return ",".join(_text(item) for item in value) or "[]"
    return str(value)
