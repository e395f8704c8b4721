# SPDX-License-Identifier: Apache-2.0
"""The state without a network: a database, a clock to turn, clients and exporters in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import select

from jumpstarter.common.enums import ExporterStatus
from jumpstarter_controller import exporters
from jumpstarter_controller.administration.policies import Rule, put_policy
from jumpstarter_controller.administration.subjects import change_subject, create_subject
from jumpstarter_controller.identity import Caller
from jumpstarter_controller.leases.catalogue import Catalogue
from jumpstarter_controller.leases.heartbeats import Heartbeats
from jumpstarter_controller.leases.requests import (
    LeaseChange,
    LeaseRequest,
    create_lease,
    find_lease,
    release_lease,
    update_lease,
)
from jumpstarter_controller.leases.schedule import SchedulePolicy, schedule
from jumpstarter_controller.state.database import Transaction, open_database
from jumpstarter_controller.state.models import Client, Exporter, Lease

T = TypeVar("T")
NAMESPACE = "default"
START = 1_800_000_000.0


class QueueBench:
    """What `Lab` does, one step at a time."""

    def __init__(self, place: str | Path) -> None:
        self.now = START
        self.catalogue = Catalogue()
        self.beats = Heartbeats()
        self.policy = SchedulePolicy(offline_after=60.0, retention=1000.0)
        self.database = open_database(place, clock=lambda: self.now)
        self.deadline: float | None = None
        self.topics: set[str] = set()

    def change(self, body: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        def changing(tx: Transaction) -> T:
            value = body(tx, *args, **kwargs)
            tx.session.flush()
            self.deadline = schedule(tx, self.policy, self.catalogue, self.beats)
            self.topics = tx.topics
            return value

        return self.database.write_now(changing)

    def at(self, seconds: float) -> None:
        """Turn the clock to START + seconds and look at the queue."""
        self.now = START + seconds
        self.change(lambda tx: None)

    def client(self, name: str, **labels: str) -> Caller:
        self.database.write_now(create_subject, "client", NAMESPACE, name, labels, 3600.0)
        return self._caller("client", Client, name)

    def exporter(self, name: str, *, ready: bool = True, **labels: str) -> Caller:
        self.database.write_now(create_subject, "exporter", NAMESPACE, name, labels, 3600.0)
        caller = self._caller("exporter", Exporter, name)
        if ready:
            self.change(exporters.register, caller, {"jumpstarter.dev/name": name}, [{"uuid": "1"}])
            self.change(exporters.connected, caller)
            self.status(caller, ExporterStatus.AVAILABLE)
        return caller

    def _caller(self, kind: Any, model: Any, name: str) -> Caller:
        query = select(model).filter_by(namespace=NAMESPACE, name=name)
        row = self.database.write_now(lambda tx: tx.session.scalars(query).one())
        return Caller(kind, row.id, NAMESPACE, name, "")

    def status(self, caller: Caller, status: ExporterStatus, message: str = "", release: bool = False) -> None:
        self.change(exporters.report_status, caller, status.value, message, release)

    def lease(self, caller: Caller, selector: str = "board=x", duration: float | None = 600.0, **more: Any) -> str:
        return self.change(
            create_lease, caller, LeaseRequest(selector=selector, duration=duration, **more), None, self.catalogue
        ).name

    def policy_rule(
        self,
        name: str,
        exporters: str = "",
        clients: str = "",
        *,
        priority: int = 0,
        maximum: float | None = None,
        spot: bool = False,
    ) -> None:
        """Make or replace an access policy with one rule."""
        rule = Rule(clients, priority, maximum, spot)
        self.change(put_policy, "test", NAMESPACE, name, exporters, [rule])

    def enable(self, name: str, enabled: bool) -> None:
        """Switch an exporter on or off."""
        self.change(change_subject, "test", "exporter", NAMESPACE, name, enabled=enabled)

    def update(self, caller: Caller, name: str, **values: Any) -> Lease:
        return self.change(update_lease, caller, name, LeaseChange(**values), self.catalogue)

    def release(self, caller: Caller, name: str) -> None:
        self.change(release_lease, caller, name)

    def get(self, name: str) -> Lease:
        return self.database.write_now(find_lease, NAMESPACE, name)

    def holder(self, name: str) -> str | None:
        """Name of the exporter that the lease holds now."""
        lease = self.get(name)
        return None if lease.ended or lease.exporter is None else lease.exporter.name

    def reason(self, name: str) -> str:
        """The newest condition: "Type=Status Reason"."""
        newest = self.get(name).conditions[-1]
        return f"{newest['type']}={newest['status']} {newest['reason']}"
