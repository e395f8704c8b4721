# SPDX-License-Identifier: Apache-2.0
"""What waits: the rows of the queue, and their order.

Order of the queue: who has reserved the exporter for now; then leases that may keep it before spot leases; then the
higher priority; then who came first. There is no aging: who has a low priority waits for as long as others with a
higher one come. A lease is not held up by one before it that wants other exporters, or that is too long for the time
until a reservation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from jumpstarter_controller.leases.access import Grant
from jumpstarter_controller.leases.catalogue import Wanted
from jumpstarter_controller.leases.times import Times, expiry
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Client, Lease

__all__ = ["Place", "Waiting", "read_waiting", "waiting_of"]

#: Sorts a queue: not reserved, spot, not reserved by a spot lease, -priority, order of creation.
Place = tuple[bool, bool, bool, int, int]


@dataclass(frozen=True)
class Waiting:
    """A lease without an exporter; see `Lease` for the columns."""

    sequence: int
    namespace: str
    name: str
    client: str
    wanted: Wanted
    times: Times
    minimum: float | None
    wait_for_match: bool
    reserved_id: str | None
    spot: bool
    conditions: list[dict[str, Any]]

    def is_due(self, now: float) -> bool:
        """Whether it wants an exporter now; else it begins later."""
        return self.times.begin is None or self.times.begin <= now

    def end(self, now: float) -> float:
        """When it ends if it begins now."""
        end = expiry(self.times, now)
        assert end is not None
        return end

    def place(self, grant: Grant, *, reserved: bool = False) -> Place:
        """Where it stands among those who want the exporters that it is granted so."""
        first, first_of_spot = reserved and not self.spot, reserved and self.spot
        return (not first, grant.spot, not first_of_spot, -grant.priority, self.sequence)


# Built once: it runs in every pass, and putting it together takes longer than running it.
_WAITING = (
    select(
        Lease.sequence,
        Lease.namespace,
        Lease.name,
        Client.name,
        Client.labels,
        Lease.selector,
        Lease.exporter_name,
        Lease.allow_disabled,
        Lease.duration,
        Lease.begin_time,
        Lease.end_time,
        Lease.minimum,
        Lease.wait_for_match,
        Lease.reserved_id,
        Lease.spot,
        Lease.conditions,
    )
    .join(Client, Lease.client_id == Client.id)
    .where(~Lease.ended, Lease.exporter_id.is_(None))
)


def read_waiting(tx: Transaction, namespace: str | None = None) -> list[Waiting]:
    """Every lease (of the namespace) that has no exporter and has not ended, in the order of creation."""
    query = _WAITING
    if namespace is not None:
        query = query.where(Lease.namespace == namespace)
    found = [
        Waiting(
            sequence,
            home,
            name,
            client,
            Wanted(selector, exporter_name, allow_disabled, duration, labels),
            Times(duration, begin, end),
            minimum,
            wait_for_match,
            reserved_id,
            spot,
            conditions,
        )
        for (
            sequence,
            home,
            name,
            client,
            labels,
            selector,
            exporter_name,
            allow_disabled,
            duration,
            begin,
            end,
            minimum,
            wait_for_match,
            reserved_id,
            spot,
            conditions,
        ) in tx.session.execute(query)
    ]
    # Here, not by the database: no order is worth leaving the index of those that wait.
    found.sort(key=lambda waiting: (waiting.namespace, waiting.sequence))
    return found


def waiting_of(lease: Lease) -> Waiting:
    """The same, of a lease that was read whole."""
    client = lease.client
    return Waiting(
        lease.sequence,
        lease.namespace,
        lease.name,
        client.name,
        Wanted(lease.selector, lease.exporter_name, lease.allow_disabled, lease.duration, client.labels),
        Times(lease.duration, lease.begin_time, lease.end_time),
        lease.minimum,
        lease.wait_for_match,
        lease.reserved_id,
        lease.spot,
        lease.conditions,
    )
