# SPDX-License-Identifier: Apache-2.0
"""Numbers for Prometheus, on an HTTP port of its own. No names: whoever may read them learns nothing about anybody.

What can be counted is read from the database when somebody asks; what happens is counted where it happens
(`Transaction.measure`, by every controller for what it did itself).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from sqlalchemy import func, select

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_controller.state.database import Database, Transaction, Unavailable
from jumpstarter_controller.state.models import Exporter, Lease, Replica

__all__ = ["Metrics"]

logger = logging.getLogger(__name__)

_ACQUIRE_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30, 120, 600, 3600, 14400)
_DIAL_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30)
_DATABASE_ERROR = "database error: "


class Metrics:
    """The numbers of one controller. tunnels: how many its router carries now."""

    def __init__(self, database: Database, tunnels: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self._database = database
        labels = ["result"]
        name = "jumpstarter_lease_acquisitions"
        self._acquisitions = Counter(name, "Leases that got an exporter, or never will", labels, registry=self.registry)
        for result in ("success", "failure"):
            self._acquisitions.labels(result)
        self._acquire = Histogram(
            "jumpstarter_lease_acquisition_seconds",
            "From the moment a lease could begin until it has its exporter",
            buckets=_ACQUIRE_SECONDS,
            registry=self.registry,
        )
        self._ended = Counter("jumpstarter_leases_ended", "Leases that ended", registry=self.registry)
        self._dial = Histogram(
            "jumpstarter_dial_seconds",
            "Time that clients wait for the tokens of a tunnel",
            buckets=_DIAL_SECONDS,
            registry=self.registry,
        )
        self._errors = Counter(
            "jumpstarter_database_errors",
            "Errors of the database: conflict (repeated), lost (connection), busy, fatal",
            ["kind"],
            registry=self.registry,
        )
        carried = Gauge("jumpstarter_tunnels", "Tunnels through the router of this controller", registry=self.registry)
        carried.set_function(tunnels)
        up = Gauge("jumpstarter_database_up", "Whether the database answers", registry=self.registry)
        up.set_function(lambda: 0 if database.outage.down else 1)
        info = Gauge("jumpstarter_build_info", "The version that runs", ["version"], registry=self.registry)
        info.labels(version("jumpstarter-lab")).set(1)
        self.registry.register(_State(database))
        database.on_measures = self._take

    def _take(self, measures: list[tuple[str, float]]) -> None:
        """Count what a transaction has measured. Called in any thread."""
        for name, value in measures:
            if name == "lease acquired":
                self._acquisitions.labels("success").inc()
                self._acquire.observe(max(0.0, value))
            elif name == "lease failed":
                self._acquisitions.labels("failure").inc(value)
            elif name == "lease ended":
                self._ended.inc(value)
            elif name == "dial":
                self._dial.observe(value)
            elif name.startswith(_DATABASE_ERROR):
                self._errors.labels(name.removeprefix(_DATABASE_ERROR)).inc(value)

    @contextmanager
    def served(self, listen: str) -> Iterator[str]:
        """Context: answer GET /metrics on host:port; the address with its port. Raises ConfigurationError."""
        host, _, port = listen.rpartition(":")
        server: WSGIServer
        thread: threading.Thread
        try:
            server, thread = start_http_server(int(port), host.strip("[]"), self.registry)
        except (OSError, OverflowError) as error:
            raise ConfigurationError(f"metrics: cannot listen on {listen}: {error}") from error
        try:
            yield f"{host}:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _State:
    """What the database holds at the moment of asking."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> Iterable[Any]:
        """Nothing: the registry would ask the database to find the names out."""
        return ()

    def collect(self) -> Iterable[Any]:
        """The gauges; none of them while the database is away."""
        if self._database.outage.down:
            return
        try:
            leases, exporters, replicas = self._database.read_now(_count)
        except Unavailable as error:
            logger.info("metrics without the state: %s", error)
            return
        family = GaugeMetricFamily("jumpstarter_leases", "Leases that have not ended", labels=["state"])
        for state, number in leases.items():
            family.add_metric([state], number)
        yield family
        family = GaugeMetricFamily("jumpstarter_exporters", "Exporters", labels=["state"])
        for state, number in exporters.items():
            family.add_metric([state], number)
        yield family
        yield GaugeMetricFamily("jumpstarter_queue_length", "Leases that wait for an exporter", value=leases["waiting"])
        yield GaugeMetricFamily("jumpstarter_replicas", "Controllers that serve this lab", value=replicas)


def _count(tx: Transaction) -> tuple[dict[str, int], dict[str, int], int]:
    def number(model: Any, *conditions: Any) -> int:
        return tx.session.scalar(select(func.count()).select_from(model).where(*conditions)) or 0

    active = ~Lease.ended
    unassigned = (active, Lease.exporter_id.is_(None))
    scheduled = number(Lease, *unassigned, Lease.begin_time > tx.now)
    held = number(Lease, active, Lease.exporter_id.is_not(None))
    known = Exporter.namespace.not_like("deleted/%")
    online = number(Exporter, known, Exporter.online.is_(True))
    return (
        {"held": held, "waiting": number(Lease, *unassigned) - scheduled, "scheduled": scheduled},
        {"online": online, "offline": number(Exporter, known) - online},
        number(Replica),
    )
