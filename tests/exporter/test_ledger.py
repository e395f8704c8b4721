# SPDX-License-Identifier: Apache-2.0
"""The record of driver calls is bounded, and says what it lost."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest
from exporter_harness import run, until

from jumpstarter.exporter import ledger
from jumpstarter.exporter.ledger import CallLedger, CallRecord


class FakeUplink:
    """Takes reports when it is attached."""

    def __init__(self, lab: bool = True) -> None:
        self.lab = lab
        self.attached = asyncio.Event()
        self.requests: list[Any] = []
        self.refuse = False

    async def wait_attached(self) -> None:
        await self.attached.wait()

    async def call(self, method: str, request: Any, *, lab: bool) -> None:
        assert (method, lab) == ("ReportCalls", True)
        if self.refuse:
            self.refuse = False
            raise grpc.aio.AioRpcError(grpc.StatusCode.INVALID_ARGUMENT, None, None, "no", None)  # type: ignore[arg-type]
        self.requests.append(request)


def record(n: int) -> CallRecord:
    return CallRecord("l1", "alice", "power", f"m{n}", "call", 1_700_000_000.5 + n, 0.25, "OK")


def test_calls_wait_for_the_controller_and_what_does_not_fit_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_KEPT", 7)
    monkeypatch.setattr(ledger, "_BATCH", 3)
    monkeypatch.setattr(ledger, "_TOGETHER_SECONDS", 0)

    async def body() -> None:
        uplink = FakeUplink()
        book = CallLedger(uplink)  # type: ignore[arg-type]
        running = asyncio.create_task(book.run())
        for n in range(10):
            book.note(record(n))
        assert uplink.requests == []
        uplink.attached.set()
        await book.told()
        methods = [[call.method for call in request.calls] for request in uplink.requests]
        assert methods == [["m0", "m1", "m2"], ["m3", "m4", "m5"], ["m6"]]
        assert [request.dropped for request in uplink.requests] == [3, 0, 0]
        first = uplink.requests[0].calls[0]
        assert first.started.ToNanoseconds() == 1_700_000_000_500_000_000
        assert (first.duration.ToNanoseconds(), first.lease, first.client) == (250_000_000, "l1", "alice")
        uplink.refuse = True  # a batch that is refused is not told for ever
        book.note(record(10))
        book.note(record(11))
        await book.told()
        book.note(record(12))
        await until(lambda: len(uplink.requests) == 4)
        assert [call.method for call in uplink.requests[-1].calls] == ["m12"]
        running.cancel()

    run(body)


def test_a_controller_that_does_not_ask_for_calls_is_told_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_TOGETHER_SECONDS", 0)

    async def body() -> None:
        uplink = FakeUplink(lab=False)
        uplink.attached.set()
        book = CallLedger(uplink)  # type: ignore[arg-type]
        running = asyncio.create_task(book.run())
        for n in range(10):
            book.note(record(n))
        await book.told()
        assert uplink.requests == []
        running.cancel()

    run(body)


def test_names_that_a_client_made_up_do_not_end_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_TOGETHER_SECONDS", 0)

    async def body() -> None:
        uplink = FakeUplink()
        uplink.attached.set()
        book = CallLedger(uplink)  # type: ignore[arg-type]
        running = asyncio.create_task(book.run())
        book.note(replace(record(1), driver="half a character \ud800, a null \0", method="m" * 4_000_000))
        book.note(record(2))
        async with asyncio.timeout(10):
            await book.told()
        strange, plain = uplink.requests[0].calls
        assert strange.driver == "half a character \ufffd, a null \ufffd"
        assert len(strange.method) < 250 and strange.method.endswith("...")
        assert (plain.driver, plain.method) == ("power", "m2")
        running.cancel()

    run(body)
