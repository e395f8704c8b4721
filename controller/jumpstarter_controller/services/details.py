# SPDX-License-Identifier: Apache-2.0
"""Exporters with their drivers and who holds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import undefer

from jumpstarter.common.selectors import Selector
from jumpstarter_controller.services.messages import LabelViews, exporter_message, read_page, time_message
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Client, Exporter, Lease
from jumpstarter_protocol.jumpstarter.lab.v1 import controller_pb2

__all__ = ["Detail", "detail_message", "drivers_of", "exporter_details"]

_NAME, _CLIENT = "jumpstarter.dev/name", "jumpstarter.dev/client"


@dataclass(frozen=True)
class Detail:
    """One exporter. lease, client: names; ends: when the lease does; all None while nobody has it."""

    exporter: Exporter
    drivers: list[tuple[str, str, str]] = field(default_factory=list)
    lease: str | None = None
    client: str | None = None
    ends: float | None = None


def exporter_details(
    tx: Transaction, namespace: str, wanted: Selector, after: str, size: int
) -> tuple[list[Detail], bool]:
    """A page of them, by name, and whether there are more."""
    query = (
        select(Exporter)
        .where(Exporter.namespace == namespace, Exporter.name > after)
        .order_by(Exporter.name)
        .options(undefer(Exporter.devices))
    )
    page, more = read_page(tx, query, lambda exporter: wanted.matches(exporter.all_labels), size)
    holders = {
        exporter_id: (lease, client, ends)
        for exporter_id, lease, client, ends in tx.session.execute(
            select(Lease.exporter_id, Lease.name, Client.name, Lease.expires_at)
            .join(Client, Lease.client_id == Client.id)
            .where(~Lease.ended, Lease.exporter_id.is_not(None), Lease.exporter_id.in_([e.id for e in page]))
        )
    }
    nobody = (None, None, None)
    return [
        Detail(exporter, drivers_of(exporter.devices), *holders.get(exporter.id, nobody)) for exporter in page
    ], more


def drivers_of(devices: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Path, client class and description of every driver that an exporter has reported, the root first."""
    by_id = {device["uuid"]: device for device in devices}
    found = []
    for device in devices:
        names: list[str] = []
        at: dict[str, Any] | None = device
        while at is not None and at.get("parent") is not None and len(names) <= len(devices):
            names.append(at.get("labels", {}).get(_NAME) or at["uuid"])
            at = by_id.get(at["parent"])
        path = ".".join(reversed(names))
        found.append((path, device.get("labels", {}).get(_CLIENT, ""), device.get("description") or ""))
    return sorted(found)


def detail_message(detail: Detail, labels: LabelViews, show_hidden: bool) -> controller_pb2.ExporterDetail:
    """As LabControllerService tells it."""
    return controller_pb2.ExporterDetail(
        exporter=exporter_message(detail.exporter, labels, show_hidden),
        lease=detail.lease or "",
        client=detail.client or "",
        lease_ends=time_message(detail.ends),
        drivers=[
            controller_pb2.ExporterDriver(path=path, client=client, description=description)
            for path, client, description in detail.drivers
        ],
        last_seen=time_message(detail.exporter.last_seen or None),
    )
