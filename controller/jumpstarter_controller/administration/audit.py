# SPDX-License-Identifier: Apache-2.0
"""Questions to the audit log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, select

from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import AuditEntry

__all__ = ["AuditQuery", "read_audit"]


@dataclass(frozen=True)
class AuditQuery:
    """Which entries: "" and None are for all of them.

    namespace, lease, exporter, client: names. action: part of it, in any case. since, until: seconds since 1970, the
    latter excluded. before: only entries with a smaller id (the place of a page).
    """

    namespace: str = ""
    lease: str = ""
    exporter: str = ""
    client: str = ""
    action: str = ""
    since: float | None = None
    until: float | None = None
    before: int | None = None

    def select(self) -> Select[Any]:
        """The statement, the newest first."""
        query = select(AuditEntry).order_by(AuditEntry.id.desc())
        for column, wanted in (
            (AuditEntry.namespace, self.namespace),
            (AuditEntry.lease, self.lease),
            (AuditEntry.exporter, self.exporter),
            (AuditEntry.client, self.client),
        ):
            if wanted:
                query = query.where(column == wanted)
        if self.action:
            query = query.where(func.lower(AuditEntry.action).contains(self.action.lower(), autoescape=True))
        # Times were rounded to microseconds when they were told.
        if self.since is not None:
            query = query.where(AuditEntry.at >= self.since - 5e-7)
        if self.until is not None:
            query = query.where(AuditEntry.at < self.until - 5e-7)
        if self.before is not None:
            query = query.where(AuditEntry.id < self.before)
        return query


def read_audit(tx: Transaction, query: AuditQuery, limit: int) -> list[AuditEntry]:
    """The newest entries that match, the newest first."""
    return list(tx.session.scalars(query.select().limit(limit)))
