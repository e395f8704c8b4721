# SPDX-License-Identifier: Apache-2.0
"""Driver calls that exporters report, as entries of the audit log."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import select

from jumpstarter_controller.identity import Caller
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Lease

__all__ = ["CallRecord", "record_calls"]

#: Characters of a name in the log.
_LONGEST = 256


@dataclass(frozen=True)
class CallRecord:
    """One call, as the exporter tells it. Times in seconds."""

    lease: str
    client: str
    driver: str
    method: str
    kind: str
    started: float
    duration: float
    code: str


def record_calls(tx: Transaction, caller: Caller, calls: Iterable[CallRecord], dropped: int) -> None:
    """Write them down. Those on leases that this exporter never had are counted only: it cannot speak for others."""
    calls = list(calls)
    rows = tx.session.execute(
        select(Lease.name).where(
            Lease.namespace == caller.namespace,
            Lease.exporter_id == caller.id,
            Lease.name.in_({call.lease for call in calls}),
        )
    )
    known = set(rows.scalars())
    refused = 0
    for call in calls:
        if call.lease not in known:
            refused += 1
            continue
        actor = f"client {caller.namespace}/{call.client[:_LONGEST]}" if call.client else str(caller)
        tx.audit(
            actor,
            "driver call",
            lease=call.lease,
            exporter=caller.name,
            driver=call.driver[:_LONGEST],
            method=call.method[:_LONGEST],
            kind=call.kind[:_LONGEST],
            started=call.started,
            duration=call.duration,
            code=call.code[:_LONGEST],
        )
    if dropped or refused:
        tx.audit(str(caller), "driver calls lost", exporter=caller.name, dropped=dropped, foreign=refused)
