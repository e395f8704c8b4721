# SPDX-License-Identifier: Apache-2.0
"""How exporters are now: reachable, ready, held by whom. Read as far as a pass over the queue needs to know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sqlalchemy import and_, select

from jumpstarter.common.enums import ExporterStatus
from jumpstarter_controller.leases.catalogue import Board, Tier
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Exporter, Lease

__all__ = ["BoardState", "Boards", "Holder"]

_READY = {ExporterStatus.UNSPECIFIED.value, ExporterStatus.AVAILABLE.value}
#: Without a lease these do not last: it is getting ready.
_SOON_READY = {
    ExporterStatus.BEFORE_LEASE_HOOK.value,
    ExporterStatus.LEASE_READY.value,
    ExporterStatus.AFTER_LEASE_HOOK.value,
}
#: Exporters that are looked at first; most often the first is free.
_FIRST_LOOK = 8


@dataclass(frozen=True)
class Holder:
    """The lease that has an exporter."""

    sequence: int
    spot: bool
    priority: int
    begin: float
    preempted_at: float | None


@dataclass
class BoardState:
    """One exporter now."""

    online: bool
    status: int
    holder: Holder | None
    taken: bool = False

    @property
    def free(self) -> bool:
        """Nobody has it."""
        return self.holder is None and not self.taken

    @property
    def ready(self) -> bool:
        """Somebody could have it now."""
        return self.online and self.free and self.status in _READY

    @property
    def soon_ready(self) -> bool:
        """It is on its way from its last lease."""
        return self.online and self.free and self.status in _SOON_READY


class _Found:
    """The ready ones of a tier, as far as it has been looked through."""

    def __init__(self) -> None:
        self.boards: list[Board] = []
        self.looked_at = 0


class Boards:
    """The exporters within one transaction."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._known: dict[str, BoardState] = {}
        self._tiers: dict[int, _Found] = {}

    def __getitem__(self, exporter_id: str) -> BoardState:
        if exporter_id not in self._known:
            self.look_at([exporter_id])
        return self._known[exporter_id]

    def look_at(self, exporter_ids: Iterable[str]) -> None:
        """Read those that are not known yet, at once."""
        wanted = [exporter_id for exporter_id in exporter_ids if exporter_id not in self._known]
        if not wanted:
            return
        rows = self._tx.session.execute(
            select(
                Exporter.id,
                Exporter.online,
                Exporter.connected,
                Exporter.registered,
                Exporter.status,
                Lease.sequence,
                Lease.spot,
                Lease.priority,
                Lease.effective_begin,
                Lease.preempted_at,
            )
            .outerjoin(Lease, and_(Lease.exporter_id == Exporter.id, ~Lease.ended, Lease.exporter_id.is_not(None)))
            .where(Exporter.id.in_(wanted))
        )
        for exporter_id, online, connected, registered, status, sequence, spot, priority, begin, preempted in rows:
            holder = None if sequence is None else Holder(sequence, spot, priority, begin or 0.0, preempted)
            self._known[exporter_id] = BoardState(online and connected and registered, status, holder)
        for exporter_id in wanted:
            self._known.setdefault(exporter_id, BoardState(False, 0, None))

    def ready(self, tier: Tier) -> Iterator[Board]:
        """Those of the tier that are ready, in their order."""
        found = self._tiers.setdefault(id(tier.boards), _Found())
        at = 0
        while True:
            while at < len(found.boards):
                board = found.boards[at]
                at += 1
                if self._known[board.id].ready:
                    yield board
            if found.looked_at >= len(tier.boards):
                return
            chunk = tier.boards[found.looked_at : found.looked_at * 8 + _FIRST_LOOK]
            self.look_at(board.id for board in chunk)
            found.looked_at += len(chunk)
            found.boards += [board for board in chunk if self._known[board.id].ready]
