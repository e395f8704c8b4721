# SPDX-License-Identifier: Apache-2.0
"""Protects the line from two writers at once: a write whose caller is gone goes on in its thread."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from jumpstarter_driver_pyserial.ports import ThreadPort


class SlowPort:
    """Takes a byte, and the rest when it is let."""

    def __init__(self) -> None:
        self.line = b""
        self.begun, self.go_on = threading.Event(), threading.Event()

    def write(self, data: bytes) -> None:
        self.line += data[:1]
        self.begun.set()
        assert self.go_on.wait(20)
        self.line += data[1:]

    def close(self) -> None:
        return


def test_a_write_waits_for_one_whose_caller_is_gone() -> None:
    async def test() -> None:
        slow: Any = SlowPort()
        port = ThreadPort(slow)
        first = asyncio.create_task(port.write(b"first;"))
        assert await asyncio.to_thread(slow.begun.wait, 20)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first  # at once: the device may never take it
        slow.begun.clear()
        second = asyncio.create_task(port.write(b"second;"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert slow.line == b"f" and not slow.begun.is_set()
        slow.go_on.set()
        await second
        assert slow.line == b"first;second;"

    asyncio.run(test())


def test_a_port_that_is_closed_meanwhile_is_not_written_to() -> None:
    async def test() -> None:
        slow: Any = SlowPort()
        port = ThreadPort(slow)
        first = asyncio.create_task(port.write(b"first;"))
        assert await asyncio.to_thread(slow.begun.wait, 20)
        second = asyncio.create_task(port.write(b"second;"))
        await asyncio.sleep(0)
        port.close()
        slow.go_on.set()
        await first
        with pytest.raises(OSError, match="closed while writing"):
            await second

    asyncio.run(test())
