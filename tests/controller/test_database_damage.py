# SPDX-License-Identifier: Apache-2.0
"""A database whose disk is full or whose file is damaged: callers are told, nothing secret is logged, it can stop."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from controller_harness import LabFiles
from peers import HOME, Peer, lab_of, refusal
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from jumpstarter_controller.state.database import Transaction, open_database


async def _leases(alice: Peer) -> None:
    for _ in range(200):  # until the pages that are free are used
        await alice.lease(tags={f"t{n}": "x" * 60 for n in range(10)})


def test_a_full_disk_is_unavailable_and_passes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lab = LabFiles.make(tmp_path / "lab")

    async def body() -> None:
        async with lab_of(lab, exporters=0) as (running, _, [alice]):
            limit = 1

            @event.listens_for(running.database.backend.writer, "checkout")
            def as_without_room(connection: Any, *_: Any) -> None:
                connection.execute(f"PRAGMA max_page_count = {limit}").close()

            refused = await refusal(_leases(alice))
            assert refused == ("UNAVAILABLE", "the controller's database cannot be used: database or disk is full")
            assert (await alice.ask("ListLeases", parent=HOME)) is not None
            limit = 1_000_000
            assert (await alice.lease()).name

    asyncio.run(body())
    assert "cannot be used: database or disk is full" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_controller_with_a_damaged_database_can_be_stopped(tmp_path: Path) -> None:
    lab = LabFiles.make(tmp_path / "lab")

    async def body() -> None:
        async with lab_of(lab) as (_, [exporter], [alice]):
            for name in ("lab.db", "lab.db-wal"):
                with (lab.folder / name).open("r+b") as file:
                    file.write(b"\xa5" * max(8192, (lab.folder / name).stat().st_size))
            code, why = await refusal(alice.lease())
            assert (code, why.startswith("the controller's database cannot be used: ")) == ("UNAVAILABLE", True)
            assert exporter.told.empty()  # its stream is open: the end of the controller ends it

    async def limited() -> None:
        async with asyncio.timeout(60):
            await body()

    asyncio.run(limited())


def test_values_of_a_failed_statement_are_not_logged(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    def wrong(tx: Transaction) -> None:
        tx.session.execute(text("SELECT no_such_column + :secret"), {"secret": "".join(("ses", "ame"))})

    database = open_database(database_url)
    try:
        for attempt in (database.write_now, database.read_now):
            with pytest.raises(DBAPIError) as failed:
                attempt(wrong)
            logging.getLogger("test").error("it failed", exc_info=failed.value)
    finally:
        database.close()
    assert "no_such_column" in caplog.text
    assert "sesame" not in caplog.text
