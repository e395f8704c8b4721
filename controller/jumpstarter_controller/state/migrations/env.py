# SPDX-License-Identifier: Apache-2.0
"""What alembic runs for every command; `jumpstarter_controller.state.upgrade` has opened the connection."""

from __future__ import annotations

from alembic import context

from jumpstarter_controller.state.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite cannot alter most of a table in place
)
context.run_migrations()
