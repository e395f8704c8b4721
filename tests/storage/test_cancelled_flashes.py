# SPDX-License-Identifier: Apache-2.0
"""Protects the moments in which a cancellation could get lost: before a thread begins, while it reads, at the end."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from jumpstarter_driver_storage import reading
from jumpstarter_driver_storage.driver import FileFlasher
from jumpstarter_driver_storage.mux import TargetStorageMux
from jumpstarter_driver_storage.operation import Operation, outlast
from jumpstarter_driver_storage.target import check

OLD, NEW = b"old" * 1000, b"new" * 1000


class Stream:
    """A client's stream. complete: set when all of it has been taken."""

    encoding = None

    def __init__(self, *chunks: bytes, endless: bool = False) -> None:
        self._chunks = list(chunks)
        self._endless = endless
        self.complete = asyncio.Event()

    def raw(self) -> AsyncIterator[bytes]:
        return self._give()

    async def _give(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk
        self.complete.set()
        if self._endless:
            await asyncio.get_running_loop().create_future()


def give(driver: Any, stream: Stream) -> None:
    @asynccontextmanager
    async def resource(handle: Any, timeout: float = 0) -> AsyncIterator[Stream]:
        yield stream

    driver.resource = resource


def test_a_flash_that_is_cancelled_before_its_thread_begins_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(OLD)
    begin = threading.Event()
    ended = threading.Event()
    run = Operation._run

    def late(operation: Operation[Any]) -> None:
        assert begin.wait(20)
        run(operation)
        ended.set()

    monkeypatch.setattr(Operation, "_run", late)

    async def test() -> None:
        driver = FileFlasher(path=str(disk), state_dir=str(tmp_path / "state"))
        stream = Stream(NEW)
        give(driver, stream)
        task = asyncio.ensure_future(driver.flash("handle"))
        await stream.complete.wait()
        for _ in range(5):  # the end of the stream is in the queue, too
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        begin.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(test())
    assert ended.wait(20)
    assert disk.read_bytes() == OLD


def test_closing_a_flashs_events_ends_all_of_it(tmp_path: Path) -> None:
    """Not one task of the event loop later, when the session may be over: the storage is where it belongs."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(64 << 20))

    async def test() -> None:
        driver = TargetStorageMux(path=str(disk), state_dir=str(tmp_path / "state"))
        give(driver, Stream(*[b"x" * (1 << 20)] * 16, endless=True))
        events = driver.flash_image("handle")
        async with aclosing(events):  # type: ignore[type-var]
            assert (await anext(events))["event"] == "progress"
            assert driver._side == "host" and driver._operations
        assert driver._side == "dut"
        assert not driver._operations and not driver._writing.locked()

    asyncio.run(test())


def test_a_flash_that_ends_in_the_next_session_does_not_touch_its_turn(tmp_path: Path) -> None:
    async def test() -> None:
        driver = FileFlasher(path=str(tmp_path / "disk"), state_dir=str(tmp_path / "state"))
        async with driver._turn("disk"):
            driver.reset()
            async with driver._turn("disk"):
                pass
            await driver._writing.acquire()
        assert driver._writing.locked()

    asyncio.run(test())


@pytest.mark.parametrize("times", [1, 2])
def test_a_dump_that_is_cancelled_closes_the_file_after_its_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(OLD)
    begun, go_on = threading.Event(), threading.Event()
    seen: list[tuple[int, bool]] = []
    pread = os.pread

    def slow(fd: int, length: int, offset: int) -> bytes:
        begun.set()
        assert go_on.wait(20)
        seen.append((fd, os.fstat(fd).st_size == len(OLD)))
        return pread(fd, length, offset)

    async def test() -> None:
        driver = FileFlasher(path=str(disk), state_dir=str(tmp_path / "state"))
        checked = check(*driver.find_target(None), "test", writing=False)
        blocks = reading.read_target(checked)
        task = asyncio.ensure_future(anext(blocks))
        assert await asyncio.to_thread(begun.wait, 20)
        for _ in range(times):
            task.cancel()
            for _ in range(5):
                await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    with monkeypatch.context() as patched:
        patched.setattr(reading.os, "pread", slow)
        asyncio.run(test())  # its end waits for the threads
    [(fd, was_ours)] = seen
    assert was_ours
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_outlasting_goes_on_through_cancellations_and_does_not_lose_them() -> None:
    async def test() -> None:
        work = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(outlast(work))
        for _ in range(3):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        work.set_exception(OSError("for who asks"))
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(test())
