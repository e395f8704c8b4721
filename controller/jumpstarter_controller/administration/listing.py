# SPDX-License-Identifier: Apache-2.0
"""What there is, as objects for JSON."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import select

from jumpstarter_controller.administration.policies import list_policies
from jumpstarter_controller.administration.subjects import active_leases, find_subject
from jumpstarter_controller.identity.callers import Kind
from jumpstarter_controller.identity.tokens import list_tokens
from jumpstarter_controller.routers import is_live
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Client, Exporter, Router

__all__ = ["listing", "token_listing"]


What = Literal["clients", "exporters", "policies", "routers"]


def listing(tx: Transaction, what: What, namespace: str) -> list[dict[str, Any]]:
    """The clients, exporters, policies or routers of a namespace, by name."""
    lists = {"clients": _clients, "exporters": _exporters, "policies": _policies, "routers": _routers}
    return list(lists[what](tx, namespace))


def _clients(tx: Transaction, namespace: str) -> Iterator[dict[str, Any]]:
    for client in tx.session.scalars(select(Client).where(Client.namespace == namespace).order_by(Client.name)):
        yield {
            "name": client.name,
            "labels": client.labels,
            "username": client.username,
            "administrator": client.administrator,
            "leases": [lease.name for lease in active_leases(tx, client)],
        }


def _exporters(tx: Transaction, namespace: str) -> Iterator[dict[str, Any]]:
    for exporter in tx.session.scalars(select(Exporter).where(Exporter.namespace == namespace).order_by(Exporter.name)):
        leases = active_leases(tx, exporter)
        yield {
            "name": exporter.name,
            "labels": exporter.all_labels,
            "username": exporter.username,
            "enabled": exporter.enabled,
            "online": exporter.online,
            "lease": leases[0].name if leases else None,
        }


def _policies(tx: Transaction, namespace: str) -> Iterator[dict[str, Any]]:
    for policy in list_policies(tx, namespace):
        yield {"name": policy.name, "exporters": policy.exporters, "rules": policy.rules}


def _routers(tx: Transaction, namespace: str) -> Iterator[dict[str, Any]]:
    for router in tx.session.scalars(select(Router).where(Router.namespace == namespace).order_by(Router.name)):
        yield {
            "name": router.name,
            "endpoint": router.endpoint,
            "labels": router.labels,
            "weight": router.weight,
            "attached": is_live(tx, router),
            "tunnels": router.tunnels,
        }


def token_listing(tx: Transaction, kind: Kind, namespace: str, name: str) -> list[dict[str, Any]]:
    """What is known of the tokens and certificates of a client or exporter. Raises NOT_FOUND."""
    return [
        {
            "id": row.jti,
            "issued": _time(row.issued_at),
            "expires": _time(row.expires_at),
            "revoked": None if row.revoked_at is None else _time(row.revoked_at),
        }
        for row in list_tokens(tx, find_subject(tx, kind, namespace, name).id)
    ]


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
