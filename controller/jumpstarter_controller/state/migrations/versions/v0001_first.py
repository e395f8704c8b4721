# SPDX-License-Identifier: Apache-2.0
"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "clients",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.UniqueConstraint("namespace", "name", name="uq_clients_namespace"),
    )
    op.create_table(
        "exporters",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("reported_labels", sa.JSON(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("devices", sa.JSON(), nullable=False),
        sa.Column("registered", sa.Boolean(), nullable=False),
        sa.Column("connected", sa.Boolean(), nullable=False),
        sa.Column("online", sa.Boolean(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("status_message", sa.String(), nullable=False),
        sa.Column("last_seen", sa.Double(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.UniqueConstraint("namespace", "name", name="uq_exporters_namespace"),
    )
    op.create_index("ix_exporters_last_seen", "exporters", ["online", "last_seen"])
    op.create_table(
        "leases",
        sa.Column("sequence", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("client_id", sa.String(), sa.ForeignKey("clients.id"), nullable=False),
        sa.Column("exporter_id", sa.String(), sa.ForeignKey("exporters.id")),
        sa.Column("selector", sa.String(), nullable=False),
        sa.Column("exporter_name", sa.String()),
        sa.Column("allow_disabled", sa.Boolean(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("context", sa.JSON(), nullable=False),
        sa.Column("duration", sa.Double(), nullable=False),
        sa.Column("begin_time", sa.Double()),
        sa.Column("end_time", sa.Double()),
        sa.Column("effective_begin", sa.Double()),
        sa.Column("effective_end", sa.Double()),
        sa.Column("expires_at", sa.Double()),
        sa.Column("ended", sa.Boolean(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("conditions", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.UniqueConstraint("namespace", "name", name="uq_leases_namespace"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "uq_leases_active_exporter",
        "leases",
        ["exporter_id"],
        unique=True,
        sqlite_where=sa.text("ended = 0 AND exporter_id IS NOT NULL"),
        postgresql_where=sa.text("NOT ended AND exporter_id IS NOT NULL"),
    )
    op.create_index("ix_leases_client_id", "leases", ["client_id"])
    op.create_index("ix_leases_ended", "leases", ["ended", "effective_end"])
    op.create_index("ix_leases_expires", "leases", ["ended", "expires_at"])
    op.create_table(
        "policies",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("exporters", sa.String(), nullable=False),
        sa.Column("rules", sa.JSON(), nullable=False),
        sa.UniqueConstraint("namespace", "name", name="uq_policies_namespace"),
    )
    op.create_table(
        "signing_keys",
        sa.Column("kid", sa.String(), primary_key=True),
        sa.Column("private_pem", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("retired_at", sa.Double()),
    )
    op.create_table(
        "tokens",
        sa.Column("jti", sa.String(), primary_key=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("subject_id", sa.String(), nullable=False),
        sa.Column("issued_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("revoked_at", sa.Double()),
    )
    op.create_index("ix_tokens_subject_id", "tokens", ["subject_id"])
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("lease", sa.String()),
        sa.Column("exporter", sa.String()),
        sa.Column("detail", sa.JSON(), nullable=False),
    )
    op.create_index("ix_audit_at", "audit", ["at"])
    op.create_index("ix_audit_lease", "audit", ["lease"])
