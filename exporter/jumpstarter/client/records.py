# SPDX-License-Identifier: Apache-2.0
"""Leases and exporters as a client sees them, and how they come out of the protocol's messages.

Times are datetimes in UTC, durations seconds, names those without ``namespaces/...`` in front.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from jumpstarter.common.enums import ExporterStatus

__all__ = [
    "DriverInfo",
    "ExporterInfo",
    "LeaseInfo",
    "LeaseState",
    "LeaseWish",
    "exporter_from_detail",
    "exporter_from_message",
    "lease_from_message",
    "set_duration",
    "set_time",
    "short_name",
    "state_from_message",
]


@dataclass(frozen=True)
class LeaseWish:
    """What a lease is asked to be: `selector`, `exporter_name`, or both.

    duration: seconds from the acquisition; None needs begin_time and end_time, or `hold_lease`, which renews for as
    long as it holds. name: "" for one of the controller's choice. heartbeat: the lease ends when its holder was not
    heard of for so many seconds (our controllers only). wait_for_match: wait for an exporter that does not exist yet,
    instead of failing at once. minimum_duration: begin, with less than `duration` but at least this, before the time
    that an exporter is reserved for somebody else (our controllers only, both).
    """

    selector: str = ""
    exporter_name: str | None = None
    duration: float | None = None
    begin_time: datetime | None = None
    end_time: datetime | None = None
    name: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    context: dict[str, str] = field(default_factory=dict)
    allow_disabled: bool = False
    heartbeat: float | None = None
    wait_for_match: bool = False
    minimum_duration: float | None = None

    @property
    def target(self) -> str:
        """For messages: what is asked for."""
        named = f"exporter {self.exporter_name}" if self.exporter_name else ""
        matching = f'"{self.selector}"' if self.selector else ""
        return " with ".join(part for part in (named, matching) if part) or "any exporter"


@dataclass(frozen=True)
class Condition:
    """A line of a lease's history. status: "True", "False" or "Unknown"."""

    type: str
    status: str
    reason: str
    message: str


@dataclass(frozen=True)
class LeaseInfo:
    """A lease. What is not known (yet) is None.

    begin_time, end_time: as they were asked for; effective_…: as it came. effective_duration: seconds that it has run,
    by the controller's clock, when this was told. exporter: that it holds. conditions: the oldest first.
    """

    namespace: str
    name: str
    selector: str = ""
    exporter_name: str | None = None
    exporter: str | None = None
    client: str = ""
    duration: float | None = None
    effective_duration: float | None = None
    begin_time: datetime | None = None
    effective_begin_time: datetime | None = None
    end_time: datetime | None = None
    effective_end_time: datetime | None = None
    conditions: tuple[Condition, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    context: dict[str, str] = field(default_factory=dict)
    allow_disabled: bool = False
    deprecated_labels: dict[str, str] = field(default_factory=dict)
    #: time.monotonic() when this was told.
    told_at: float = field(default_factory=time.monotonic, compare=False, repr=False)

    def _condition(self, kind: str) -> Condition | None:
        return next((condition for condition in reversed(self.conditions) if condition.type == kind), None)

    @property
    def state(self) -> Literal["pending", "ready", "ended", "unsatisfiable", "invalid"]:
        """What has become of it. The last two have ended, too, without ever having held an exporter."""
        for kind, state in (("Invalid", "invalid"), ("Unsatisfiable", "unsatisfiable")):
            condition = self._condition(kind)
            if condition is not None and condition.status == "True":
                return "invalid" if state == "invalid" else "unsatisfiable"
        ready = self._condition("Ready")
        if self.effective_end_time is not None or (ready is not None and ready.status == "False"):
            return "ended"
        return "ready" if ready is not None and ready.status == "True" else "pending"

    @property
    def ended(self) -> bool:
        """Whether it is over, for whatever reason."""
        return self.state not in ("pending", "ready")

    @property
    def last_condition(self) -> Condition | None:
        """The condition that explains `state`: an old Pending says nothing about a lease that is ready."""
        kinds = {"pending": "Pending", "ready": "Ready", "ended": "Ready"}
        found = self._condition(kinds.get(self.state, self.state.capitalize()))
        return found or (self.conditions[-1] if self.conditions and self.state != "pending" else None)

    @property
    def reason(self) -> str:
        """One word for it: "Ready", "NotAvailable", "Released", "Expired", ... Empty when the controller gave none."""
        condition = self.last_condition
        return condition.reason if condition is not None else ""

    @property
    def message(self) -> str:
        """The controller's line about it."""
        condition = self.last_condition
        return condition.message if condition is not None else ""

    @property
    def ends_at(self) -> datetime | None:
        """When it ends or ended, by the controller's clock; None while that is open."""
        if self.effective_end_time is not None:
            return self.effective_end_time
        if self.end_time is not None:
            return self.end_time
        if self.effective_begin_time is None or self.duration is None:
            return None
        return (self.begin_time or self.effective_begin_time) + timedelta(seconds=self.duration)

    @property
    def elapsed(self) -> float:
        """Seconds that it has run until now. Independent of how this machine's clock is set."""
        if self.effective_duration is None:
            return 0.0
        return self.effective_duration + (0.0 if self.ended else time.monotonic() - self.told_at)

    @property
    def remaining(self) -> float | None:
        """Seconds that it still runs; None while that is open. Independent of how this machine's clock is set."""
        end = self.ends_at
        if end is None or self.effective_begin_time is None or self.ended:
            return 0.0 if self.ended else None
        return max(0.0, (end - self.effective_begin_time).total_seconds() - self.elapsed)


@dataclass(frozen=True)
class LeaseState:
    """A lease at one moment.

    position: its place in the queue, 1 for the next, 0 when it does not wait or the controller does not tell. waiting:
    how many wait for the same exporters. spot: it may be taken away for one that is not spot; preempted_at: when, once
    that is decided. message: what it waits for, or why it ended.
    """

    lease: LeaseInfo
    ended: bool
    position: int = 0
    waiting: int = 0
    spot: bool = False
    preempted_at: datetime | None = None
    message: str = ""

    @property
    def line(self) -> str:
        """`message` with the place in the queue, for people."""
        place = f"place {self.position} of {self.waiting} in the queue" if self.position else ""
        return ": ".join(part for part in (place, self.message) if part)


@dataclass(frozen=True)
class DriverInfo:
    """A driver of an exporter. path: dotted, empty for the root. client: dotted path of its client class."""

    path: str
    client: str
    description: str = ""


@dataclass(frozen=True)
class ExporterInfo:
    """An exporter. lease, client, lease_ends, drivers: told by our controllers only.

    lease, client: names of the lease that holds it and of its client, None when nobody does.
    """

    namespace: str
    name: str
    labels: dict[str, str] = field(default_factory=dict)
    online: bool = False
    status: ExporterStatus = ExporterStatus.UNSPECIFIED
    status_message: str = ""
    enabled: bool = True
    deprecated_labels: dict[str, str] = field(default_factory=dict)
    lease: str | None = None
    client: str | None = None
    lease_ends: datetime | None = None
    drivers: tuple[DriverInfo, ...] = ()
    last_seen: datetime | None = None


def short_name(name: str) -> str:
    """The last part of ``namespaces/NS/KIND/NAME``."""
    return name.rpartition("/")[2]


def set_duration(message: Any, seconds: float | None) -> None:
    """Set a Duration, unless there is none."""
    if seconds is not None:
        message.FromNanoseconds(round(seconds * 1e6) * 1000)
        message.SetInParent()


def set_time(message: Any, when: datetime | None) -> None:
    """Set a Timestamp, unless there is none. A datetime without zone is local time."""
    if when is not None:
        message.FromDatetime(when.astimezone(UTC))
        message.SetInParent()


def _seconds(message: Any, name: str) -> float | None:
    if not message.HasField(name):
        return None
    value = getattr(message, name)
    seconds: float = value.seconds + value.nanos / 1e9
    return seconds


def _time(message: Any, name: str) -> datetime | None:
    if not message.HasField(name):
        return None
    found: datetime = getattr(message, name).ToDatetime(tzinfo=UTC)
    return found


def _namespace(name: str) -> str:
    parts = name.split("/")
    return parts[1] if len(parts) == 4 else ""


def lease_from_message(message: Any) -> LeaseInfo:
    """From a jumpstarter.client.v1.Lease."""
    return LeaseInfo(
        namespace=_namespace(message.name),
        name=short_name(message.name),
        selector=message.selector,
        exporter_name=message.exporter_name or None,
        exporter=short_name(message.exporter) or None,
        client=short_name(message.client),
        duration=_seconds(message, "duration"),
        effective_duration=_seconds(message, "effective_duration"),
        begin_time=_time(message, "begin_time"),
        effective_begin_time=_time(message, "effective_begin_time"),
        end_time=_time(message, "end_time"),
        effective_end_time=_time(message, "effective_end_time"),
        conditions=tuple(Condition(c.type, c.status, c.reason, c.message) for c in message.conditions),
        tags=dict(message.tags),
        context=dict(message.context),
        allow_disabled=message.allow_disabled,
        deprecated_labels=dict(message.deprecated_labels),
    )


def state_from_message(message: Any) -> LeaseState:
    """From a jumpstarter.lab.v1.LeaseState."""
    lease = lease_from_message(message.lease)
    return LeaseState(
        lease=lease,
        ended=message.ended or lease.ended,
        position=message.position,
        waiting=message.waiting,
        spot=message.spot,
        preempted_at=_time(message, "preempted_at"),
        message=message.message or lease.message,
    )


def exporter_from_message(message: Any) -> ExporterInfo:
    """From a jumpstarter.client.v1.Exporter."""
    return ExporterInfo(
        namespace=_namespace(message.name),
        name=short_name(message.name),
        labels=dict(message.labels),
        online=message.online,
        status=ExporterStatus.from_proto(message.status),
        status_message=message.status_message,
        enabled=message.enabled if message.HasField("enabled") else True,
        deprecated_labels=dict(message.deprecated_labels),
    )


def exporter_from_detail(message: Any) -> ExporterInfo:
    """From a jumpstarter.lab.v1.ExporterDetail."""
    plain = exporter_from_message(message.exporter)
    return ExporterInfo(
        **{
            **vars(plain),
            "lease": message.lease or None,
            "client": message.client or None,
            "lease_ends": _time(message, "lease_ends"),
            "drivers": tuple(DriverInfo(d.path, d.client, d.description) for d in message.drivers),
            "last_seen": _time(message, "last_seen"),
        }
    )
