# SPDX-License-Identifier: Apache-2.0
"""Requests that only somebody hostile sends: refused with a code and one short line, and nobody else notices."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest
from controller_harness import LabFiles
from google.protobuf.timestamp_pb2 import Timestamp
from peers import HOME, lab_of, refusal

from jumpstarter.common.enums import ExporterStatus
from jumpstarter_controller.services.messages import selector_from_message
from jumpstarter_protocol.jumpstarter.v1 import kubernetes_pb2


@pytest.mark.parametrize("seconds", [-(2**63), -1, 253402300799, 2**63 - 1])
@pytest.mark.parametrize("field", ["begin_time", "end_time"])
def test_a_time_that_cannot_be_told_is_not_kept(lab: LabFiles, field: str, seconds: int) -> None:
    async def body() -> None:
        async with lab_of(lab, clients=2) as (_, _, [mallory, alice]):
            code, text = await refusal(mallory.lease(**{field: Timestamp(seconds=seconds)}))
            assert (code, field in text) == ("INVALID_ARGUMENT", True)
            good = await mallory.lease()
            changed = {"name": good.name, field: Timestamp(seconds=seconds)}
            assert (await refusal(mallory.ask("UpdateLease", lease=changed)))[0] != "INTERNAL"
            # A lease with such a time made this fail for everybody.
            assert len((await alice.ask("ListLeases", parent=HOME, only_active=False)).leases) == 1

    asyncio.run(body())


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("GetLease", {"name": f"{HOME}/leases/{'x' * 100_000}"}),
        ("ListExporters", {"parent": HOME, "filter": "a=" + "x" * 10_000}),
        ("ListExporters", {"parent": HOME, "filter": ",".join(f"k{i}!=v" for i in range(9000))}),
        ("CreateLease", {"parent": HOME, "lease": {"exporter_name": "x" * 100_000, "duration": {"seconds": 5}}}),
        ("CreateLease", {"parent": HOME, "lease_id": "x" * 100_000, "lease": {"selector": "board=x"}}),
    ],
)
def test_a_long_text_comes_back_short(lab: LabFiles, method: str, request_: dict[str, Any]) -> None:
    async def body() -> None:
        async with lab_of(lab, exporters=0) as (_, _, [mallory]):
            code, text = await refusal(mallory.ask(method, **request_))
            assert code in ("INVALID_ARGUMENT", "NOT_FOUND")
            assert len(text) < 1100

    asyncio.run(body())


def test_a_selector_of_blanks_costs_no_time(lab: LabFiles) -> None:
    async def body() -> None:
        async with lab_of(lab, exporters=0) as (_, _, [mallory]):
            began = time.monotonic()
            assert not (await mallory.ask("ListExporters", parent=HOME, filter="a" + " " * 16_000)).exporters
            assert time.monotonic() - began < 2
            assert (await refusal(mallory.ask("ListExporters", parent=HOME, filter=" " * 20_000)))[1] == (
                "invalid filter: a selector can have at most 16384 characters, got 20000"
            )

    asyncio.run(body())


def test_a_selector_of_the_older_call_has_the_same_limit() -> None:
    expression = kubernetes_pb2.LabelSelectorRequirement(key="k", operator="In", values=[f"v{i}" for i in range(9000)])
    with pytest.raises(Exception, match="at most 16384 characters"):
        selector_from_message(kubernetes_pb2.LabelSelector(match_expressions=[expression]))


def test_no_caller_writes_a_line_of_its_own_into_the_log(lab: LabFiles, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        async with lab_of(lab, exporters=0) as (_, _, [mallory]):
            code, text = await refusal(mallory.ask("GetLease", name="namespaces/x\nERROR forged/leases/a"))
            assert (code, "\n" in text) == ("PERMISSION_DENIED", False)

    with caplog.at_level(logging.WARNING):
        asyncio.run(body())
    assert "ERROR forged" in caplog.text
    assert not any(line.startswith("ERROR forged") for line in caplog.text.splitlines())


def test_what_an_exporter_says_of_itself_is_one_short_line(lab: LabFiles) -> None:
    async def body() -> None:
        async with lab_of(lab) as (_, [exporter], [alice]):
            await exporter.status(ExporterStatus.AVAILABLE, message="a\x1b[31m\nb" + "x" * 1_000_000)
            [told] = (await alice.ask("ListExporters", parent=HOME)).exporters
            assert told.status_message.startswith("a [31m bxxx")
            assert len(told.status_message) < 1100

    asyncio.run(body())
