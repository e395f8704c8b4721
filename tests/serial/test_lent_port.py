# SPDX-License-Identifier: Apache-2.0
"""Protects lending the console's port to a program: it has the port to itself, and one at a time has it."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest

from jumpstarter_driver_pyserial.hub import ConsoleHub, ConsoleUnavailable


class SlowPort:
    """A port that is away at first; the second attempt to open it takes as long as ``go`` is not set."""

    name = "slow port"

    def __init__(self) -> None:
        self.opening, self.go = asyncio.Event(), asyncio.Event()
        self.attempts = self.open_now = 0

    async def open(self) -> Any:
        self.attempts += 1
        if self.attempts == 2:
            self.open_now = 1  # from here on the modem lines have moved
            self.opening.set()
            await self.go.wait()
            self.open_now = 0
        raise OSError(errno.ENODEV, "no such device")

    def close(self) -> None:
        """Nothing is open."""


def test_an_attempt_to_open_ends_before_the_port_is_lent() -> None:
    async def main() -> None:
        port = SlowPort()
        hub = ConsoleHub(port)  # type: ignore[arg-type]
        hub.start()
        seen: list[int] = []

        async def borrow() -> None:
            async with hub.lend("a tool"):
                seen.append(port.open_now)

        try:
            async with asyncio.timeout(10):
                await port.opening.wait()
                borrowing = asyncio.ensure_future(borrow())
                for _ in range(20):
                    await asyncio.sleep(0)
                assert not seen, "lent while it is being opened"
                with pytest.raises(ConsoleUnavailable):
                    async with hub.lend("another"):
                        pass
                port.go.set()
                await borrowing
        finally:
            hub.stop()
        assert seen == [0]

    asyncio.run(main())
