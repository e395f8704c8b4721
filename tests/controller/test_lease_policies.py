# SPDX-License-Identifier: Apache-2.0
"""Access policies, whenever they and what they are about change; and labels an exporter gives itself."""

from __future__ import annotations

import grpc
import pytest
from queue_bench import NAMESPACE, START, QueueBench

from jumpstarter_controller import exporters
from jumpstarter_controller.administration.policies import delete_policy
from jumpstarter_controller.administration.subjects import change_subject, delete_subject
from jumpstarter_controller.errors import Refused
from jumpstarter_controller.leases.requests import LeaseRequest, Limits, create_lease
from jumpstarter_controller.state.models import Policy


def test_a_lease_that_waits_for_a_match_wakes_when_a_policy_or_label_lets_it(bench: QueueBench) -> None:
    alice, bob = bench.client("alice", team="a"), bench.client("bob", team="b")
    bench.exporter("e1", board="x")
    bench.policy_rule("a", clients="team=a")
    lease = bench.lease(bob, wait_for_match=True)
    assert bench.reason(lease) == "Pending=True NoMatch"
    assert "none of them are approved by any policy for your client: a" in bench.get(lease).conditions[-1]["message"]
    bench.policy_rule("b", clients="team=b")
    assert bench.holder(lease) == "e1"
    bench.release(bob, lease)
    for wish, make in [
        ({"selector": "board=new"}, lambda: bench.exporter("e2", board="new")),
        ({"selector": "", "exporter_name": "e3"}, lambda: bench.exporter("e3")),
        ({"selector": "board=z", "exporter_name": "e1"}, lambda: relabel(bench, "e1", board="z")),
    ]:
        lease = bench.lease(alice, wait_for_match=True, **wish)
        assert bench.reason(lease) == "Pending=True NoMatch"
        make()
        assert bench.holder(lease) is not None
        bench.release(alice, lease)
    bench.enable("e1", False)
    lease = bench.lease(alice, selector="", exporter_name="e1", wait_for_match=True)
    assert bench.reason(lease) == "Pending=True NoMatch"
    bench.enable("e1", True)
    assert bench.holder(lease) == "e1"


def relabel(bench: QueueBench, name: str, **labels: str) -> None:
    bench.change(change_subject, "test", "exporter", NAMESPACE, name, labels=labels)


def test_a_waiting_lease_is_judged_anew_when_its_world_changes(bench: QueueBench) -> None:
    alice = bench.client("alice", team="a")
    bench.exporter("e1", board="x")
    bench.lease(alice)
    waiting, second, third = bench.lease(alice), bench.lease(alice, duration=50.0), bench.lease(alice, "board in (x,y)")
    bench.policy_rule("short", maximum=100.0)
    assert bench.reason(waiting) == "Unsatisfiable=True NoAccess"
    assert bench.reason(second) == "Pending=True NotAvailable"
    assert bench.get(third).ended
    relabel(bench, "e1", board="other")
    assert bench.reason(second) == "Unsatisfiable=True NoAccess"
    bench.change(delete_policy, "test", NAMESPACE, "short")
    assert bench.reason(bench.lease(alice, "board=other")) == "Pending=True NotAvailable"


def test_an_exporter_that_is_deleted_is_no_candidate(bench: QueueBench) -> None:
    alice = bench.client("alice")
    bench.exporter("e1", board="x")
    bench.exporter("e2", board="x")
    first = bench.lease(alice)
    bench.release(alice, first)  # so that its row has to stay
    bench.change(delete_subject, "test", "exporter", NAMESPACE, "e1", force=True)
    lease, waiting = bench.lease(alice), bench.lease(alice)
    assert (bench.holder(lease), bench.holder(waiting)) == ("e2", None)
    assert "all 1 matching exporters are leased: e2" in bench.get(waiting).conditions[-1]["message"]


def test_an_exporter_goes_to_who_has_the_highest_priority_for_it(bench: QueueBench) -> None:
    alice, bob = bench.client("alice", team="a"), bench.client("bob", team="b")
    bench.policy_rule("a-on-x", "board=x", "team=a", priority=10)
    bench.policy_rule("a-on-y", "board=y", "team=a", priority=0)
    bench.policy_rule("b-on-y", "board=y", "team=b", priority=5)
    bench.exporter("e1", board="x")
    bench.exporter("e2", board="y")
    hold_x, hold_y = bench.lease(alice, "board=x"), bench.lease(alice, "board=y")
    either, only_y = bench.lease(alice, "board in (x,y)"), bench.lease(bob, "board=y")
    bench.release(alice, hold_y)
    assert (bench.holder(either), bench.holder(only_y)) == (None, "e2")
    bench.release(alice, hold_x)
    assert bench.holder(either) == "e1"
    assert bench.get(either).priority == 10


def test_a_waiting_lease_is_not_changed_to_what_no_policy_allows(bench: QueueBench) -> None:
    alice = bench.client("alice")
    bench.policy_rule("short", maximum=100.0)
    bench.exporter("e1", board="x")
    bench.lease(alice, duration=100.0)
    waiting = bench.lease(alice, duration=100.0)
    with pytest.raises(Refused, match="permission denied") as refused:
        bench.update(alice, waiting, duration=101.0)
    assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED
    assert bench.get(waiting).duration == 100.0
    scheduled = bench.lease(alice, duration=50.0, begin=START + 500)
    with pytest.raises(Refused, match="permission denied"):
        bench.update(alice, scheduled, end=START + 601)
    with pytest.raises(Refused, match="permission denied"):
        bench.update(alice, scheduled, begin=None, end=START + 651, duration=None)


def test_a_policy_without_rules_lets_nobody_in(bench: QueueBench) -> None:
    alice = bench.client("alice")
    bench.exporter("e1", board="x")
    bench.change(lambda tx: tx.session.add(Policy(namespace=NAMESPACE, name="closed", exporters="", rules=[])))
    assert bench.reason(bench.lease(alice)) == "Unsatisfiable=True NoAccess"


def test_the_number_of_tags_is_the_labs_choice(bench: QueueBench) -> None:
    alice = bench.client("alice")
    request = LeaseRequest(selector="a=b", duration=1.0, tags={"one": "1", "two": "2"})
    with pytest.raises(Refused, match="at most 1 tags, got 2"):
        bench.change(create_lease, alice, request, Limits(max_tags=1))
    assert bench.change(create_lease, alice, request, Limits(max_tags=2)).tags == request.tags


def test_an_exporter_cannot_give_itself_labels_that_selectors_trust(bench: QueueBench) -> None:
    alice = bench.client("alice")
    e1 = bench.exporter("e1", board="x")
    bench.exporter("e2", board="x")
    claims = {
        "jumpstarter.dev/name": "e2",
        "jumpstarter.dev/lease-ended": "true",
        "board": "y",
        "jumpstarter.dev/x": "y",
    }
    bench.change(exporters.register, e1, claims, [])
    lease = bench.lease(alice, "jumpstarter.dev/name=e2")
    assert bench.holder(lease) == "e2"
    for selector in ("jumpstarter.dev/lease-ended", "jumpstarter.dev/x=y", "board=y"):
        assert bench.reason(bench.lease(alice, selector)) == "Unsatisfiable=True NoAccess"
    bench.change(exporters.register, e1, {"jumpstarter.dev/name": "e1"}, [])
    assert bench.holder(bench.lease(alice, "jumpstarter.dev/name=e1")) == "e1"


def test_clearing_the_end_of_a_running_lease_gives_it_its_duration_from_the_beginning(bench: QueueBench) -> None:
    alice = bench.client("alice")
    bench.exporter("e1", board="x")
    lease = bench.lease(alice, duration=None, begin=START - 50, end=START + 50)
    assert bench.get(lease).expires_at == START + 50
    assert bench.update(alice, lease, clear=frozenset({"end"})).expires_at == START + 100
    with pytest.raises(Refused, match="cannot update BeginTime: lease has already started"):
        bench.update(alice, lease, clear=frozenset({"begin"}))
