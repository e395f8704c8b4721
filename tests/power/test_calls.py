# SPDX-License-Identifier: Apache-2.0
"""Protects what one driver does to another: a cancelled call does not leave a thread at work on the hardware."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from jumpstarter.driver import Driver, call_cancelled, export
from jumpstarter.driver.calls import call_to_end
from jumpstarter_driver_power.common import PowerReading
from jumpstarter_driver_power.driver import PowerInterface


@dataclass(kw_only=True)
class SlowPower(PowerInterface, Driver):
    """A relay that takes its time: `off` begins, and ends when it is let."""

    begun: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    did: list[str] = field(default_factory=list)

    @export
    def on(self) -> None:  # type: ignore[override]
        self.did.append("on")

    @export
    def off(self) -> None:  # type: ignore[override]
        self.begun.set()
        assert self.go_on.wait(20)
        self.did.append("off, unwanted" if call_cancelled() else "off")

    @export(readonly=True)
    async def read(self) -> AsyncGenerator[PowerReading, None]:
        yield PowerReading(voltage=0, current=0)


async def cancelled(work: Any, begun: threading.Event, go_on: threading.Event) -> None:
    """Cancel it, more than once, while its thread is at work; go on when that has been seen not to end it."""
    task = asyncio.ensure_future(work)
    assert await asyncio.to_thread(begun.wait, 20)
    for _ in range(2):
        task.cancel()
        for _ in range(20):
            await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_cancelled_cycle_ends_when_the_switch_has_moved_and_switches_no_more() -> None:
    power = SlowPower()
    asyncio.run(cancelled(power.cycle(0), power.begun, power.go_on))
    assert power.did == ["off, unwanted"]


def test_a_cancelled_call_that_fails_is_cancelled() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def fail() -> None:
        begun.set()
        assert go_on.wait(20)
        raise OSError("the relay is stuck")

    asyncio.run(cancelled(call_to_end(fail), begun, go_on))


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_results_and_errors_of_both_colours_pass(colour: str) -> None:
    def sync(a: int, b: int) -> float:
        return a / b

    async def coroutine(a: int, b: int) -> float:
        return a / b

    method: Callable[..., Any] = sync if colour == "sync" else coroutine
    assert asyncio.run(call_to_end(method, 6, 3)) == 2
    with pytest.raises(ZeroDivisionError):
        asyncio.run(call_to_end(method, 6, 0))
