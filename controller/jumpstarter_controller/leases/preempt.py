# SPDX-License-Identifier: Apache-2.0
"""Spot leases that have to go: their holders are told, get a grace period, and then the lease ends.

A lease that may stay takes an exporter from a spot lease when nothing else is free, one each; so does a reservation, in
time for its begin. When the need goes away during the grace period, the lease stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from sqlalchemy import select

from jumpstarter_controller.leases.access import Grant
from jumpstarter_controller.leases.boards import Boards
from jumpstarter_controller.leases.calendar import Hold, clock_time, in_the_way
from jumpstarter_controller.leases.catalogue import Candidates
from jumpstarter_controller.leases.conditions import READY, with_condition
from jumpstarter_controller.leases.ending import audit_lease, end_lease, touch_lease
from jumpstarter_controller.leases.queue import Waiting
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Lease

__all__ = ["Need", "Preemption", "end_preempted", "preempt"]


class Need(NamedTuple):
    """A spot lease (its sequence) that has to be gone at a time, which may be too far away to tell anybody yet."""

    sequence: int
    at: float


class Preemption:
    """What one walk over the queue needs. grace: in seconds."""

    def __init__(self, tx: Transaction, boards: Boards, grace: float) -> None:
        self._now = tx.now
        self._boards = boards
        self.grace = grace
        self.needs: list[Need] = []
        self._promised: set[str] = set()

    def reserve(self, board_id: str, begin: float, grant: Grant) -> None:
        """An exporter is reserved from ``begin`` on."""
        holder = self._boards[board_id].holder
        if holder is not None and holder.spot and not grant.spot:
            self.needs.append(Need(holder.sequence, max(begin, self._now + self.grace)))

    def consider(self, waiting: Waiting, candidates: Candidates, reserved: Mapping[str, list[Hold]]) -> None:
        """A lease that is due found nothing ready: find a spot lease that gives way.

        Not when an exporter is about to be ready.
        """
        begin = self._now + self.grace
        boards = [board for tier in candidates.tiers if not tier.grant.spot for board in tier.boards]
        self._boards.look_at(board.id for board in boards)
        best: tuple[tuple[bool, int, float], str] | None = None
        for board in boards:
            state = self._boards[board.id]
            if board.id in self._promised or not state.online:
                continue
            if reserved.get(board.id) and in_the_way(
                reserved[board.id], begin, max(begin, waiting.end(begin)), waiting.sequence, spot=False
            ):
                continue
            if state.soon_ready:
                self._promised.add(board.id)
                return
            holder = state.holder
            if holder is not None and holder.spot:
                # One that goes already before another; then what matters least and has run the shortest.
                order = (holder.preempted_at is None, holder.priority, -holder.begin)
                if best is None or order < best[0]:
                    best = (order, board.id)
        if best is None:
            return
        self._promised.add(best[1])
        holder = self._boards[best[1]].holder
        assert holder is not None
        self.needs.append(Need(holder.sequence, holder.preempted_at or begin))


_TOLD = select(Lease).where(~Lease.ended, Lease.preempted_at.is_not(None))


def preempt(tx: Transaction, needs: Iterable[Need], grace: float) -> float | None:
    """Tell the holders of spot leases that have to go, and those that may stay after all.

    Returns when to look again.
    """
    wanted: dict[int, float] = {}
    for sequence, at in needs:
        wanted[sequence] = min(at, wanted.get(sequence, at))
    later = [at - grace for at in wanted.values() if at - grace > tx.now]
    told = tx.session.scalars(_TOLD).all()
    for lease in told:
        if lease.sequence not in wanted:
            lease.preempted_at = None
            _say(tx, lease, "Ready", "The lease may stay: nobody needs its exporter any more")
    known = {lease.sequence for lease in told}
    for sequence, at in wanted.items():
        if sequence in known or at - grace > tx.now:
            continue
        lease = tx.session.get_one(Lease, sequence)
        lease.preempted_at = at
        _say(tx, lease, "Preempting", f"The lease ends at {clock_time(at)}: it is spot, and another needs its exporter")
        audit_lease(tx, lease, "lease preempted", until=at)
    return min(later, default=None)


def end_preempted(tx: Transaction) -> None:
    """End those whose grace period is over."""
    due = select(Lease).where(~Lease.ended, Lease.preempted_at.is_not(None), Lease.preempted_at <= tx.now)
    for lease in tx.session.scalars(due).all():
        end_lease(tx, lease, "Preempted", "The lease was spot and its exporter was needed for another", status=False)


def _say(tx: Transaction, lease: Lease, reason: str, message: str) -> None:
    lease.conditions = with_condition(lease.conditions, READY, True, reason, message, tx.now)
    touch_lease(tx, lease)
