# SPDX-License-Identifier: Apache-2.0
"""Reservations: which exporter is kept for which scheduled lease, and when one is free.

A lease that begins later reserves an exporter for its whole window. Until then nobody gets that exporter for longer
than up to the window, and no lease is extended into it. A spot lease does not stand in the way: it is taken away. Nor
does what a spot lease has reserved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import or_, select, true

from jumpstarter_controller.errors import Refused, failed_precondition
from jumpstarter_controller.leases.catalogue import Board, Candidates
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Client, Lease

__all__ = ["Hold", "check_extension", "clock_time", "find_slot", "holds_of", "in_the_way", "no_slot"]


class Hold(NamedTuple):
    """An exporter is taken from begin to end, by a lease that has it or by one that will."""

    begin: float
    end: float
    sequence: int
    lease: str
    client: str
    spot: bool

    def __str__(self) -> str:
        return f"from {clock_time(self.begin)} to {clock_time(self.end)} by lease {self.lease} of client {self.client}"


def clock_time(seconds: float) -> str:
    """A time for people."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def holds_of(tx: Transaction) -> dict[str, list[Hold]]:
    """What every exporter is taken for, by its id, in the order of time."""
    rows = tx.session.execute(
        select(
            Lease.sequence,
            Lease.name,
            Client.name,
            Lease.exporter_id,
            Lease.reserved_id,
            Lease.effective_begin,
            Lease.begin_time,
            Lease.expires_at,
            Lease.spot,
        )
        .join(Client, Lease.client_id == Client.id)
        .where(~Lease.ended, or_(Lease.exporter_id.is_not(None), Lease.reserved_id.is_not(None)))
    )
    found: dict[str, list[Hold]] = {}
    for sequence, name, client, holder, reserved, acquired, begin, end, spot in rows:
        start, exporter = (begin, reserved) if holder is None else (acquired, holder)
        if start is None or end is None or exporter is None:
            continue  # never: both kinds know when they begin and end
        found.setdefault(exporter, []).append(Hold(start, end, sequence, name, client, spot))
    for holds in found.values():
        holds.sort()
    return found


def in_the_way(holds: Iterable[Hold], begin: float, end: float, sequence: int, *, spot: bool) -> Hold | None:
    """The first hold that overlaps, unless it is our own (``sequence``) or one that gives way to us."""
    for hold in holds:
        if hold.begin < end and begin < hold.end and hold.sequence != sequence and (spot or not hold.spot):
            return hold
    return None


def find_slot(
    candidates: Candidates, holds: Mapping[str, list[Hold]], begin: float, end: float, sequence: int
) -> Board | None:
    """The best exporter that nobody else needs in that time."""
    for tier in candidates.tiers:
        for board in tier.boards:
            if in_the_way(holds.get(board.id, ()), begin, end, sequence, spot=tier.grant.spot) is None:
                return board
    return None


def no_slot(
    candidates: Candidates, holds: Mapping[str, list[Hold]], begin: float, end: float, sequence: int
) -> Refused:
    """FAILED_PRECONDITION that says what is in the way and when there is room. There is no slot for these times."""
    best: tuple[float, str] | None = None
    first: tuple[str, Hold] | None = None
    for tier in candidates.tiers:
        for board in tier.boards:
            at = begin
            taken = holds.get(board.id, [])
            while (hold := in_the_way(taken, at, at + end - begin, sequence, spot=tier.grant.spot)) is not None:
                if first is None:
                    first = (board.name, hold)
                at = hold.end
            if best is None or at < best[0]:
                best = (at, board.name)
    assert best is not None and first is not None
    count = len(candidates.boards)
    whose = f"exporter {first[0]} is" if count == 1 else f"none of {count} matching exporters is free: {first[0]} is"
    return failed_precondition(
        f"cannot reserve from {clock_time(begin)} to {clock_time(end)}: {whose} taken {first[1]}; "
        f"{best[1]} is free that long from {clock_time(best[0])} on"
    )


def check_extension(tx: Transaction, lease: Lease, end: float) -> None:
    """Raise FAILED_PRECONDITION when the exporter of this lease is somebody else's before ``end``."""
    row = tx.session.execute(
        select(Lease.begin_time, Lease.name, Client.name)
        .join(Client, Lease.client_id == Client.id)
        .where(
            ~Lease.ended,
            Lease.exporter_id.is_(None),
            Lease.reserved_id == lease.exporter_id,
            Lease.sequence != lease.sequence,
            true() if lease.spot else ~Lease.spot,
            Lease.begin_time.is_not(None),
            Lease.begin_time < end,
        )
        .order_by(Lease.begin_time)
    ).first()
    if row is None:
        return
    begin, name, client = row
    exporter = "its exporter" if lease.exporter is None else f"exporter {lease.exporter.name}"
    raise failed_precondition(
        f"lease {lease.name} cannot last until {clock_time(end)}: {exporter} is reserved from {clock_time(begin or 0)} "
        f"on by lease {name} of client {client}; it can last until then at most"
    )
