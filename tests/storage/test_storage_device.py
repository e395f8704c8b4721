# SPDX-License-Identifier: Apache-2.0
"""Plain transfers of drivers that switch storage themselves: waiting for the device, writing, reading."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from storage_helpers import MIB

from jumpstarter.common.storage import (
    read_from_storage_device,
    wait_for_storage_device,
    write_to_storage_device,
)


class Sink:
    """Takes what is sent."""

    def __init__(self) -> None:
        self.data = b""

    async def send(self, data: bytes) -> None:
        self.data += data


async def stream(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 100_000):
        yield data[start : start + 100_000]


def test_a_device_is_written_and_read_back(block_device: str) -> None:
    data = random.Random(1).randbytes(8 * MIB)
    assert asyncio.run(write_to_storage_device(block_device, stream(data))) == len(data)
    sink = Sink()
    assert asyncio.run(read_from_storage_device(block_device, sink)) == len(data)
    assert sink.data == data


def test_what_does_not_fit_is_an_error(block_device: str) -> None:
    with pytest.raises(OSError, match=f"{block_device} holds {8 * MIB} bytes") as caught:
        asyncio.run(write_to_storage_device(block_device, stream(bytes(8 * MIB + 1))))
    assert caught.value.errno == errno.ENOSPC


def test_a_device_in_use_is_not_written(block_device: str) -> None:
    before = Path(block_device).read_bytes()
    holder = os.open(block_device, os.O_RDONLY | os.O_EXCL)
    try:
        with pytest.raises(OSError) as caught:
            asyncio.run(write_to_storage_device(block_device, stream(b"x" * MIB), timeout=0.3))
        assert caught.value.errno == errno.EBUSY
    finally:
        os.close(holder)
    assert Path(block_device).read_bytes() == before


def test_a_device_that_appears_later_is_waited_for(block_device: str, tmp_path: Path) -> None:
    link = tmp_path / "by-id"

    async def scenario() -> int:
        waiting = asyncio.create_task(wait_for_storage_device(link, "rb", timeout=20))
        done, _ = await asyncio.wait([waiting], timeout=0.3)
        assert not done
        link.symlink_to(block_device)
        return await waiting

    assert asyncio.run(scenario()) == 8 * MIB


def test_a_device_that_never_comes_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "no-medium"
    empty.touch()
    for path, why in ((tmp_path / "nothing", "No such file"), (empty, "no medium")):
        with pytest.raises(TimeoutError, match=f"storage device {path} is not ready after 0.2 s: .*{why}"):
            asyncio.run(wait_for_storage_device(path, "wb", timeout=0.2))


def test_other_errors_are_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        asyncio.run(wait_for_storage_device(tmp_path, "wb", timeout=60))
