# SPDX-License-Identifier: Apache-2.0
"""Several controllers on one database."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Change them."""
    op.create_table(
        "replicas",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("last_seen", sa.Double(), nullable=False),
    )
    with op.batch_alter_table("exporters") as table:
        table.add_column(sa.Column("replica", sa.String()))
    with op.batch_alter_table("leases") as table:
        table.add_column(sa.Column("listener", sa.String()))
    op.create_table(
        "dials",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("listener", sa.String(), nullable=False),
        sa.Column("endpoint", sa.String(), nullable=False),
        sa.Column("token", sa.String(), nullable=False),
        sa.Column("taken", sa.Boolean(), nullable=False),
        sa.Column("refused", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
    )
    op.create_index("ix_dials_listener", "dials", ["listener"])
