# SPDX-License-Identifier: Apache-2.0
"""What the administrator does to the state. Transactions for `Database.write_now`, on the controller's host."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path

import grpc
from sqlalchemy import select

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.common.selectors import SelectorError, check_label, parse_selector
from jumpstarter.config.client import ClientConfigV1Alpha1, ClientConfigV1Alpha1Drivers
from jumpstarter.config.common import ObjectMeta
from jumpstarter.config.exporter import ExporterConfigV1Alpha1
from jumpstarter.config.tls import TLSConfigV1Alpha1
from jumpstarter_controller.errors import Refused, invalid, not_found
from jumpstarter_controller.identity import Kind, issue_token, revoke_tokens
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import AuditEntry, Client, Exporter, Policy

__all__ = ["Credentials", "client_file", "create_subject", "exporter_file", "read_audit", "revoke", "set_policy"]

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?")
_ACTOR = "administrator"


@dataclass(frozen=True)
class Credentials:
    """What a new client or exporter needs to reach the controller."""

    namespace: str
    name: str
    endpoint: str
    token: str
    ca: Path

    def tls(self) -> TLSConfigV1Alpha1:
        """The `tls` block of their configuration file. Raises ConfigurationError."""
        try:
            return TLSConfigV1Alpha1(ca=base64.b64encode(self.ca.read_bytes()).decode())
        except OSError as error:
            raise ConfigurationError(f"TLS CA {self.ca} cannot be read: {error.strerror or error}") from error


def create_subject(
    tx: Transaction, kind: Kind, namespace: str, name: str, labels: dict[str, str], lifetime: float
) -> str:
    """A new client or exporter. Returns its token. Raises `Refused`."""
    if not _NAME.fullmatch(name):
        raise invalid(f'{kind} name "{name}" must be at most 63 lower case letters, digits, "-" or "."')
    try:
        for key, value in labels.items():
            check_label(key, value)
    except SelectorError as error:
        raise invalid(str(error)) from error
    if _find(tx, kind, namespace, name) is not None:
        raise Refused(grpc.StatusCode.ALREADY_EXISTS, f"{kind} {namespace}/{name} exists already")
    model: type[Client] | type[Exporter] = Client if kind == "client" else Exporter
    subject: Client | Exporter = model(namespace=namespace, name=name, labels=labels, created_at=tx.now)
    tx.session.add(subject)
    tx.session.flush()
    tx.audit(_ACTOR, f"{kind} created", namespace=namespace, name=name, labels=labels)
    return issue_token(tx, subject, lifetime)[0]


def _find(tx: Transaction, kind: Kind, namespace: str, name: str) -> Client | Exporter | None:
    if kind == "client":
        return tx.session.scalars(select(Client).where(Client.namespace == namespace, Client.name == name)).first()
    return tx.session.scalars(select(Exporter).where(Exporter.namespace == namespace, Exporter.name == name)).first()


def revoke(tx: Transaction, kind: Kind, namespace: str, name: str, lifetime: float) -> str:
    """Revoke every token of a client or exporter. Returns a new one."""
    subject = _find(tx, kind, namespace, name)
    if subject is None:
        raise not_found(f"{kind} {namespace}/{name} does not exist")
    revoke_tokens(tx, subject.id)
    return issue_token(tx, subject, lifetime)[0]


def set_policy(
    tx: Transaction,
    namespace: str,
    name: str,
    exporters: str,
    clients: str,
    priority: int,
    maximum_duration: float | None,
) -> None:
    """Make or replace an access policy with one rule. Raises `Refused`."""
    try:
        texts = [str(parse_selector(text).canonical()) for text in (exporters, clients)]
    except SelectorError as error:
        raise invalid(str(error)) from error
    policy = tx.session.scalars(select(Policy).where(Policy.namespace == namespace, Policy.name == name)).first()
    if policy is None:
        policy = Policy(namespace=namespace, name=name)
        tx.session.add(policy)
    policy.exporters = texts[0]
    policy.rules = [{"clients": texts[1], "priority": priority, "maximum_duration": maximum_duration}]
    tx.audit(_ACTOR, "policy set", name=name, exporters=texts[0], rules=policy.rules)


def read_audit(tx: Transaction, lease: str | None, limit: int) -> list[AuditEntry]:
    """The newest entries, the oldest of them first; of one lease when it is named."""
    query = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
    if lease is not None:
        query = query.where(AuditEntry.lease == lease)
    return list(tx.session.scalars(query))[::-1]


def client_file(credentials: Credentials, allow: list[str], unsafe: bool) -> str:
    """A client configuration, which the original's `jmp` reads as well."""
    return ClientConfigV1Alpha1(
        metadata=ObjectMeta(namespace=credentials.namespace, name=credentials.name),
        endpoint=credentials.endpoint,
        token=credentials.token,
        tls=credentials.tls(),
        drivers=ClientConfigV1Alpha1Drivers(allow=allow, unsafe=unsafe),
    ).to_yaml()


def exporter_file(credentials: Credentials) -> str:
    """An exporter configuration without drivers: the block `export` is to be added."""
    return ExporterConfigV1Alpha1(
        metadata=ObjectMeta(namespace=credentials.namespace, name=credentials.name),
        endpoint=credentials.endpoint,
        token=credentials.token,
        tls=credentials.tls(),
    ).to_yaml()
