# SPDX-License-Identifier: Apache-2.0
"""Bring a database up to the version of this program."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DBAPIError

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_controller.state.backend import Backend, Verdict
from jumpstarter_controller.state.outage import Unavailable

__all__ = ["upgrade"]


def upgrade(backend: Backend) -> None:
    """Run the migrations that are missing, in one transaction; of several controllers that start one does it.

    Raises ConfigurationError for what is no database, or one that a newer version has written; `Unavailable` for a
    server that cannot be reached.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    script = ScriptDirectory.from_config(config)
    try:
        with backend.writer.begin() as connection:
            backend.take_your_time(connection)
            backend.lock(connection)
            current = MigrationContext.configure(connection).get_current_revision()
            if current == script.get_current_head():
                return
            if current is not None and current not in {revision.revision for revision in script.walk_revisions()}:
                raise ConfigurationError(
                    f"database {backend.name} is of version {current}, which a newer jumpstarter-controller has written"
                )
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except DBAPIError as error:
        line = f"database {backend.name} cannot be used: {' '.join(str(error.orig).split())}"
        if backend.verdict(error) in (Verdict.FATAL, Verdict.STUCK):
            raise ConfigurationError(line) from None
        raise Unavailable(line) from None
