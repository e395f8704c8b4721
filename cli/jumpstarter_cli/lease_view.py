# SPDX-License-Identifier: Apache-2.0
"""Leases and exporters as commands print them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

import click

from jumpstarter_cli.output import print_data, print_table
from jumpstarter_cli.times import local, span

if TYPE_CHECKING:
    from jumpstarter.client.controller import ExporterInfo, LeaseInfo

__all__ = ["exporter_data", "lease_data", "pairs_text", "plain", "print_exporters", "print_lease", "print_leases"]


def plain(value: Any) -> Any:
    """A value as JSON has it: times of ISO 8601 in UTC, names of enumerations, dicts for dataclasses."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, Enum):
        return value.name
    if is_dataclass(value) and not isinstance(value, type):
        return {entry.name: plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in sorted(value.items())}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    return value


def pairs_text(pairs: dict[str, str]) -> str:
    """Labels or tags in one cell."""
    return ",".join(f"{key}={value}" for key, value in sorted(pairs.items()))


# --- leases ------------------------------------------------------------------------------------------------------


def lease_data(lease: LeaseInfo) -> dict[str, Any]:
    """A lease for -o json and yaml: durations in seconds, and its state in one word with one line."""
    data: dict[str, Any] = plain(lease)
    del data["told_at"]  # a clock of this process
    return {**data, "state": lease.state, "message": lease.message}


def print_lease(lease: LeaseInfo, output: str | None) -> None:
    """One lease."""
    if output == "name":
        click.echo(lease.name)
    elif output:
        print_data(lease_data(lease), output)
    else:
        print_table(*_lease_table([lease]))


def print_leases(leases: Sequence[LeaseInfo], output: str | None) -> None:
    """Several leases."""
    if output == "name":
        for lease in leases:
            click.echo(lease.name)
    elif output:
        print_data({"leases": [lease_data(lease) for lease in leases]}, output)
    else:
        print_table(*_lease_table(leases))


def _lease_table(leases: Iterable[LeaseInfo]) -> tuple[list[str], list[list[str]]]:
    """Column names and rows. The tags have a column when there are any."""
    leases = list(leases)
    now = datetime.now(UTC)
    columns = ["NAME", "STATUS", "EXPORTER", "CLIENT", "EXPIRES AT", "REMAINING", "SELECTOR"]
    with_tags = any(lease.tags for lease in leases)
    rows = []
    for lease in leases:
        row = [
            lease.name,
            _status(lease, now),
            lease.exporter or lease.exporter_name or "",
            lease.client or "",
            local(lease.ends_at),
            "" if lease.ended or lease.remaining is None else span(lease.remaining),
            lease.selector,
        ]
        rows.append([*row, pairs_text(lease.tags)] if with_tags else row)
    return ([*columns, "TAGS"] if with_tags else columns), rows


def _status(lease: LeaseInfo, now: datetime) -> str:
    if lease.state == "pending" and lease.begin_time and lease.begin_time > now:
        return f"scheduled ({local(lease.begin_time)})"
    return lease.state


# --- exporters ---------------------------------------------------------------------------------------------------


def exporter_data(exporter: ExporterInfo) -> dict[str, Any]:
    """An exporter for -o json and yaml."""
    data: dict[str, Any] = plain(exporter)
    return data


def print_exporters(exporters: Sequence[ExporterInfo], output: str | None, extra: Collection[str]) -> None:
    """Exporters. extra: which columns to add of online, status, leases, enabled."""
    if output == "name":
        for exporter in exporters:
            click.echo(exporter.name)
        return
    if output:
        print_data({"exporters": [exporter_data(exporter) for exporter in exporters]}, output)
        return
    columns, cells = ["NAME"], [[exporter.name] for exporter in exporters]
    for name, titles, values in (
        ("enabled", ("ENABLED",), lambda e: (_yes(e.enabled),)),
        ("online", ("ONLINE",), lambda e: (_yes(e.online),)),
        ("status", ("STATUS",), _status_cells),
        ("leases", ("LEASED BY", "LEASE", "UNTIL"), lambda e: (e.client or "", e.lease or "", local(e.lease_ends))),
        ("labels", ("LABELS",), lambda e: (pairs_text(e.labels),)),
    ):
        if name in extra or name == "labels":
            columns += titles
            for row, exporter in zip(cells, exporters, strict=True):
                row += values(exporter)
    print_table(columns, cells)
    for exporter in exporters:
        for label, message in exporter.deprecated_labels.items():
            click.echo(f"Note: {exporter.name}: label {label} is deprecated: {message}", err=True)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _status_cells(exporter: ExporterInfo) -> tuple[str]:
    status = exporter.status.name
    return (f"{status}: {exporter.status_message}" if exporter.status_message else status,)
