# SPDX-License-Identifier: Apache-2.0
"""The tables. Times are seconds since 1970 UTC, durations seconds."""

from __future__ import annotations

import re
from typing import Any
from uuid import uuid4

from sqlalchemy import JSON, BigInteger, Double, ForeignKey, Index, MetaData, UniqueConstraint, false, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

__all__ = [
    "AuditEntry",
    "Base",
    "Client",
    "Dial",
    "Exporter",
    "Lease",
    "Policy",
    "Replica",
    "Router",
    "SigningKey",
    "Token",
]

_NAMES = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


def _new_id() -> str:
    return str(uuid4())


def _partial(name: str, condition: str, *columns: str) -> Index:
    """An index of some rows. The condition is SQLite's, and has to be what queries say, word for word."""
    postgres = re.sub(r"(\w+) = 0", r"NOT \1", re.sub(r"(\w+) = 1", r"\1", condition))
    return Index(name, *columns, sqlite_where=text(condition), postgresql_where=text(postgres))


class Base(DeclarativeBase):
    """Names of constraints are fixed, so that migrations can change them on every database."""

    metadata = MetaData(naming_convention=_NAMES)
    type_annotation_map = {float: Double, dict[str, str]: JSON, list[dict[str, Any]]: JSON, dict[str, Any]: JSON}


class Client(Base):
    """Somebody who leases. username: who that is at an external issuer. administrator: may change the lab."""

    __tablename__ = "clients"
    __table_args__ = (UniqueConstraint("namespace", "name"),)

    id: Mapped[str] = mapped_column(primary_key=True, default=_new_id)
    namespace: Mapped[str]
    name: Mapped[str]
    labels: Mapped[dict[str, str]] = mapped_column(default=dict)
    username: Mapped[str | None] = mapped_column(default=None, unique=True)
    administrator: Mapped[bool] = mapped_column(default=False, server_default=false())
    created_at: Mapped[float]


class Exporter(Base):
    """A device under test and the host that offers it.

    reported_labels: those with the reserved prefix that it said itself when it registered. connected: it has a Status
    stream open. online: connected, or lost for less than the offline timeout. status: a jumpstarter.v1.ExporterStatus.
    replica: the controller that has its Status stream.
    """

    __tablename__ = "exporters"
    __table_args__ = (
        UniqueConstraint("namespace", "name"),
        _partial("ix_exporters_last_seen", "online = 1 AND connected = 0", "last_seen"),
    )

    id: Mapped[str] = mapped_column(primary_key=True, default=_new_id)
    namespace: Mapped[str]
    name: Mapped[str]
    labels: Mapped[dict[str, str]] = mapped_column(default=dict)
    reported_labels: Mapped[dict[str, str]] = mapped_column(default=dict)
    enabled: Mapped[bool] = mapped_column(default=True)
    devices: Mapped[list[dict[str, Any]]] = mapped_column(default=list, deferred=True)  # long, and rarely asked for
    registered: Mapped[bool] = mapped_column(default=False)
    connected: Mapped[bool] = mapped_column(default=False)
    online: Mapped[bool] = mapped_column(default=False)
    status: Mapped[int] = mapped_column(default=0)
    status_message: Mapped[str] = mapped_column(default="")
    last_seen: Mapped[float] = mapped_column(default=0.0)
    replica: Mapped[str | None] = mapped_column(default=None)
    username: Mapped[str | None] = mapped_column(default=None, unique=True)
    created_at: Mapped[float]

    @property
    def all_labels(self) -> dict[str, str]:
        """What selectors see; what the administrator says wins."""
        return {**self.reported_labels, **self.labels}


class Lease(Base):
    """The right of one client to one exporter.

    selector, exporter_name, duration, begin_time, end_time: what was asked for. exporter_id, effective_begin,
    effective_end: what became of it. expires_at: when it ends by itself, None while that depends on when it begins.
    sequence: the order of creation, which is the order of the queue. heartbeat: seconds after the last sign of life
    (heartbeat_at) of its holder at which it ends, None when none is expected; silent_at: when that is, by what the
    database knows. wait_for_match: it waits for an exporter that does not exist yet. spot: it may be taken away;
    preempted_at: when it will be. minimum: it may be as short as that, None when it may not be shorter than its
    duration. reserved_id: the exporter that is kept for it from begin_time on. listener: the Listen stream that counts.
    """

    __tablename__ = "leases"
    __table_args__ = (
        UniqueConstraint("namespace", "name"),
        # The rule that matters most is the database's: one exporter, one lease.
        Index(
            "uq_leases_active_exporter",
            "exporter_id",
            unique=True,
            sqlite_where=text("ended = 0 AND exporter_id IS NOT NULL"),
            postgresql_where=text("NOT ended AND exporter_id IS NOT NULL"),
        ),
        # What a pass over the queue looks at is found without the many leases that have ended.
        _partial("ix_leases_ended", "ended = 1", "effective_end"),
        _partial("ix_leases_expires", "ended = 0", "expires_at"),
        _partial("ix_leases_unassigned", "ended = 0 AND exporter_id IS NULL", "begin_time"),
        _partial("ix_leases_silent", "ended = 0 AND silent_at IS NOT NULL", "silent_at"),
        _partial("ix_leases_preempted", "ended = 0 AND preempted_at IS NOT NULL", "preempted_at"),
        {"sqlite_autoincrement": True},  # a place in the queue is never given twice
    )

    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    namespace: Mapped[str]
    name: Mapped[str]
    client_id: Mapped[str] = mapped_column(ForeignKey("clients.id"), index=True)
    exporter_id: Mapped[str | None] = mapped_column(ForeignKey("exporters.id"), default=None)
    selector: Mapped[str] = mapped_column(default="")
    exporter_name: Mapped[str | None] = mapped_column(default=None)
    allow_disabled: Mapped[bool] = mapped_column(default=False)
    tags: Mapped[dict[str, str]] = mapped_column(default=dict)
    context: Mapped[dict[str, str]] = mapped_column(default=dict)
    duration: Mapped[float]
    begin_time: Mapped[float | None] = mapped_column(default=None)
    end_time: Mapped[float | None] = mapped_column(default=None)
    effective_begin: Mapped[float | None] = mapped_column(default=None)
    effective_end: Mapped[float | None] = mapped_column(default=None)
    expires_at: Mapped[float | None] = mapped_column(default=None)
    ended: Mapped[bool] = mapped_column(default=False)
    priority: Mapped[int] = mapped_column(default=0)
    heartbeat: Mapped[float | None] = mapped_column(default=None)
    heartbeat_at: Mapped[float | None] = mapped_column(default=None)
    wait_for_match: Mapped[bool] = mapped_column(default=False, server_default=false())
    spot: Mapped[bool] = mapped_column(default=False, server_default=false())
    preempted_at: Mapped[float | None] = mapped_column(default=None)
    silent_at: Mapped[float | None] = mapped_column(default=None)
    minimum: Mapped[float | None] = mapped_column(default=None)
    reserved_id: Mapped[str | None] = mapped_column(default=None)
    listener: Mapped[str | None] = mapped_column(default=None)
    conditions: Mapped[list[dict[str, Any]]] = mapped_column(default=list)
    created_at: Mapped[float]

    client: Mapped[Client] = relationship(lazy="joined", innerjoin=True)
    exporter: Mapped[Exporter | None] = relationship(lazy="joined")


class Replica(Base):
    """A controller that serves, or did until `last_seen`."""

    __tablename__ = "replicas"

    id: Mapped[str] = mapped_column(primary_key=True)
    started_at: Mapped[float]
    last_seen: Mapped[float]


class Router(Base):
    """A router that runs apart from the controllers.

    labels, weight, endpoint, instance: what it said when it attached; instance changes whenever it starts.
    attachment: its Attach stream, None when that has ended. tunnels: how many it carried when it was last seen.
    """

    __tablename__ = "routers"
    __table_args__ = (UniqueConstraint("namespace", "name"),)

    id: Mapped[str] = mapped_column(primary_key=True, default=_new_id)
    namespace: Mapped[str]
    name: Mapped[str]
    labels: Mapped[dict[str, str]] = mapped_column(default=dict)
    weight: Mapped[int] = mapped_column(default=1)
    endpoint: Mapped[str] = mapped_column(default="")
    instance: Mapped[str] = mapped_column(default="")
    attachment: Mapped[str | None] = mapped_column(default=None)
    tunnels: Mapped[int] = mapped_column(default=0)
    last_seen: Mapped[float] = mapped_column(default=0.0)
    created_at: Mapped[float]


class Dial(Base):
    """A tunnel that one controller hands over to the one where the exporter listens; it is there for a moment.

    listener: the Listen stream that it is for (`Lease.listener`). endpoint, token: what the exporter is told. taken: it
    has been told; refused: why it will not be.
    """

    __tablename__ = "dials"

    id: Mapped[str] = mapped_column(primary_key=True)
    listener: Mapped[str] = mapped_column(index=True)
    endpoint: Mapped[str]
    token: Mapped[str]
    taken: Mapped[bool] = mapped_column(default=False)
    refused: Mapped[str] = mapped_column(default="")
    created_at: Mapped[float]


class Policy(Base):
    """Which clients may lease which exporters.

    rules: [{"clients": selector, "priority": int, "maximum_duration": seconds or None, "spot": bool,
    "description": text}, ...].
    """

    __tablename__ = "policies"
    __table_args__ = (UniqueConstraint("namespace", "name"),)

    id: Mapped[str] = mapped_column(primary_key=True, default=_new_id)
    namespace: Mapped[str]
    name: Mapped[str]
    exporters: Mapped[str] = mapped_column(default="")
    rules: Mapped[list[dict[str, Any]]] = mapped_column(default=list)


class Revision(Base):
    """A random number that changes (by triggers) with what it is named after: what was read stays true while it stands.

    "catalogue": labels and switches of exporters, and access policies.
    """

    __tablename__ = "revisions"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger)


class SigningKey(Base):
    """A private key that signs tokens. The newest one signs, every one that is not retired verifies."""

    __tablename__ = "signing_keys"

    kid: Mapped[str] = mapped_column(primary_key=True)
    private_pem: Mapped[str]
    created_at: Mapped[float]
    retired_at: Mapped[float | None] = mapped_column(default=None)


class Token(Base):
    """A token or certificate that was issued. One without a row, or with a revoked one, is worth nothing."""

    __tablename__ = "tokens"

    jti: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    subject_id: Mapped[str] = mapped_column(index=True)
    issued_at: Mapped[float]
    expires_at: Mapped[float]
    revoked_at: Mapped[float | None] = mapped_column(default=None)


class AuditEntry(Base):
    """Who did what, when, to which lease, exporter or client (their names in ``namespace``)."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[float] = mapped_column(index=True)
    actor: Mapped[str]
    action: Mapped[str]
    namespace: Mapped[str | None] = mapped_column(default=None)
    lease: Mapped[str | None] = mapped_column(default=None, index=True)
    exporter: Mapped[str | None] = mapped_column(default=None, index=True)
    client: Mapped[str | None] = mapped_column(default=None, index=True)
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)
