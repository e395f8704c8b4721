# SPDX-License-Identifier: Apache-2.0
"""The tables. Times are seconds since 1970 UTC, durations seconds."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from sqlalchemy import JSON, Double, ForeignKey, Index, MetaData, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

__all__ = ["AuditEntry", "Base", "Client", "Exporter", "Lease", "Policy", "SigningKey", "Token"]

_NAMES = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


def _new_id() -> str:
    return str(uuid4())


class Base(DeclarativeBase):
    """Names of constraints are fixed, so that migrations can change them on every database."""

    metadata = MetaData(naming_convention=_NAMES)
    type_annotation_map = {float: Double, dict[str, str]: JSON, list[dict[str, Any]]: JSON, dict[str, Any]: JSON}


class Client(Base):
    """Somebody who leases."""

    __tablename__ = "clients"
    __table_args__ = (UniqueConstraint("namespace", "name"),)

    id: Mapped[str] = mapped_column(primary_key=True, default=_new_id)
    namespace: Mapped[str]
    name: Mapped[str]
    labels: Mapped[dict[str, str]] = mapped_column(default=dict)
    created_at: Mapped[float]


class Exporter(Base):
    """A device under test and the host that offers it.

    reported_labels: those with the reserved prefix that it said itself when it registered. connected: it has a Status
    stream open. online: connected, or lost for less than the offline timeout. status: a jumpstarter.v1.ExporterStatus.
    """

    __tablename__ = "exporters"
    __table_args__ = (UniqueConstraint("namespace", "name"), Index("ix_exporters_last_seen", "online", "last_seen"))

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
    created_at: Mapped[float]

    @property
    def all_labels(self) -> dict[str, str]:
        """What selectors see; what the administrator says wins."""
        return {**self.reported_labels, **self.labels}


class Lease(Base):
    """The right of one client to one exporter.

    selector, exporter_name, duration, begin_time, end_time: what was asked for. exporter_id, effective_begin,
    effective_end: what became of it. expires_at: when it ends by itself, None while that depends on when it begins.
    sequence: the order of creation, which is the order of the queue.
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
        Index("ix_leases_ended", "ended", "effective_end"),
        Index("ix_leases_expires", "ended", "expires_at"),
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
    conditions: Mapped[list[dict[str, Any]]] = mapped_column(default=list)
    created_at: Mapped[float]

    client: Mapped[Client] = relationship(lazy="joined", innerjoin=True)
    exporter: Mapped[Exporter | None] = relationship(lazy="joined")


class Policy(Base):
    """Which clients may lease which exporters.

    rules: [{"clients": selector, "priority": int, "maximum_duration": seconds or None, "description": text}, ...].
    """

    __tablename__ = "policies"
    __table_args__ = (UniqueConstraint("namespace", "name"),)

    id: Mapped[str] = mapped_column(primary_key=True, default=_new_id)
    namespace: Mapped[str]
    name: Mapped[str]
    exporters: Mapped[str] = mapped_column(default="")
    rules: Mapped[list[dict[str, Any]]] = mapped_column(default=list)


class SigningKey(Base):
    """A private key that signs tokens. The newest one signs, every one that is not retired verifies."""

    __tablename__ = "signing_keys"

    kid: Mapped[str] = mapped_column(primary_key=True)
    private_pem: Mapped[str]
    created_at: Mapped[float]
    retired_at: Mapped[float | None] = mapped_column(default=None)


class Token(Base):
    """A token that was issued. One without a row, or with a revoked one, is worth nothing."""

    __tablename__ = "tokens"

    jti: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    subject_id: Mapped[str] = mapped_column(index=True)
    issued_at: Mapped[float]
    expires_at: Mapped[float]
    revoked_at: Mapped[float | None] = mapped_column(default=None)


class AuditEntry(Base):
    """Who did what, when, to which lease or exporter."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[float] = mapped_column(index=True)
    actor: Mapped[str]
    action: Mapped[str]
    lease: Mapped[str | None] = mapped_column(default=None, index=True)
    exporter: Mapped[str | None] = mapped_column(default=None)
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)
