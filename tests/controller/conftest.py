# SPDX-License-Identifier: Apache-2.0
"""A controller with its own authority and database, for each test that asks; every such test runs on both databases."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from controller_harness import LabFiles
from postgres_harness import PostgresServer
from queue_bench import QueueBench


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server; one for all tests of this worker."""
    with PostgresServer.running() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """A new PostgreSQL database."""
    with postgres.database() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new database: where `open_database` and the configuration find it. Once for SQLite, once for PostgreSQL."""
    if request.param == "sqlite":
        return str(tmp_path / "lab.db")
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def lab(tmp_path: Path, database_url: str) -> LabFiles:
    """The files of a lab, on both databases."""
    return LabFiles.make(tmp_path / "lab", database=database_url)


@pytest.fixture
def bench(database_url: str) -> Iterator[QueueBench]:
    """The state without a network, on both databases."""
    bench = QueueBench(database_url)
    yield bench
    bench.database.close()
