# SPDX-License-Identifier: Apache-2.0
"""Scheduled leases reserve an exporter: nobody else is let in the way of them, and everybody is told why."""

from __future__ import annotations

import grpc
import pytest
from queue_bench import START, QueueBench

from jumpstarter.common.enums import ExporterStatus
from jumpstarter_controller import exporters
from jumpstarter_controller.errors import Refused


def reserved(bench: QueueBench, name: str) -> bool:
    return bench.get(name).reserved_id is not None


def test_a_scheduled_lease_begins_and_ends_at_its_time(bench: QueueBench) -> None:
    alice = bench.client("alice")
    bench.exporter("e1", board="x")
    lease = bench.lease(alice, duration=60.0, begin=START + 100)
    [condition] = bench.get(lease).conditions
    assert (condition["type"], condition["status"], condition["reason"]) == ("Pending", "True", "Scheduled")
    assert condition["message"] == ("exporter e1 is reserved from 2027-01-15 08:01:40 UTC to 2027-01-15 08:02:40 UTC")
    assert bench.deadline == START + 100
    bench.at(99)
    assert bench.holder(lease) is None
    bench.at(100)
    assert bench.holder(lease) == "e1"
    assert [(c["type"], c["status"]) for c in bench.get(lease).conditions] == [("Pending", "False"), ("Ready", "True")]
    bench.at(160)
    assert bench.reason(lease) == "Ready=False Expired"


def test_who_would_run_into_a_reservation_waits_and_who_would_not_does_not(bench: QueueBench) -> None:
    alice, bob = bench.client("alice"), bench.client("bob")
    bench.exporter("e1", board="x")
    later = bench.lease(alice, duration=100.0, begin=START + 1000)
    long, short = bench.lease(bob, duration=1001.0), bench.lease(bob, duration=1000.0)
    assert (bench.holder(long), bench.holder(short)) == (None, "e1")
    bench.release(bob, short)
    message = bench.get(long).conditions[-1]["message"]
    assert message == (
        "exporter e1 is reserved from 2027-01-15 08:16:40 UTC to 2027-01-15 08:18:20 UTC by lease "
        f"{later} of client alice, and this lease would last longer"
    )
    bench.at(1000)
    assert (bench.holder(later), bench.holder(long)) == ("e1", None)
    bench.release(alice, later)
    assert bench.holder(long) == "e1"


def test_a_lease_may_be_shorter_when_it_says_so(bench: QueueBench) -> None:
    alice, bob = bench.client("alice"), bench.client("bob")
    bench.exporter("e1", board="x")
    later = bench.lease(alice, duration=100.0, begin=START + 50)
    too_long = bench.lease(bob, duration=600.0, minimum=51.0)
    shortened = bench.lease(bob, duration=600.0, minimum=50.0)
    assert (bench.holder(too_long), bench.holder(shortened)) == (None, "e1")
    lease = bench.get(shortened)
    assert (lease.expires_at, lease.duration) == (START + 50, 50.0)
    assert "until 2027-01-15 08:00:50 UTC" in lease.conditions[-1]["message"]
    bench.at(50)
    assert bench.holder(later) == "e1"


def test_a_reservation_that_cannot_be_kept_is_refused_and_says_when_there_is_room(bench: QueueBench) -> None:
    alice, bob = bench.client("alice"), bench.client("bob")
    bench.exporter("e1", board="x")
    bench.lease(alice, duration=60.0, name="now")
    bench.lease(alice, duration=100.0, begin=START + 100, name="later")
    for begin, duration, name, free in [
        (30.0, 10.0, "now", "08:01:00"),
        (70.0, 31.0, "later", "08:03:20"),
        (150.0, 10.0, "later", "08:03:20"),
        (10.0, 45.0, "now", "08:03:20"),
    ]:
        with pytest.raises(Refused) as refused:
            bench.lease(bob, duration=duration, begin=START + begin)
        assert refused.value.code is grpc.StatusCode.FAILED_PRECONDITION
        assert "exporter e1 is taken from" in refused.value.message
        assert f"by lease {name} of client alice" in refused.value.message
        assert refused.value.message.endswith(f"e1 is free that long from 2027-01-15 {free} UTC on")
    assert reserved(bench, bench.lease(bob, duration=40.0, begin=START + 60))  # fits exactly
    assert reserved(bench, bench.lease(bob, duration=40.0, begin=START + 200))


def test_several_exporters_take_several_reservations(bench: QueueBench) -> None:
    alice = bench.client("alice")
    for name in ("e1", "e2"):
        bench.exporter(name, board="x")
    names = [bench.lease(alice, duration=100.0, begin=START + 100) for _ in range(2)]
    with pytest.raises(Refused, match="none of 2 matching exporters is free"):
        bench.lease(alice, duration=100.0, begin=START + 150)
    with pytest.raises(Refused, match="exporter e2 is taken"):
        bench.lease(alice, selector="", exporter_name="e2", duration=100.0, begin=START + 150)
    bench.at(100)
    assert sorted(str(bench.holder(name)) for name in names) == ["e1", "e2"]


def test_a_lease_is_not_extended_into_a_reservation(bench: QueueBench) -> None:
    alice, bob = bench.client("alice"), bench.client("bob")
    bench.exporter("e1", board="x")
    held = bench.lease(alice, duration=60.0)
    later = bench.lease(bob, duration=60.0, begin=START + 100)
    for values in ({"duration": 101.0}, {"end": START + 101}):
        with pytest.raises(
            Refused, match=f"e1 is reserved from .* 08:01:40 UTC on by lease {later} of client bob"
        ) as no:
            bench.update(alice, held, **values)
        assert no.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert bench.get(held).expires_at == START + 60
    assert bench.update(alice, held, duration=100.0).expires_at == START + 100
    bench.release(bob, later)
    assert bench.update(alice, held, duration=200.0).expires_at == START + 200


def test_a_scheduled_lease_is_moved_only_to_where_there_is_room(bench: QueueBench) -> None:
    alice, bob = bench.client("alice"), bench.client("bob")
    bench.exporter("e1", board="x")
    first = bench.lease(alice, duration=100.0, begin=START + 100)
    second = bench.lease(bob, duration=100.0, begin=START + 200)
    with pytest.raises(Refused, match=f"by lease {second} of client bob"):
        bench.update(alice, first, begin=START + 150)
    with pytest.raises(Refused, match=f"by lease {second} of client bob"):
        bench.update(alice, first, duration=101.0)
    assert bench.get(first).begin_time == START + 100
    bench.update(alice, first, begin=START + 50)
    assert bench.deadline == START + 50
    bench.update(alice, first, clear=frozenset({"begin", "end"}))
    assert bench.holder(first) == "e1"
    assert bench.get(first).expires_at == START + 100


def test_a_reservation_moves_when_its_exporter_is_switched_off(bench: QueueBench) -> None:
    alice = bench.client("alice")
    bench.exporter("e1", board="x")
    e2 = bench.exporter("e2", board="x")
    lease = bench.lease(alice, duration=100.0, begin=START + 100)
    bench.enable("e1", False)
    assert bench.get(lease).reserved_id == e2.id
    assert "exporter e2 is reserved" in bench.get(lease).conditions[-1]["message"]
    blocking = bench.lease(alice, duration=150.0)
    assert bench.holder(blocking) is None
    bench.enable("e1", True)
    assert bench.holder(blocking) == "e1"
    bench.enable("e2", False)
    assert bench.reason(lease) == "Pending=True NotReserved"
    assert "it waits for one" in bench.get(lease).conditions[-1]["message"]
    bench.enable("e2", True)
    assert bench.get(lease).reserved_id == e2.id


def test_at_its_time_it_comes_before_higher_priorities_and_takes_what_is_ready(bench: QueueBench) -> None:
    alice, vip = bench.client("alice"), bench.client("vip", team="vip")
    bench.policy_rule("all")
    bench.policy_rule("vip", clients="team=vip", priority=10)
    e1 = bench.exporter("e1", board="x")
    lease = bench.lease(alice, duration=100.0, begin=START + 100)
    before = bench.lease(vip, duration=100.0)
    bench.status(e1, ExporterStatus.AFTER_LEASE_HOOK)
    waiting = bench.lease(vip, duration=100.0)
    bench.at(100)
    assert bench.get(before).ended
    assert bench.reason(lease) == "Pending=True NotReady"
    bench.status(e1, ExporterStatus.AVAILABLE)
    assert (bench.holder(lease), bench.holder(waiting)) == ("e1", None)
    assert bench.get(lease).expires_at == START + 200
    bench.release(alice, lease)
    bench.release(vip, waiting)
    # Its own exporter is lost: any other will do.
    bench.now = START + 100
    bench.exporter("e2", board="x")
    second = bench.lease(alice, duration=100.0, begin=START + 200)
    bench.change(exporters.disconnected, e1)
    bench.at(200)
    assert bench.holder(second) == "e2"


def test_a_scheduled_lease_without_a_match_fails_or_waits_as_asked(bench: QueueBench) -> None:
    alice = bench.client("alice")
    failed = bench.lease(alice, duration=100.0, begin=START + 100)
    assert bench.reason(failed) == "Unsatisfiable=True NoAccess"
    waiting = bench.lease(alice, duration=100.0, begin=START + 100, wait_for_match=True)
    assert bench.reason(waiting) == "Pending=True NoMatch"
    bench.exporter("e1", board="x")
    assert bench.reason(waiting) == "Pending=True Scheduled"
    assert reserved(bench, waiting)
