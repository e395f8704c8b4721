# SPDX-License-Identifier: Apache-2.0
"""Which tunnels the state permits."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from jumpstarter_controller.errors import Refused, permission_denied
from jumpstarter_controller.leases.requests import find_lease
from jumpstarter_controller.leases.schedule import lease_topic
from jumpstarter_controller.state.database import Database, Transaction

__all__ = ["TunnelOwner", "lease_lost"]


@dataclass(frozen=True)
class TunnelOwner:
    """For whom a tunnel is: the lease, and the client that held it when it dialed."""

    namespace: str
    lease: str
    client_id: str


async def lease_lost(database: Database, owner: TunnelOwner) -> Refused:
    """Return, with the reason, when the lease does not carry the tunnel any more. Waits while the database is away."""
    with database.bus.subscribe(lease_topic(owner.namespace, owner.lease)) as subscription:
        while True:
            try:
                await database.patient_read(_check_lease, owner)
            except Refused as refused:
                return refused
            await subscription.changed()


def _check_lease(tx: Transaction, owner: TunnelOwner) -> None:
    lease = find_lease(tx, owner.namespace, owner.lease)
    if lease.ended:
        raise Refused(grpc.StatusCode.ABORTED, f"lease {lease.name} has ended")
    if lease.client_id != owner.client_id:
        raise permission_denied(f"permission denied: lease {lease.name} has another holder now")
