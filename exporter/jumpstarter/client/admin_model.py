# SPDX-License-Identifier: Apache-2.0
"""What administrators see: plain values made from the messages of `jumpstarter.admin.v1`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from jumpstarter.common.enums import ExporterStatus
from jumpstarter_protocol.jumpstarter.admin.v1 import admin_pb2

__all__ = [
    "AdminClientInfo",
    "AdminExporterInfo",
    "AuditRecord",
    "Credential",
    "Identity",
    "PolicyInfo",
    "PolicyRule",
    "TokenInfo",
    "duration_message",
    "policy_message",
    "time_message",
]


def _last(name: str) -> str:
    """The name within its namespace."""
    return name.rpartition("/")[2]


def _space(name: str) -> str:
    """The namespace of "namespaces/NS/KIND/NAME", else ""."""
    parts = name.split("/")
    return parts[1] if len(parts) == 4 and parts[0] == "namespaces" else ""


def _time(message: Any, name: str) -> datetime | None:
    """The time in field `name`, with UTC; None when it is not set."""
    stamp: Timestamp = getattr(message, name)
    return stamp.ToDatetime(tzinfo=UTC) if message.HasField(name) else None


def time_message(time: datetime | None) -> Timestamp | None:
    """A Timestamp. Times without a zone are local ones."""
    if time is None:
        return None
    message = Timestamp()
    message.FromDatetime(time.astimezone(UTC))
    return message


def duration_message(seconds: float | None) -> Duration | None:
    """A Duration."""
    if seconds is None:
        return None
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


@dataclass(frozen=True)
class Identity:
    """Who a token belongs to. kind: "client" or "exporter". method: "token", "oidc" or "certificate"."""

    kind: str
    namespace: str
    name: str
    administrator: bool
    expiry: datetime | None
    method: str

    @classmethod
    def from_message(cls, message: Any) -> Self:
        """From a WhoAmIResponse."""
        return cls(
            kind=message.kind,
            namespace=message.namespace,
            name=message.name,
            administrator=message.administrator,
            expiry=_time(message, "expiry"),
            method=message.method,
        )


@dataclass(frozen=True)
class Credential:
    """A token and how to reach the lab with it. ca: PEM, "" when the system's authorities know the controller."""

    token: str = field(repr=False)
    expiry: datetime | None
    endpoint: str
    ca: str = field(repr=False)
    revoked: int = 0

    @classmethod
    def of(cls, message: Any) -> Self:
        """From a response that brings a token."""
        return cls(
            token=message.token,
            expiry=_time(message, "expiry"),
            endpoint=message.endpoint,
            ca=message.ca,
            revoked=getattr(message, "revoked", 0),
        )

    @classmethod
    def from_message(cls, message: Any) -> Self | None:
        """The same; None when there is no token in it."""
        return cls.of(message) if message.token else None


@dataclass(frozen=True)
class AdminClientInfo:
    """A client."""

    namespace: str
    name: str
    labels: dict[str, str]
    username: str
    administrator: bool
    created: datetime | None

    @classmethod
    def from_message(cls, message: Any) -> Self:
        """From a Client."""
        return cls(
            namespace=_space(message.name),
            name=_last(message.name),
            labels=dict(message.labels),
            username=message.username,
            administrator=message.administrator,
            created=_time(message, "created"),
        )


@dataclass(frozen=True)
class AdminExporterInfo:
    """An exporter. labels: by administrators. reported_labels: by itself. lease: name of the one that holds it."""

    namespace: str
    name: str
    labels: dict[str, str]
    reported_labels: dict[str, str]
    enabled: bool
    username: str
    created: datetime | None
    online: bool
    status: ExporterStatus
    status_message: str
    last_seen: datetime | None
    lease: str

    @classmethod
    def from_message(cls, message: Any) -> Self:
        """From an Exporter."""
        return cls(
            namespace=_space(message.name),
            name=_last(message.name),
            labels=dict(message.labels),
            reported_labels=dict(message.reported_labels),
            enabled=message.enabled,
            username=message.username,
            created=_time(message, "created"),
            online=message.online,
            status=ExporterStatus.from_proto(message.status),
            status_message=message.status_message,
            last_seen=_time(message, "last_seen"),
            lease=_last(message.lease),
        )


@dataclass(frozen=True)
class TokenInfo:
    """A token that was issued, without the secret. revoked: when it was, else None."""

    id: str
    issued: datetime | None
    expiry: datetime | None
    revoked: datetime | None

    @classmethod
    def from_message(cls, message: Any) -> Self:
        """From a Token."""
        issued, expiry, revoked = (_time(message, name) for name in ("issued", "expiry", "revoked"))
        return cls(id=message.id, issued=issued, expiry=expiry, revoked=revoked)

    def valid_at(self, now: datetime) -> bool:
        """Whether it opens the lab then."""
        return self.revoked is None and (self.expiry is None or now < self.expiry)


@dataclass(frozen=True)
class PolicyRule:
    """Who may lease. clients: selector, "" for all. maximum_duration: seconds, None for no limit.

    priority: higher ones are served first. spot: such a lease may be taken away for others.
    """

    clients: str = ""
    priority: int = 0
    maximum_duration: float | None = None
    spot: bool = False
    description: str = ""

    @classmethod
    def from_message(cls, message: Any) -> Self:
        """From a Rule."""
        limit = message.maximum_duration.ToNanoseconds() / 1e9 if message.HasField("maximum_duration") else None
        return cls(message.clients, message.priority, limit, message.spot, message.description)


@dataclass(frozen=True)
class PolicyInfo:
    """An access policy. exporters: selector of those it is about, "" for all."""

    name: str
    exporters: str
    rules: tuple[PolicyRule, ...]

    @classmethod
    def from_message(cls, message: Any) -> Self:
        """From an AccessPolicy."""
        rules = tuple(PolicyRule.from_message(rule) for rule in message.rules)
        return cls(_last(message.name), message.exporters, rules)


def policy_message(exporters: str, rules: Iterable[PolicyRule]) -> admin_pb2.AccessPolicy:
    """An AccessPolicy."""
    return admin_pb2.AccessPolicy(
        exporters=exporters,
        rules=[
            admin_pb2.AccessPolicy.Rule(
                clients=rule.clients,
                priority=rule.priority,
                maximum_duration=duration_message(rule.maximum_duration),
                spot=rule.spot,
                description=rule.description,
            )
            for rule in rules
        ],
    )


@dataclass(frozen=True)
class AuditRecord:
    """Who (actor) did what (action), when, on which lease and exporter. client: name of the client that did it.

    What does not apply is "".
    """

    at: datetime
    actor: str
    action: str
    lease: str
    exporter: str
    client: str
    namespace: str
    detail: dict[str, Any]

    @classmethod
    def from_message(cls, message: Any) -> Self:
        """From an AuditEntry."""
        return cls(
            at=message.at.ToDatetime(tzinfo=UTC),
            actor=message.actor,
            action=message.action,
            lease=message.lease,
            exporter=message.exporter,
            client=message.client,
            namespace=message.namespace,
            detail=MessageToDict(message.detail),
        )
