# SPDX-License-Identifier: Apache-2.0
"""Who gets which exporter, in which order, for how long, and what the conditions say about it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import pytest
from queue_bench import NAMESPACE, START, QueueBench
from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError

from jumpstarter.common.enums import ExporterStatus
from jumpstarter_controller import exporters
from jumpstarter_controller.administration.policies import set_policy
from jumpstarter_controller.errors import Refused
from jumpstarter_controller.leases import retention
from jumpstarter_controller.leases.requests import LeaseRequest, create_lease, release_lease
from jumpstarter_controller.leases.schedule import schedule
from jumpstarter_controller.state.database import Transaction, open_database
from jumpstarter_controller.state.models import AuditEntry, Exporter, Lease


def test_a_free_exporter_is_assigned_in_the_same_transaction(bench: QueueBench) -> None:
    alice, exporter = bench.client("alice"), bench.exporter("e1", board="x")
    lease = bench.change(create_lease, alice, LeaseRequest(selector="board=x", duration=600.0))
    assert lease.exporter is not None and lease.exporter.name == "e1"
    assert lease.effective_begin == START
    assert [(c["type"], c["status"], c["reason"]) for c in lease.conditions] == [("Ready", "True", "Ready")]
    assert bench.deadline == START + 600
    assert f"exporter/{exporter.id}" in bench.topics
    told = bench.database.write_now(exporters.assignment, exporter)
    assert (told.lease, told.client) == (lease.name, "alice")


def test_first_come_first_served(bench: QueueBench) -> None:
    alice, bob, carol = (bench.client(name) for name in ("alice", "bob", "carol"))
    bench.exporter("e1", board="x")
    first, second, third = bench.lease(alice), bench.lease(bob), bench.lease(carol)
    assert bench.reason(second) == "Pending=True NotAvailable"
    bench.release(alice, first)
    assert (bench.holder(second), bench.holder(third)) == ("e1", None)
    # Existing clients look for Ready first; the condition that it waited stays, as in the original.
    assert {c["type"] for c in bench.get(second).conditions} == {"Pending", "Ready"}
    bench.release(bob, second)
    assert bench.holder(third) == "e1"
    assert bench.reason(first) == "Ready=False Released"


def test_who_waits_for_one_exporter_does_not_hold_up_the_others(bench: QueueBench) -> None:
    alice, bob = bench.client("alice"), bench.client("bob")
    bench.exporter("e1", board="x")
    bench.lease(alice)
    waiting = bench.lease(alice)
    bench.exporter("e2", board="y")
    other = bench.lease(bob, "board in (x,y)")
    assert (bench.holder(waiting), bench.holder(other)) == (None, "e2")


def test_priority_comes_before_first_come(bench: QueueBench) -> None:
    alice, vip = bench.client("alice"), bench.client("vip", team="release")
    bench.exporter("e1", board="x")
    bench.database.write_now(set_policy, NAMESPACE, "all", "", "", 0, None)
    bench.database.write_now(set_policy, NAMESPACE, "release", "board=x", "team=release", 10, None)
    first, second, third = bench.lease(alice), bench.lease(alice), bench.lease(vip)
    bench.release(alice, first)
    assert (bench.holder(second), bench.holder(third)) == (None, "e1")
    assert bench.get(third).priority == 10


def test_policies_limit_who_and_how_long_also_later(bench: QueueBench) -> None:
    alice, mallory = bench.client("alice", team="a"), bench.client("mallory")
    bench.exporter("e1", board="x")
    bench.database.write_now(set_policy, NAMESPACE, "team-a", "board=x", "team=a", 0, 1000.0)
    assert bench.reason(bench.lease(mallory)) == "Unsatisfiable=True NoAccess"
    assert bench.reason(bench.lease(alice, duration=1001.0)) == "Unsatisfiable=True NoAccess"
    lease = bench.lease(alice, duration=900.0)
    for change in ({"duration": 1001.0}, {"end": START + 1001}, {"client": "mallory"}):
        with pytest.raises(Refused, match="permission denied") as refused:
            bench.update(alice, lease, **change)
        assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED
    assert bench.get(lease).duration == 900.0
    assert bench.get(lease).client.name == "alice"
    assert bench.update(alice, lease, duration=1000.0).expires_at == START + 1000


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"selector": "board=none"}, "Unsatisfiable=True NoAccess"),
        ({"selector": "", "exporter_name": "nobody"}, "Unsatisfiable=True ExporterNotFound"),
        ({"selector": "board=y", "exporter_name": "e1"}, "Unsatisfiable=True SelectorMismatch"),
        ({"selector": "", "exporter_name": "off"}, "Unsatisfiable=True ExporterDisabled"),
        ({"selector": "board=off"}, "Unsatisfiable=True AllDisabled"),
        ({"selector": "board=away"}, "Pending=True Offline"),
        ({"selector": "board=busy"}, "Pending=True NotReady"),
        ({"selector": "", "exporter_name": "off", "allow_disabled": True}, "Ready=True Ready"),
        ({"selector": "board=off", "allow_disabled": True}, "Ready=True Ready"),
        ({"selector": "board=x", "exporter_name": "e1"}, "Ready=True Ready"),
        ({"selector": "jumpstarter.dev/name=e1"}, "Ready=True Ready"),
    ],
)
def test_conditions(bench: QueueBench, request_: dict[str, object], reason: str) -> None:
    alice = bench.client("alice")
    bench.exporter("e1", board="x")
    off = bench.exporter("off", board="off")
    bench.exporter("away", ready=False, board="away")
    bench.status(bench.exporter("busy", board="busy"), ExporterStatus.AFTER_LEASE_HOOK)
    bench.database.write_now(
        lambda tx: tx.session.execute(update(Exporter).where(Exporter.id == off.id).values(enabled=False))
    )
    lease = bench.lease(alice, **request_)  # type: ignore[arg-type]
    assert bench.reason(lease) == reason
    assert bench.get(lease).ended is reason.startswith("Unsatisfiable")


def test_a_lease_ends_by_itself_and_the_next_begins(bench: QueueBench) -> None:
    alice, bob = bench.client("alice"), bench.client("bob")
    bench.exporter("e1", board="x")
    first, second = bench.lease(alice, duration=60.0), bench.lease(bob, duration=60.0)
    bench.at(59)
    assert (bench.holder(first), bench.holder(second)) == ("e1", None)
    bench.at(60)
    assert (bench.reason(first), bench.holder(second)) == ("Ready=False Expired", "e1")
    assert bench.get(second).expires_at == START + 120


def test_a_lease_that_never_got_an_exporter_ends_too(bench: QueueBench) -> None:
    alice = bench.client("alice")
    bench.exporter("away", ready=False, board="x")
    lease = bench.lease(alice, duration=None, begin=START + 10, end=START + 20)
    bench.at(20)
    assert bench.reason(lease) == "Ready=False Expired"
    assert bench.get(lease).effective_begin is None


def test_extension_and_shortening(bench: QueueBench) -> None:
    alice = bench.client("alice")
    bench.exporter("e1", board="x")
    lease = bench.lease(alice, duration=60.0)
    bench.at(50)
    bench.update(alice, lease, duration=120.0)
    bench.at(119)
    assert bench.holder(lease) == "e1"
    bench.update(alice, lease, end=START + 130)
    bench.at(129)
    assert bench.holder(lease) == "e1"
    bench.update(alice, lease, duration=10.0)
    assert bench.reason(lease) == "Ready=False Expired"
    with pytest.raises(Refused, match="already ended"):
        bench.update(alice, lease, duration=1000.0)


def test_transfer(bench: QueueBench) -> None:
    alice, bob = bench.client("alice"), bench.client("bob")
    bench.exporter("e1", board="x")
    lease, waiting = bench.lease(alice), bench.lease(alice)
    with pytest.raises(Refused, match="has not started yet"):
        bench.update(alice, waiting, client="bob")
    with pytest.raises(Refused, match="target client not found"):
        bench.update(alice, lease, client="nobody")
    with pytest.raises(Refused, match="permission denied"):
        bench.update(bob, lease, client="bob")
    bench.update(alice, lease, client="bob")
    assert f"lease/{NAMESPACE}/{lease}" in bench.topics
    with pytest.raises(Refused, match="permission denied"):
        bench.release(alice, lease)
    bench.release(bob, lease)
    assert bench.holder(waiting) == "e1"


def test_an_exporter_that_is_lost_gets_no_new_lease_and_keeps_its_old_one(bench: QueueBench) -> None:
    alice = bench.client("alice")
    exporter = bench.exporter("e1", board="x")
    lease = bench.lease(alice)
    bench.change(exporters.disconnected, exporter)
    assert bench.deadline == START + 60
    bench.at(60)
    lost = bench.get(lease).exporter
    assert lost is not None and not lost.online
    assert lost.status == ExporterStatus.OFFLINE
    assert bench.holder(lease) == "e1"
    bench.release(alice, lease)
    waiting = bench.lease(alice)
    assert bench.reason(waiting) == "Pending=True Offline"
    bench.change(exporters.connected, exporter)
    assert bench.holder(waiting) == "e1"


def test_an_exporter_ends_its_lease(bench: QueueBench) -> None:
    alice = bench.client("alice")
    exporter, other = bench.exporter("e1", board="x"), bench.exporter("e2", board="y")
    lease = bench.lease(alice)
    with pytest.raises(Refused, match="not held by exporter e2"):
        bench.change(exporters.release_by_exporter, other, lease)
    bench.change(exporters.release_by_exporter, exporter, lease)
    bench.change(exporters.release_by_exporter, exporter, lease)
    assert bench.reason(lease) == "Ready=False Released"
    second = bench.lease(alice)
    bench.status(exporter, ExporterStatus.AFTER_LEASE_HOOK, release=True)
    assert bench.reason(second) == "Ready=False Released"
    released = select(AuditEntry.actor, AuditEntry.lease, AuditEntry.exporter, AuditEntry.client).where(
        AuditEntry.action == "lease released"
    )
    assert bench.database.read_now(lambda tx: [tuple(row) for row in tx.session.execute(released)]) == [
        ("exporter default/e1", name, "e1", "alice") for name in (lease, second)
    ]


def test_ended_leases_and_old_audit_entries_are_kept_for_a_while(bench: QueueBench) -> None:
    alice = bench.client("alice")
    bench.exporter("e1", board="x")
    lease, kept = bench.lease(alice), bench.lease(alice, duration=10_000.0)
    bench.release(alice, lease)
    bench.policy = replace(bench.policy, audit_retention=2000.0)

    def forget() -> int:
        bench.database.write_now(retention.forget, bench.policy)
        return len(bench.database.write_now(lambda tx: tx.session.scalars(select(AuditEntry)).all()))

    entries = forget()
    bench.at(999)
    forget()
    assert bench.get(lease).ended
    bench.at(1000)
    assert forget() >= entries
    with pytest.raises(Refused, match="does not exist"):
        bench.get(lease)
    assert bench.holder(kept) == "e1"
    bench.at(2001)
    assert forget() < entries


def test_a_long_history_is_forgotten_a_few_at_a_time(bench: QueueBench) -> None:
    alice = bench.client("alice")

    def history(tx: Transaction) -> None:
        tx.session.execute(
            insert(Lease),
            [
                {"namespace": NAMESPACE, "name": f"l{i}", "client_id": alice.id, "duration": 1.0, "ended": True}
                | {"effective_end": START, "created_at": START, "conditions": [], "tags": {}, "context": {}}
                | {"selector": "a", "allow_disabled": False, "priority": 0}
                for i in range(1200)
            ],
        )

    bench.database.write_now(history)
    bench.now = START + 5000
    rounds = 1
    while bench.database.write_now(retention.forget, bench.policy):
        rounds += 1
    assert rounds == 3
    assert bench.database.write_now(lambda tx: tx.session.scalar(select(func.count()).select_from(Lease))) == 0


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({"selector": ""}, "needs a selector or an exporter_name"),
        ({"selector": "a=1,a=2"}, "cannot be both"),
        ({"selector": "a>1"}, "unsupported label selector operator"),
        ({"duration": None}, "duration is required"),
        ({"duration": 0.0}, "duration must be positive"),
        ({"duration": 10.0, "begin": START, "end": START + 20}, "duration conflicts"),
        ({"name": "Nope"}, "lower case"),
        ({"tags": {f"t{i}": "" for i in range(11)}}, "at most 10 tags"),
        ({"tags": {"a/b": ""}}, "simple name"),
        ({"tags": {"a": "x" * 64}}, "at most 63"),
        ({"context": {"k" * 33: ""}}, "1 to 32"),
    ],
)
def test_requests_that_make_no_sense(bench: QueueBench, request_: dict[str, object], why: str) -> None:
    alice = bench.client("alice")
    with pytest.raises(Refused, match=why) as refused:
        bench.lease(alice, **request_)  # type: ignore[arg-type]
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_the_database_itself_refuses_a_second_lease_of_one_exporter(bench: QueueBench) -> None:
    alice = bench.client("alice")
    exporter = bench.exporter("e1", board="x")
    bench.lease(alice)
    waiting = bench.lease(alice)
    with pytest.raises(IntegrityError):
        bench.database.write_now(
            lambda tx: tx.session.execute(update(Lease).where(Lease.name == waiting).values(exporter_id=exporter.id))
        )


def test_no_double_booking_when_two_controllers_and_many_clients_race(bench: QueueBench, database_url: str) -> None:
    clients = [bench.client(f"c{i}") for i in range(8)]
    for i in range(3):
        bench.exporter(f"e{i}", board="x")
    second = open_database(database_url, clock=lambda: START)

    def take_and_give_back(i: int) -> list[str]:
        database, got = (bench.database, second)[i % 2], []
        for _ in range(4):

            def take(tx: Transaction) -> str:
                name = create_lease(tx, clients[i], LeaseRequest(selector="board=x", duration=600.0)).name
                tx.session.flush()
                schedule(tx, bench.policy)
                active = tx.session.scalars(
                    select(Lease.exporter_id).where(Lease.ended.is_(False), Lease.exporter_id.is_not(None))
                ).all()
                assert len(active) == len(set(active)) <= 3
                return name

            def give_back(tx: Transaction, name: str) -> None:
                release_lease(tx, clients[i], name)
                tx.session.flush()
                schedule(tx, bench.policy)

            got.append(database.write_now(take))
            database.write_now(give_back, got[-1])
        return got

    with ThreadPoolExecutor(8) as threads:
        names = [name for names in threads.map(take_and_give_back, range(8)) for name in names]
    second.close()
    assert len(set(names)) == 32
    assert all(bench.get(name).ended for name in names)
