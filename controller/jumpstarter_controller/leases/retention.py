# SPDX-License-Identifier: Apache-2.0
"""Leases that ended long ago and old entries of the audit log are forgotten, a few at a time so that nobody waits."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.exc import SQLAlchemyError

from jumpstarter_controller.leases.schedule import SchedulePolicy
from jumpstarter_controller.state.database import Database, Transaction, Unavailable
from jumpstarter_controller.state.models import AuditEntry, Lease

__all__ = ["forget", "keep"]

logger = logging.getLogger(__name__)

#: Rows of a table that one transaction removes.
_BATCH = 500
#: Seconds between two rounds, and between two transactions of one.
_ROUND, _PAUSE = 60.0, 0.05


async def keep(database: Database, policy: SchedulePolicy) -> None:
    """Forget what is due, until cancelled."""
    while True:
        try:
            while await database.write(forget, policy):
                await asyncio.sleep(_PAUSE)  # others come first
        except (SQLAlchemyError, Unavailable) as error:
            logger.warning("old leases and audit entries could not be removed: %s", error)
        await asyncio.sleep(min(_ROUND, policy.retention, policy.audit_retention))


def forget(tx: Transaction, policy: SchedulePolicy) -> bool:
    """Remove some rows. Returns whether there are more."""
    leases = select(Lease.sequence).where(Lease.ended, Lease.effective_end <= tx.now - policy.retention)
    entries = select(AuditEntry.id).where(AuditEntry.at <= tx.now - policy.audit_retention)
    gone = _remove(tx, Lease, Lease.sequence, leases) + _remove(tx, AuditEntry, AuditEntry.id, entries)
    return gone >= _BATCH


def _remove(tx: Transaction, model: Any, key: Any, query: Any) -> int:
    keys = list(tx.session.scalars(query.limit(_BATCH)))
    if keys:
        tx.session.execute(delete(model).where(key.in_(keys)).execution_options(synchronize_session=False))
    return len(keys)
