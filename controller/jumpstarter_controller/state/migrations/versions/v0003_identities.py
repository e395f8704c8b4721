# SPDX-License-Identifier: Apache-2.0
"""Administrators, names at external issuers, and what the audit log is searched by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Change them."""
    for kind in ("clients", "exporters"):
        with op.batch_alter_table(kind) as table:
            table.add_column(sa.Column("username", sa.String()))
            table.create_unique_constraint(f"uq_{kind}_username", ["username"])
    with op.batch_alter_table("clients") as table:
        table.add_column(sa.Column("administrator", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("audit", sa.Column("namespace", sa.String()))
    op.add_column("audit", sa.Column("client", sa.String()))
    op.create_index("ix_audit_exporter", "audit", ["exporter"])
    op.create_index("ix_audit_client", "audit", ["client"])
