# SPDX-License-Identifier: Apache-2.0
"""Who gets which exporter: a walk over the queue of one namespace, within one transaction."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from jumpstarter.common.enums import ExporterStatus
from jumpstarter_controller.leases.access import Grant
from jumpstarter_controller.leases.boards import Boards
from jumpstarter_controller.leases.calendar import Hold, clock_time, find_slot, holds_of, in_the_way
from jumpstarter_controller.leases.catalogue import Board, Candidates, Snapshot
from jumpstarter_controller.leases.conditions import INVALID, PENDING, READY, UNSATISFIABLE, with_condition
from jumpstarter_controller.leases.ending import audit_lease, end_lease, exporter_topic, queue_topic, touch_lease
from jumpstarter_controller.leases.preempt import Need, Preemption
from jumpstarter_controller.leases.queue import Place, Waiting
from jumpstarter_controller.leases.times import Times, expiry
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Exporter, Lease

__all__ = ["Walk"]

#: Names of exporters in a message.
_NAMES = 5


@dataclass(frozen=True)
class _Wish:
    """A lease that wants an exporter now, and those it may have."""

    waiting: Waiting
    candidates: Candidates


class Walk:
    """One walk. grace: seconds that the holder of a spot lease is given."""

    def __init__(self, tx: Transaction, namespace: str, snapshot: Snapshot, grace: float) -> None:
        self._tx = tx
        self._namespace = namespace
        self._snapshot = snapshot
        self._boards = Boards(tx)
        self._reserved: dict[str, list[Hold]] = {}
        self._leases: dict[int, Lease] = {}
        self._preemption = Preemption(tx, self._boards, grace)

    def run(self, queue: list[Waiting]) -> list[Need]:
        """Assign what can be assigned and say of the others why not. Returns which spot leases have to go."""
        wishes = [wish for waiting in queue if (wish := self._wish(waiting)) is not None]
        later = [wish for wish in wishes if not wish.waiting.is_due(self._tx.now)]
        due = [wish for wish in wishes if wish.waiting.is_due(self._tx.now)]
        self._know_reservations(wishes)
        self._reserve(later)
        left = self._assign(due)
        for wish in left:
            self._preemption.consider(wish.waiting, wish.candidates, self._reserved)
        self._explain(left)
        return self._preemption.needs

    # --- candidates -----------------------------------------------------------------------------------------------

    def _wish(self, waiting: Waiting) -> _Wish | None:
        candidates = self._snapshot.candidates(waiting.wanted)
        refusal = candidates.refusal
        if refusal is None:
            return _Wish(waiting, candidates)
        if waiting.wait_for_match and not refusal.invalid:
            if waiting.reserved_id is not None:
                lease = self._lease(waiting)
                lease.reserved_id, lease.spot = None, False
            self._say(waiting, "NoMatch", f"waiting for an exporter that matches: {refusal.message}")
            return None
        kind = INVALID if refusal.invalid else UNSATISFIABLE
        end_lease(self._tx, self._lease(waiting), refusal.reason, refusal.message, kind, status=True)
        return None

    def _lease(self, waiting: Waiting) -> Lease:
        lease = self._leases.get(waiting.sequence)
        if lease is None:
            lease = self._leases[waiting.sequence] = self._tx.session.get_one(Lease, waiting.sequence)
        return lease

    # --- reservations ---------------------------------------------------------------------------------------------

    def _know_reservations(self, wishes: Iterable[_Wish]) -> None:
        for wish in wishes:
            waiting = wish.waiting
            if waiting.reserved_id is None or waiting.times.begin is None or waiting.times.end is None:
                continue
            begin, end = waiting.times.begin, waiting.times.end
            hold = Hold(begin, end, waiting.sequence, waiting.name, waiting.client, waiting.spot)
            self._reserved.setdefault(waiting.reserved_id, []).append(hold)
        for holds in self._reserved.values():
            holds.sort()

    def _reserve(self, later: Iterable[_Wish]) -> None:
        """Find an exporter for leases that begin later and have none, or not any more."""
        holds: dict[str, list[Hold]] | None = None
        for wish in later:
            waiting = wish.waiting
            begin, end = waiting.times.begin, waiting.times.end
            assert begin is not None and end is not None
            board_id = waiting.reserved_id
            grant = None if board_id is None else wish.candidates.grants.get(board_id)
            # One by a spot rule gives way to others. When another rule makes it a real one, there may be no room.
            if grant is None or (waiting.spot and not grant.spot):
                if holds is None:
                    holds = holds_of(self._tx)
                board_id = self._reserve_one(wish, holds, begin, end)
            if board_id is None:
                self._say(waiting, "NotReserved", "no matching exporter is free for all of its time; it waits for one")
                continue
            name = next(board.name for board in wish.candidates.boards if board.id == board_id)
            self._say(
                waiting, "Scheduled", f"exporter {name} is reserved from {clock_time(begin)} to {clock_time(end)}"
            )
            grant = wish.candidates.grants[board_id]
            if grant.spot != waiting.spot:
                self._lease(waiting).spot = grant.spot
            self._preemption.reserve(board_id, begin, grant)

    def _reserve_one(self, wish: _Wish, holds: dict[str, list[Hold]], begin: float, end: float) -> str | None:
        waiting = wish.waiting
        for old in (self._reserved, holds):
            if waiting.reserved_id is not None and waiting.reserved_id in old:
                old[waiting.reserved_id] = [h for h in old[waiting.reserved_id] if h.sequence != waiting.sequence]
        board = find_slot(wish.candidates, holds, begin, end, waiting.sequence)
        lease = self._lease(waiting)
        lease.reserved_id = None if board is None else board.id
        if board is None:
            return None
        spot = lease.spot = wish.candidates.grants[board.id].spot
        hold = Hold(begin, end, waiting.sequence, waiting.name, waiting.client, spot)
        for known in (self._reserved, holds):
            known.setdefault(board.id, []).append(hold)
            known[board.id].sort()
        return board.id

    # --- assignment -----------------------------------------------------------------------------------------------

    def _assign(self, due: Iterable[_Wish]) -> list[_Wish]:
        """Give away what is ready. Returns who is left, in the order of the queue."""
        heap: list[tuple[Place, int, _Wish]] = []
        for wish in due:
            reserved = self._own_reservation(wish)
            if reserved is not None:
                heap.append((wish.waiting.place(wish.candidates.grants[reserved], reserved=True), -1, wish))
            else:
                heap.append((wish.waiting.place(wish.candidates.tiers[0].grant), 0, wish))
        heapq.heapify(heap)
        left: list[_Wish] = []
        while heap:
            _, number, wish = heapq.heappop(heap)
            if self._try(wish, number):
                continue
            if number <= 0:
                left.append(wish)
            if number + 1 < len(wish.candidates.tiers):
                tier = wish.candidates.tiers[number + 1]
                # The same lease never has two entries, so the wishes themselves are never compared.
                heapq.heappush(heap, (wish.waiting.place(tier.grant), number + 1, wish))
        assigned = {sequence for sequence, lease in self._leases.items() if lease.exporter_id is not None}
        waits = {wish.waiting.sequence: wish for wish in left if wish.waiting.sequence not in assigned}
        return list(waits.values())

    def _own_reservation(self, wish: _Wish) -> str | None:
        reserved = wish.waiting.reserved_id
        return reserved if reserved is not None and reserved in wish.candidates.grants else None

    def _try(self, wish: _Wish, number: int) -> bool:
        waiting = wish.waiting
        for board, grant in self._ready(wish, number):
            hold = self._conflict(waiting, board, grant)
            if hold is None:
                self._acquire(waiting, board, grant, None)
                return True
            if waiting.minimum is not None and hold.begin - self._tx.now >= waiting.minimum:
                self._acquire(waiting, board, grant, hold.begin)
                return True
        return False

    def _ready(self, wish: _Wish, number: int) -> Iterator[tuple[Board, Grant]]:
        if number < 0:
            reserved = self._own_reservation(wish)
            board = next(board for board in wish.candidates.boards if board.id == reserved)
            if self._boards[board.id].ready:
                yield board, wish.candidates.grants[board.id]
            return
        tier = wish.candidates.tiers[number]
        for board in self._boards.ready(tier):
            yield board, tier.grant

    def _conflict(self, waiting: Waiting, board: Board, grant: Grant) -> Hold | None:
        """The reservation that this lease would run into. A spot lease gives way when the time comes."""
        holds = self._reserved.get(board.id)
        if not holds:
            return None
        now = self._tx.now
        end = now + self._preemption.grace if grant.spot else waiting.end(now)
        return in_the_way(holds, now, end, waiting.sequence, spot=grant.spot)

    def _acquire(self, waiting: Waiting, board: Board, grant: Grant, until: float | None) -> None:
        tx, lease = self._tx, self._lease(waiting)
        self._boards[board.id].taken = True
        lease.exporter_id, lease.exporter = board.id, tx.session.get_one(Exporter, board.id)
        lease.priority, lease.spot = grant.priority, grant.spot
        lease.reserved_id = None
        lease.effective_begin = tx.now
        message = "An exporter has been acquired for the client"
        if until is not None:
            lease.duration = until - (tx.now if lease.begin_time is None else lease.begin_time)
            lease.end_time = None if lease.begin_time is None else until
            message += f" until {clock_time(until)}, when it is reserved for another"
        lease.expires_at = expiry(Times(lease.duration, lease.begin_time, lease.end_time), tx.now)
        lease.conditions = with_condition(lease.conditions, READY, True, "Ready", message, tx.now)
        touch_lease(tx, lease)
        tx.touch(exporter_topic(board.id), queue_topic(self._namespace))
        tx.measure("lease acquired", tx.now - max(lease.created_at, lease.begin_time or 0.0))
        audit_lease(tx, lease, "lease acquired")

    # --- why not --------------------------------------------------------------------------------------------------

    def _explain(self, left: Iterable[_Wish]) -> None:
        reasons: dict[int, tuple[str, str]] = {}
        for wish in left:
            key = id(wish.candidates)
            if key not in reasons:
                reasons[key] = self._why(wish)
            self._say(wish.waiting, *reasons[key])

    def _why(self, wish: _Wish) -> tuple[str, str]:
        boards = wish.candidates.boards
        self._boards.look_at(board.id for board in boards)
        state = self._boards
        ready = next((board for board in boards if state[board.id].ready), None)
        if ready is not None:
            hold = self._conflict(wish.waiting, ready, wish.candidates.grants[ready.id])
            why = f"reserved {hold}, and this lease would last longer" if hold is not None else "not to be had yet"
            return "NotAvailable", f"exporter {ready.name} is {why}"
        free = next((board for board in boards if state[board.id].online and state[board.id].free), None)
        if free is not None:
            status = ExporterStatus(state[free.id].status).name
            return "NotReady", f"exporter {free.name} is free but not ready: its status is {status}"
        online = [board for board in boards if state[board.id].online]
        if online:
            return "NotAvailable", f"all {len(online)} matching exporters are leased: {_names(online)}"
        return "Offline", f"all {len(boards)} matching exporters are offline: {_names(boards)}"

    def _say(self, waiting: Waiting, reason: str, message: str) -> None:
        if waiting.conditions:
            newest = waiting.conditions[-1]
            if (newest["type"], newest["reason"], newest["message"]) == (PENDING, reason, message):
                return
        changed = with_condition(waiting.conditions, PENDING, True, reason, message, self._tx.now)
        if changed != waiting.conditions:
            lease = self._lease(waiting)
            lease.conditions = changed
            touch_lease(self._tx, lease)
            self._tx.touch(queue_topic(self._namespace))


def _names(boards: Iterable[Board]) -> str:
    names = [board.name for board in boards]
    return ", ".join(names[:_NAMES]) + (", ..." if len(names) > _NAMES else "")
