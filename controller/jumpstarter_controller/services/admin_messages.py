# SPDX-License-Identifier: Apache-2.0
"""Between rows and the messages of jumpstarter.admin.v1."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from jumpstarter.common.enums import ExporterStatus
from jumpstarter.common.selectors import Selector, SelectorError, parse_selector
from jumpstarter_controller.administration.policies import Rule
from jumpstarter_controller.errors import invalid
from jumpstarter_controller.identity.callers import Kind
from jumpstarter_controller.services.messages import duration_message, page_token, time_message, time_of
from jumpstarter_controller.state.models import AuditEntry, Client, Exporter, Policy, Token
from jumpstarter_protocol.jumpstarter.admin.v1 import admin_pb2

__all__ = [
    "audit_message",
    "client_message",
    "exporter_message",
    "list_of",
    "masked",
    "parent_of",
    "policy_message",
    "resource",
    "rule_of",
    "subject_resource",
    "token_message",
]

_KINDS: dict[str, Kind] = {"clients": "client", "exporters": "exporter"}
#: Characters of a wrong value that a message repeats.
_SHOWN = 100


def parent_of(parent: str) -> str:
    """The namespace in ``namespaces/<namespace>``. Raises INVALID_ARGUMENT."""
    kind, _, namespace = parent.partition("/")
    if kind != "namespaces" or not namespace or "/" in namespace:
        raise invalid(f'parent must be "namespaces/<namespace>", got "{parent[:_SHOWN]}"')
    return namespace


def resource(name: str, *kinds: str) -> tuple[str, str]:
    """Namespace and name in ``namespaces/<namespace>/<one of kinds>/<name>``. Raises INVALID_ARGUMENT."""
    parts = name.split("/")
    if len(parts) != 4 or parts[0] != "namespaces" or parts[2] not in kinds or not parts[1] or not parts[3]:
        expected = " or ".join(f'"namespaces/<namespace>/{kind}/<name>"' for kind in kinds)
        raise invalid(f'name must be {expected}, got "{name[:_SHOWN]}"')
    return parts[1], parts[3]


def subject_resource(name: str) -> tuple[Kind, str, str]:
    """Kind, namespace and name of a client or exporter. Raises INVALID_ARGUMENT."""
    namespace, last = resource(name, *_KINDS)
    return _KINDS[name.split("/")[2]], namespace, last


def list_of(request: Any) -> tuple[str, Selector, str]:
    """Namespace, filter and place of a ListRequest. Raises INVALID_ARGUMENT."""
    try:
        wanted = parse_selector(request.filter)
    except SelectorError as error:
        raise invalid(f"invalid filter: {error}") from error
    return parent_of(request.parent), wanted, page_token(request.page_token)


def masked(message: Any, mask: Any, fields: tuple[str, ...]) -> dict[str, Any]:
    """The values of ``message`` that the mask names, of all ``fields`` when it is empty. Raises INVALID_ARGUMENT."""
    wrong = [path for path in mask.paths if path not in fields]
    if wrong:
        raise invalid(f'update_mask: "{wrong[0][:_SHOWN]}" cannot be changed, only {", ".join(fields)}')
    values = {field: getattr(message, field) for field in (mask.paths or fields)}
    return {field: dict(value) if field == "labels" else value for field, value in values.items()}


def client_message(client: Client) -> admin_pb2.Client:
    """A client."""
    return admin_pb2.Client(
        name=f"namespaces/{client.namespace}/clients/{client.name}",
        labels=client.labels,
        username=client.username or "",
        administrator=client.administrator,
        created=time_message(client.created_at),
    )


def exporter_message(exporter: Exporter, lease: str = "") -> admin_pb2.Exporter:
    """An exporter and the name of the lease that holds it."""
    return admin_pb2.Exporter(
        name=f"namespaces/{exporter.namespace}/exporters/{exporter.name}",
        labels=exporter.labels,
        reported_labels=exporter.reported_labels,
        enabled=exporter.enabled,
        username=exporter.username or "",
        created=time_message(exporter.created_at),
        online=exporter.online,
        status=ExporterStatus(exporter.status).to_proto(),
        status_message=exporter.status_message,
        last_seen=time_message(exporter.last_seen) if exporter.last_seen else None,
        lease=lease,
    )


def token_message(row: Token) -> admin_pb2.ListTokensResponse.Token:
    """What is known of a token."""
    return admin_pb2.ListTokensResponse.Token(
        id=row.jti,
        issued=time_message(row.issued_at),
        expiry=time_message(row.expires_at),
        revoked=time_message(row.revoked_at),
    )


def rule_of(message: Any) -> Rule:
    """A rule of a policy."""
    return Rule(
        clients=message.clients,
        priority=message.priority,
        maximum_duration=time_of(message, "maximum_duration"),
        spot=message.spot,
        description=message.description,
    )


def policy_message(policy: Policy) -> admin_pb2.AccessPolicy:
    """A policy."""
    return admin_pb2.AccessPolicy(
        name=f"namespaces/{policy.namespace}/policies/{policy.name}",
        exporters=policy.exporters,
        rules=[
            admin_pb2.AccessPolicy.Rule(
                clients=rule.get("clients", ""),
                priority=rule.get("priority", 0),
                maximum_duration=duration_message(rule.get("maximum_duration")),
                spot=rule.get("spot", False),
                description=rule.get("description", ""),
            )
            for rule in policy.rules
        ],
    )


def audit_message(entry: AuditEntry) -> admin_pb2.AuditEntry:
    """An entry of the audit log."""
    return admin_pb2.AuditEntry(
        at=time_message(entry.at),
        actor=entry.actor,
        action=entry.action,
        lease=entry.lease or "",
        exporter=entry.exporter or "",
        detail=ParseDict(entry.detail, Struct()),
        client=entry.client or "",
        namespace=entry.namespace or "",
    )
