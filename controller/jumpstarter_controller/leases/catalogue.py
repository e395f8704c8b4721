# SPDX-License-Identifier: Apache-2.0
"""Which exporters a lease could have, by labels, switches and policies; not whether they are free.

Those change rarely and the queue is looked at often. So what was read and worked out is kept while the number that the
database changes with them (`Revision`) stands. Everything here may be used by several threads.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from sqlalchemy import select

from jumpstarter.common.selectors import parse_selector
from jumpstarter_controller.leases.access import AccessRules, Grant
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Exporter, Revision

__all__ = ["Board", "Candidates", "Catalogue", "Refusal", "Snapshot", "Tier", "Wanted"]

#: Answers that a snapshot remembers.
_REMEMBERED = 2048


class Board(NamedTuple):
    """The part of an exporter that changes rarely."""

    id: str
    name: str
    labels: dict[str, str]
    enabled: bool


@dataclass(frozen=True)
class Wanted:
    """What a lease wants, and who wants it."""

    selector: str
    exporter_name: str | None
    allow_disabled: bool
    duration: float
    client: dict[str, str]


class Refusal(NamedTuple):
    """Why a lease can have no exporter: a reason for its condition and a line."""

    reason: str
    message: str
    invalid: bool = False


class Tier(NamedTuple):
    """Exporters that are granted alike, by name."""

    grant: Grant
    boards: tuple[Board, ...]


@dataclass(frozen=True)
class Candidates:
    """The exporters that a lease may have, the best first; none with the reason."""

    tiers: tuple[Tier, ...] = ()
    refusal: Refusal | None = None

    @cached_property
    def boards(self) -> tuple[Board, ...]:
        """All, the best first."""
        return tuple(board for tier in self.tiers for board in tier.boards)

    @cached_property
    def grants(self) -> dict[str, Grant]:
        """By id of the exporter."""
        return {board.id: tier.grant for tier in self.tiers for board in tier.boards}


class Snapshot:
    """Exporters and policies of one namespace as they were at one revision."""

    def __init__(self, boards: list[Board], access: AccessRules) -> None:
        self._boards = boards
        self._access = access
        self._by_name = {board.name: board for board in boards}
        self._answers: OrderedDict[object, Candidates] = OrderedDict()

    def candidates(self, wanted: Wanted) -> Candidates:
        """The exporters for this wish. Equal wishes get the same object."""
        key = (
            wanted.selector,
            wanted.exporter_name,
            wanted.allow_disabled,
            self._access.length_class(wanted.duration),
            tuple(sorted(wanted.client.items())),
        )
        found = self._answers.get(key)
        if found is None:
            found = self._answers[key] = self._find(wanted)
            while len(self._answers) > _REMEMBERED:
                self._answers.popitem(last=False)
        return found

    def _find(self, wanted: Wanted) -> Candidates:
        boards = self._named(wanted) if wanted.exporter_name is not None else self._selected(wanted)
        if isinstance(boards, Refusal):
            return Candidates(refusal=boards)
        tiers: dict[Grant, list[Board]] = {}
        for board in boards:
            if (grant := self._access.grant(board.labels, wanted.client, wanted.duration)) is not None:
                tiers.setdefault(grant, []).append(board)
        if not tiers:
            return Candidates(refusal=self._no_access(wanted, boards))
        ordered = sorted(tiers.items(), key=lambda item: item[0].order)
        return Candidates(tuple(Tier(grant, tuple(found)) for grant, found in ordered))

    def _named(self, wanted: Wanted) -> list[Board] | Refusal:
        board = self._by_name.get(wanted.exporter_name or "")
        if board is None:
            return Refusal("ExporterNotFound", f"there is no exporter {wanted.exporter_name}")
        if not parse_selector(wanted.selector).matches(board.labels):
            message = f'exporter {board.name} does not match the selector "{wanted.selector}"'
            return Refusal("SelectorMismatch", message)
        if not board.enabled and not wanted.allow_disabled:
            return Refusal("ExporterDisabled", f"exporter {board.name} is disabled")
        return [board]

    def _selected(self, wanted: Wanted) -> list[Board] | Refusal:
        selector = parse_selector(wanted.selector)
        if not selector:
            return Refusal("InvalidSelector", "The selector is empty and no exporter is named", invalid=True)
        matching = [board for board in self._boards if selector.matches(board.labels)]
        if not matching:
            message = f'While there are 0 exporters matching the selector "{selector}", none can be leased'
            return Refusal("NoAccess", message)
        enabled = [board for board in matching if board.enabled or wanted.allow_disabled]
        if not enabled:
            return Refusal("AllDisabled", f"all {len(matching)} matching exporters are disabled")
        return enabled

    def _no_access(self, wanted: Wanted, boards: list[Board]) -> Refusal:
        refusing = self._access.why_not([board.labels for board in boards], wanted.client)
        message = (
            f"While there are {len(boards)} exporters matching the selector, none of them are approved by any policy"
        )
        return Refusal("NoAccess", message + (f" for your client: {refusing}" if refusing else ""))


class Catalogue:
    """The newest snapshot of each namespace."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, Snapshot]] = {}

    def of(self, tx: Transaction, namespace: str) -> Snapshot:
        """What is true in this transaction."""
        # The number first: what is read after it is at least as new.
        revision = tx.session.scalar(select(Revision.value).where(Revision.name == "catalogue")) or 0
        known = self._known.get(namespace)
        if known is None or known[0] != revision:
            known = self._known[namespace] = (revision, _read(tx, namespace))
        return known[1]


def _read(tx: Transaction, namespace: str) -> Snapshot:
    rows = tx.session.execute(
        select(Exporter.id, Exporter.name, Exporter.reported_labels, Exporter.labels, Exporter.enabled)
        .where(Exporter.namespace == namespace)
        .order_by(Exporter.name)
    )
    boards = [Board(id, name, {**reported, **labels}, enabled) for id, name, reported, labels, enabled in rows]
    return Snapshot(boards, AccessRules.of(tx.session, namespace))
