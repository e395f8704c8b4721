# SPDX-License-Identifier: Apache-2.0
"""Heartbeats, waiting without a match, spot leases, reservations."""

from __future__ import annotations

import re

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Change them."""
    with op.batch_alter_table("leases") as table:
        table.add_column(sa.Column("heartbeat", sa.Double()))
        table.add_column(sa.Column("heartbeat_at", sa.Double()))
        table.add_column(sa.Column("wait_for_match", sa.Boolean(), nullable=False, server_default=sa.false()))
        table.add_column(sa.Column("spot", sa.Boolean(), nullable=False, server_default=sa.false()))
        table.add_column(sa.Column("preempted_at", sa.Double()))
        table.add_column(sa.Column("silent_at", sa.Double()))
        table.add_column(sa.Column("minimum", sa.Double()))
        table.add_column(sa.Column("reserved_id", sa.String()))
    op.drop_index("ix_exporters_last_seen", "exporters")
    _index("ix_exporters_last_seen", "exporters", "online = 1 AND connected = 0", "last_seen")
    op.drop_index("ix_leases_ended", "leases")
    op.drop_index("ix_leases_expires", "leases")
    _index("ix_leases_ended", "leases", "ended = 1", "effective_end")
    _index("ix_leases_expires", "leases", "ended = 0", "expires_at")
    _index("ix_leases_unassigned", "leases", "ended = 0 AND exporter_id IS NULL", "begin_time")
    _index("ix_leases_silent", "leases", "ended = 0 AND silent_at IS NOT NULL", "silent_at")
    _index("ix_leases_preempted", "leases", "ended = 0 AND preempted_at IS NOT NULL", "preempted_at")


def _index(name: str, table: str, condition: str, *columns: str) -> None:
    postgres = re.sub(r"(\w+) = 0", r"NOT \1", re.sub(r"(\w+) = 1", r"\1", condition))
    op.create_index(name, table, list(columns), sqlite_where=sa.text(condition), postgresql_where=sa.text(postgres))
