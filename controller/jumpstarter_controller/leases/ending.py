# SPDX-License-Identifier: Apache-2.0
"""The end of a lease, and the bus topics that tell of leases."""

from __future__ import annotations

from typing import Any

from jumpstarter_controller.leases.conditions import READY, with_condition
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Lease

__all__ = ["audit_lease", "end_lease", "exporter_topic", "lease_topic", "queue_topic", "touch_lease"]


def lease_topic(namespace: str, name: str) -> str:
    """Bus topic of a lease."""
    return f"lease/{namespace}/{name}"


def exporter_topic(exporter_id: str) -> str:
    """Bus topic of an exporter."""
    return f"exporter/{exporter_id}"


def queue_topic(namespace: str) -> str:
    """Bus topic: the queue of this namespace is another one."""
    return f"queue/{namespace}"


def touch_lease(tx: Transaction, lease: Lease) -> None:
    """Say that a lease changes, to those who watch it or its exporter."""
    tx.touch(lease_topic(lease.namespace, lease.name))
    if lease.exporter_id is not None:
        tx.touch(exporter_topic(lease.exporter_id))


def audit_lease(tx: Transaction, lease: Lease, action: str, **detail: Any) -> None:
    """Write down what the controller itself did to a lease."""
    exporter = None if lease.exporter is None else lease.exporter.name
    tx.audit(
        "controller",
        action,
        namespace=lease.namespace,
        lease=lease.name,
        exporter=exporter,
        client=lease.client.name,
        **detail,
    )


def end_lease(tx: Transaction, lease: Lease, reason: str, message: str, kind: str = READY, *, status: bool) -> None:
    """End a lease, for good."""
    lease.ended = True
    lease.effective_end = tx.now
    lease.conditions = with_condition(lease.conditions, kind, status, reason, message, tx.now)
    touch_lease(tx, lease)
    if lease.exporter_id is None:
        tx.touch(queue_topic(lease.namespace))
    tx.measure("lease ended")
    if kind != READY:
        tx.measure("lease failed")
    audit_lease(tx, lease, f"lease ended: {reason}")
