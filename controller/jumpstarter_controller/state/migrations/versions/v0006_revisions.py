# SPDX-License-Identifier: Apache-2.0
"""A number that changes with labels and policies, whoever changes them.

A later migration that makes one of these tables anew (on SQLite, `batch_alter_table` does so for constraints) has to
call `make_triggers` again: triggers go with their table.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

#: Columns whose change counts; an empty tuple stands for all.
_TABLES: dict[str, tuple[str, ...]] = {
    "exporters": ("namespace", "name", "labels", "reported_labels", "enabled"),
    "policies": (),
}
#: Random, not counted: a number that was seen within a transaction that failed never comes again.
_RANDOM = {"sqlite": "random()", "postgresql": "(random() * 9007199254740991)::bigint"}


def upgrade() -> None:
    """Make it."""
    table = op.create_table(
        "revisions",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("value", sa.BigInteger(), nullable=False),
    )
    op.bulk_insert(table, [{"name": "catalogue", "value": 0}])
    make_triggers()


def make_triggers() -> None:
    """The triggers, on tables that have none."""
    database = op.get_bind().dialect.name
    change = f"UPDATE revisions SET value = {_RANDOM[database]} WHERE name = 'catalogue'"
    if database == "postgresql":
        op.execute(
            "CREATE OR REPLACE FUNCTION catalogue_changed() RETURNS trigger "
            f"AS $$ BEGIN {change}; RETURN NULL; END; $$ LANGUAGE plpgsql"
        )
    for table, columns in _TABLES.items():
        updated = "UPDATE OF " + ", ".join(columns) if columns else "UPDATE"
        if database == "postgresql":
            op.execute(
                f"CREATE TRIGGER {table}_changed AFTER INSERT OR DELETE OR {updated} ON {table} "
                "FOR EACH STATEMENT EXECUTE FUNCTION catalogue_changed()"
            )
            continue
        for name, event in (("inserted", "INSERT"), ("updated", updated), ("deleted", "DELETE")):
            op.execute(f"CREATE TRIGGER {table}_{name} AFTER {event} ON {table} BEGIN {change}; END")
