# SPDX-License-Identifier: Apache-2.0
"""Bring a database up to the version of this program."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine
from sqlalchemy.exc import DatabaseError

from jumpstarter.common.exceptions import ConfigurationError

__all__ = ["upgrade"]


def upgrade(engine: Engine, name: Path) -> None:
    """Run the migrations that are missing, in one transaction. ``name`` is for messages.

    Raises ConfigurationError for a file that is no database, or one that a newer version has written.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    script = ScriptDirectory.from_config(config)
    try:
        with engine.execution_options(immediate=True).begin() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
            if current == script.get_current_head():
                return
            if current is not None and current not in {revision.revision for revision in script.walk_revisions()}:
                raise ConfigurationError(
                    f"database {name} is of version {current}, which a newer jumpstarter-controller has written"
                )
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except DatabaseError as error:
        raise ConfigurationError(f"database {name} cannot be used: {error.orig}") from error
