# SPDX-License-Identifier: Apache-2.0
"""Commands tell the controller that serves from the same SQLite file what they changed."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_controller.state.bus import LocalBus
from jumpstarter_controller.state.nudge import nudge, nudged


def _socket(database: Path) -> Path:
    return database.with_name(f"{database.name}.sock")


def test_who_waits_for_the_topic_has_it_when_the_command_is_done(tmp_path: Path) -> None:
    async def body() -> None:
        bus, database = LocalBus(), tmp_path / "lab.db"
        with nudged(database, bus), bus.subscribe("a") as a, bus.subscribe("b") as b:
            assert stat.S_IMODE(_socket(database).stat().st_mode) == 0o600
            nudge(database, ["a", "c"])  # in the thread of the loop: it must not wait for it
            await asyncio.sleep(0)
            assert (a.take(), b.take()) == (True, False)
            await asyncio.to_thread(nudge, database, [f"topic/{i}" for i in range(10_000)])
            assert (a.take(), b.take()) == (True, True)  # too many to name: everybody looks
        assert not _socket(database).exists()

    asyncio.run(body())


def test_nobody_serves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nudge(tmp_path / "lab.db", ["a"])
    assert not caplog.records


def test_paths_longer_than_an_address_of_a_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()

    async def body() -> None:
        bus = LocalBus()
        with nudged(folder / "lab.db", bus), bus.subscribe("a") as a:
            await asyncio.to_thread(nudge, folder / "lab.db", ["a"])
            assert a.take()

    asyncio.run(body())


def test_two_controllers_cannot_serve_from_one_file(tmp_path: Path) -> None:
    async def body() -> None:
        with nudged(tmp_path / "lab.db", LocalBus()):
            with pytest.raises(ConfigurationError, match=r"another controller serves from database .*lab\.db"):
                with nudged(tmp_path / "lab.db", LocalBus()):
                    raise AssertionError("it serves")
            nudge(tmp_path / "lab.db", [])  # the first one goes on

    asyncio.run(body())


def test_the_socket_of_a_controller_that_was_killed_is_in_nobodys_way(tmp_path: Path) -> None:
    database = tmp_path / "lab.db"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(_socket(database)))  # and no one listens
    nudge(database, ["a"])

    async def body() -> None:
        with nudged(database, LocalBus()):
            await asyncio.to_thread(nudge, database, ["a"])

    asyncio.run(body())


def test_nonsense_is_logged_and_does_no_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        bus, database = LocalBus(), tmp_path / "lab.db"
        with nudged(database, bus), bus.subscribe("a") as a:
            for data in (b"{", b"7", b"[" * 70_000, b"\xff"):
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.connect(str(_socket(database)))
                    try:
                        connection.sendall(data)
                        connection.shutdown(socket.SHUT_WR)
                        assert await asyncio.to_thread(connection.recv, 2) == b""
                    except OSError:
                        continue  # it did not even read all of it
            await asyncio.to_thread(nudge, database, ["a"])
            assert a.take()

    with caplog.at_level(logging.WARNING):
        asyncio.run(body())
    assert len([record for record in caplog.records if "was not understood" in record.message]) == 4


def test_a_controller_that_does_not_answer_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = tmp_path / "lab.db"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(_socket(database)))
        listener.listen(1)

        def hang_up() -> None:
            listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        nudge(database, ["a"])
        thread.join()
    assert "could not be told" in caplog.text
    os.unlink(_socket(database))
