# SPDX-License-Identifier: Apache-2.0
"""Alembic: how a database of an older version becomes one of this version."""
