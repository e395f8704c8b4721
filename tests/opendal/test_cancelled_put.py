# SPDX-License-Identifier: Apache-2.0
"""Protects a file that a thread is receiving from being closed under it by a caller who will not wait."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from jumpstarter_driver_opendal.files import FileStore
from jumpstarter_driver_opendal.putting import _receive
from jumpstarter_driver_storage.data import DataListener
from jumpstarter_driver_storage.errors import JobCancelled


def test_the_connection_is_closed_after_its_thread_however_often_the_caller_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    still_open: list[bool] = []

    def slow(listener: DataListener) -> None:
        begun.set()
        assert go_on.wait(20)
        try:
            os.fstat(listener._wake)
            still_open.append(True)
        except OSError:
            still_open.append(False)
        raise JobCancelled

    monkeypatch.setattr(DataListener, "accept", slow)

    async def test() -> None:
        file = FileStore(str(tmp_path)).open_now("file", "wb")
        events = _receive(file, {"kind": "unix"}, 10)
        assert (await anext(events))["event"] == "data"
        task = asyncio.ensure_future(anext(events))
        assert await asyncio.to_thread(begun.wait, 20)
        for _ in range(3):
            task.cancel()
            for _ in range(10):
                await asyncio.sleep(0)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        file.abort()

    asyncio.run(test())
    assert still_open == [True]
