# SPDX-License-Identifier: Apache-2.0
"""Spot leases: had at once, and taken away, with notice, for those who may stay."""

from __future__ import annotations

import pytest
from queue_bench import NAMESPACE, START, QueueBench

from jumpstarter.common.enums import ExporterStatus
from jumpstarter_controller.errors import Refused


@pytest.fixture
def spot(bench: QueueBench) -> QueueBench:
    """Everybody may have spot leases, the team may have real ones. One exporter: e1."""
    bench.policy_rule("anybody", spot=True)
    bench.policy_rule("team", clients="team=a")
    return bench


def test_a_spot_rule_is_enough_for_a_lease(spot: QueueBench) -> None:
    guest, member = spot.client("guest"), spot.client("member", team="a")
    spot.exporter("e1", board="x")
    lease = spot.lease(guest)
    assert (spot.holder(lease), spot.get(lease).spot) == ("e1", True)
    spot.release(guest, lease)
    lease = spot.lease(member)
    assert (spot.holder(lease), spot.get(lease).spot) == ("e1", False)


def test_a_spot_lease_gives_way_after_its_grace_period(spot: QueueBench) -> None:
    guest, member = spot.client("guest"), spot.client("member", team="a")
    e1 = spot.exporter("e1", board="x")
    lease = spot.lease(guest)
    spot.at(10)
    wanted = spot.lease(member)
    told = spot.get(lease)
    assert told.preempted_at == START + 70
    assert spot.reason(lease) == "Ready=True Preempting"
    assert "ends at 2027-01-15 08:01:10 UTC" in told.conditions[-1]["message"]
    assert {f"lease/{NAMESPACE}/{lease}", f"exporter/{e1.id}"} <= spot.topics
    assert spot.deadline == START + 70
    spot.at(69)
    assert spot.holder(lease) == "e1"
    spot.at(70)
    assert (spot.reason(lease), spot.holder(wanted)) == ("Ready=False Preempted", "e1")


def test_the_lease_stays_when_the_need_is_gone(spot: QueueBench) -> None:
    guest, member = spot.client("guest"), spot.client("member", team="a")
    spot.exporter("e1", board="x")
    lease = spot.lease(guest)
    wanted = spot.lease(member)
    assert spot.get(lease).preempted_at == START + 60
    spot.at(30)
    spot.release(member, wanted)
    assert spot.get(lease).preempted_at is None
    assert spot.reason(lease) == "Ready=True Ready"
    spot.at(100)
    assert spot.holder(lease) == "e1"


def test_one_goes_for_one_and_the_least_important_first(spot: QueueBench) -> None:
    spot.policy_rule("paying", clients="pays=yes", spot=True, priority=5)
    guest, payer, member = spot.client("guest"), spot.client("payer", pays="yes"), spot.client("member", team="a")
    for name in ("e1", "e2", "e3"):
        spot.exporter(name, board="x")
    paid = spot.lease(payer)
    old = spot.lease(guest)
    spot.at(10)
    young = spot.lease(guest)
    spot.lease(member)
    assert [spot.get(name).preempted_at for name in (paid, old, young)] == [None, None, START + 70]
    spot.at(20)
    spot.lease(member)
    assert [spot.get(name).preempted_at for name in (paid, old, young)] == [None, START + 80, START + 70]
    spot.at(80)
    assert spot.holder(paid) == "e1"


def test_nobody_is_sent_away_for_an_exporter_that_gets_ready_anyway(spot: QueueBench) -> None:
    guest, member = spot.client("guest"), spot.client("member", team="a")
    spot.exporter("e1", board="x")
    lease = spot.lease(guest)
    e2 = spot.exporter("e2", board="x")
    spot.status(e2, ExporterStatus.AFTER_LEASE_HOOK)
    wanted = spot.lease(member)
    assert spot.get(lease).preempted_at is None
    spot.status(e2, ExporterStatus.AVAILABLE)
    assert spot.holder(wanted) == "e2"


def test_spot_leases_wait_behind_the_others_and_never_take_from_each_other(spot: QueueBench) -> None:
    guest, other, member = spot.client("guest"), spot.client("other"), spot.client("member", team="a")
    spot.exporter("e1", board="x")
    held = spot.lease(guest)
    second = spot.lease(other)
    assert spot.get(held).preempted_at is None
    third = spot.lease(member)
    spot.release(guest, held)
    assert (spot.holder(third), spot.holder(second)) == ("e1", None)
    assert not spot.get(third).spot


def test_a_reservation_sends_a_spot_lease_away_in_time(spot: QueueBench) -> None:
    guest, member = spot.client("guest"), spot.client("member", team="a")
    spot.exporter("e1", board="x")
    lease = spot.lease(guest, duration=1000.0)
    later = spot.lease(member, duration=100.0, begin=START + 200)
    assert spot.deadline == START + 140
    spot.at(139)
    assert spot.get(lease).preempted_at is None
    spot.at(140)
    assert spot.get(lease).preempted_at == START + 200
    spot.at(200)
    assert (spot.reason(lease), spot.holder(later)) == ("Ready=False Preempted", "e1")


def test_an_extension_beyond_what_is_allowed_for_good_makes_it_spot(spot: QueueBench) -> None:
    spot.policy_rule("team", clients="team=a", maximum=100.0)
    member = spot.client("member", team="a")
    spot.exporter("e1", board="x")
    lease = spot.lease(member, duration=100.0)
    assert not spot.get(lease).spot
    assert spot.update(member, lease, duration=101.0).spot


def test_a_spot_lease_does_not_become_one_that_stays_in_the_way_of_a_reservation(spot: QueueBench) -> None:
    guest, member = spot.client("guest"), spot.client("member", team="a")
    spot.exporter("e1", board="x")
    lease = spot.lease(guest, duration=1000.0)
    later = spot.lease(member, duration=100.0, begin=START + 200)
    with pytest.raises(Refused, match=f"e1 is reserved from .* by lease {later} of client member"):
        spot.update(guest, lease, client="member")
    assert spot.get(lease).client.name == "guest"
    spot.release(member, later)
    assert not spot.update(guest, lease, client="member").spot


def test_what_a_spot_lease_has_reserved_gives_way_too(spot: QueueBench) -> None:
    guest, member = spot.client("guest"), spot.client("member", team="a")
    spot.exporter("e1", board="x")
    reserved = spot.lease(guest, duration=100.0, begin=START + 100)
    now = spot.lease(member, duration=150.0)
    assert (spot.holder(now), spot.get(reserved).spot) == ("e1", True)
    with pytest.raises(Refused, match="exporter e1 is taken"):
        spot.lease(guest, duration=10.0, begin=START + 120)
    later = spot.lease(member, duration=100.0, begin=START + 150)
    spot.at(150)
    assert (spot.holder(later), spot.holder(reserved)) == ("e1", None)
    spot.release(member, later)
    assert spot.holder(reserved) == "e1"
    # Another rule makes two that overlap real ones: there is room for the first only.
    second = spot.lease(guest, duration=10.0, begin=START + 300)
    third = spot.lease(member, duration=10.0, begin=START + 300)
    assert spot.get(second).reserved_id == spot.get(third).reserved_id
    spot.policy_rule("everybody")
    assert spot.reason(second) == "Pending=True NotReserved"
    assert spot.get(third).reserved_id is not None
