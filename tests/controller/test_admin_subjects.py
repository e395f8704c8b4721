# SPDX-License-Identifier: Apache-2.0
"""What stays of a client or exporter that was deleted, and for how long."""

from __future__ import annotations

import pytest
from queue_bench import NAMESPACE, QueueBench
from sqlalchemy import delete, select

from jumpstarter_controller import exporters
from jumpstarter_controller.administration.subjects import LOCAL_ACTOR, change_subject, delete_subject, tidy
from jumpstarter_controller.errors import Refused
from jumpstarter_controller.identity.callers import Kind
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Client, Exporter, Lease, Token


def _delete(bench: QueueBench, kind: Kind, name: str) -> None:
    bench.change(delete_subject, LOCAL_ACTOR, kind, NAMESPACE, name, force=True)


def _left(tx: Transaction) -> tuple[list[str], list[str]]:
    return list(tx.session.scalars(select(Client.name))), list(tx.session.scalars(select(Exporter.name)))


def test_who_never_had_a_lease_leaves_nothing(bench: QueueBench) -> None:
    bench.client("alice")
    bench.exporter("e0")
    _delete(bench, "client", "alice")
    _delete(bench, "exporter", "e0")
    assert bench.database.read_now(_left) == ([], [])


def test_names_in_ended_leases_stay_until_those_are_forgotten(bench: QueueBench) -> None:
    alice = bench.client("alice")
    bench.exporter("e0", board="x")
    bench.lease(alice)
    for _ in range(2):  # again and again: the same names, other ones
        _delete(bench, "client", "alice")
        _delete(bench, "exporter", "e0")
        alice = bench.client("alice")
        bench.exporter("e0", board="x")

    def names(tx: Transaction) -> tuple[str, str | None, bool]:
        row = tx.session.scalars(select(Lease)).one()
        assert row.exporter is not None
        return row.client.name, row.exporter.name, row.ended

    assert bench.database.read_now(names) == ("alice", "e0", True)
    assert bench.database.read_now(_left) == (["alice", "alice"], ["e0", "e0"])
    bench.database.write_now(lambda tx: tx.session.execute(delete(Lease)))
    bench.database.write_now(tidy)
    assert bench.database.read_now(_left) == (["alice"], ["e0"])


def test_a_deleted_exporter_is_never_assigned(bench: QueueBench) -> None:
    alice = bench.client("alice")
    bench.exporter("e0", board="x")
    bench.lease(alice)
    _delete(bench, "exporter", "e0")
    refused = bench.get(bench.lease(alice))
    assert refused.ended and refused.exporter_id is None


def test_who_was_deleted_is_no_administrator(bench: QueueBench) -> None:
    root = bench.client("root")
    bench.change(change_subject, LOCAL_ACTOR, "client", NAMESPACE, "root", administrator=True)
    bench.lease(root)  # so that the row stays
    _delete(bench, "client", "root")
    rows = bench.database.read_now(lambda tx: tx.session.scalars(select(Client)).all())
    assert [(row.name, row.administrator) for row in rows] == [("root", False)]


def test_a_call_that_was_under_way_when_its_caller_was_deleted_changes_nothing(bench: QueueBench) -> None:
    alice, board = bench.client("alice"), bench.exporter("e0", board="x")
    bench.lease(alice)
    _delete(bench, "client", "alice")
    _delete(bench, "exporter", "e0")
    with pytest.raises(Refused, match="client default/alice does not exist any more"):
        bench.lease(alice)
    with pytest.raises(Refused, match="exporter default/e0 does not exist any more"):
        bench.change(exporters.register, board, {}, [])
    with pytest.raises(Refused, match="exporter default/e0 does not exist any more"):
        bench.change(exporters.connected, board)


def test_rows_of_tokens_go_a_month_after_their_end(bench: QueueBench) -> None:
    bench.client("alice")
    bench.now += 29 * 86400
    bench.database.write_now(tidy)
    assert bench.database.read_now(lambda tx: len(tx.session.scalars(select(Token)).all())) == 1
    bench.now += 2 * 86400
    bench.database.write_now(tidy)
    assert bench.database.read_now(lambda tx: len(tx.session.scalars(select(Token)).all())) == 0
