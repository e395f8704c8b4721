# SPDX-License-Identifier: Apache-2.0
"""Between rows and the messages of the protocol."""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from jumpstarter.common.enums import ExporterStatus
from jumpstarter.common.selectors import Operator, Requirement, Selector, SelectorError, parse_selector, requirement
from jumpstarter_controller.errors import invalid, permission_denied
from jumpstarter_controller.identity import Caller
from jumpstarter_controller.state.models import Exporter, Lease
from jumpstarter_protocol.jumpstarter.client.v1 import client_pb2
from jumpstarter_protocol.jumpstarter.v1 import kubernetes_pb2

__all__ = [
    "check_parent",
    "conditions_message",
    "duration_message",
    "exporter_message",
    "lease_message",
    "name_in",
    "seconds_of",
    "selector_from_message",
    "selector_message",
    "time_message",
    "time_of",
]

_OPERATORS = {
    "In": Operator.IN,
    "NotIn": Operator.NOT_IN,
    "Exists": Operator.EXISTS,
    "DoesNotExist": Operator.DOES_NOT_EXIST,
}
_WORDS = {operator: word for word, operator in _OPERATORS.items()}


def check_parent(caller: Caller, parent: str) -> None:
    """Raise unless ``parent`` is ``namespaces/`` and the caller's."""
    kind, _, namespace = parent.partition("/")
    if kind != "namespaces" or not namespace or "/" in namespace:
        raise invalid(f'parent must be "namespaces/<namespace>", got "{parent}"')
    if namespace != caller.namespace:
        raise permission_denied(f"namespace mismatch: permission denied for {caller} in namespace {namespace}")


def name_in(caller: Caller, kind: str, name: str) -> str:
    """The last part of ``namespaces/<the caller's>/<kind>/<name>``."""
    parts = name.split("/")
    if len(parts) != 4 or parts[0] != "namespaces" or parts[2] != kind or not parts[3]:
        raise invalid(f'name must be "namespaces/<namespace>/{kind}/<name>", got "{name}"')
    check_parent(caller, f"namespaces/{parts[1]}")
    return parts[3]


def time_message(seconds: float | None) -> Timestamp | None:
    """A time."""
    if seconds is None:
        return None
    message = Timestamp()
    message.FromNanoseconds(round(seconds * 1e6) * 1000)
    return message


def duration_message(seconds: float | None) -> Duration | None:
    """A span of time."""
    if seconds is None:
        return None
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e6) * 1000)
    return message


def time_of(message: Any, name: str) -> float | None:
    """Field ``name``, a time or span, in seconds; None when it is not set."""
    return seconds_of(getattr(message, name)) if message.HasField(name) else None


def seconds_of(message: Any) -> float:
    """A Timestamp or Duration in seconds."""
    return float(message.seconds) + float(message.nanos) / 1e9


def conditions_message(conditions: list[dict[str, Any]]) -> list[kubernetes_pb2.Condition]:
    """Conditions of a lease."""
    found = []
    for condition in conditions:
        whole, part = divmod(round(condition["at"] * 1e6), 1_000_000)
        found.append(
            kubernetes_pb2.Condition(
                type=condition["type"],
                status=condition["status"],
                reason=condition["reason"],
                message=condition["message"],
                lastTransitionTime=kubernetes_pb2.Time(seconds=whole, nanos=part * 1000),
            )
        )
    return found


def lease_message(lease: Lease, now: float) -> client_pb2.Lease:
    """A lease as ClientService tells it."""
    home = f"namespaces/{lease.namespace}"
    message = client_pb2.Lease(
        name=f"{home}/leases/{lease.name}",
        selector=lease.selector,
        duration=duration_message(lease.duration),
        begin_time=time_message(lease.begin_time),
        end_time=time_message(lease.end_time),
        effective_begin_time=time_message(lease.effective_begin),
        effective_end_time=time_message(lease.effective_end),
        client=f"{home}/clients/{lease.client.name}",
        conditions=conditions_message(lease.conditions),
        exporter_name=lease.exporter_name,
        tags=lease.tags,
        allow_disabled=lease.allow_disabled,
        context=lease.context,
    )
    if lease.effective_begin is not None:
        end = lease.effective_end if lease.effective_end is not None else now
        message.effective_duration.CopyFrom(duration_message(max(0.0, end - lease.effective_begin)) or Duration())
    if lease.exporter is not None:
        message.exporter = f"{home}/exporters/{lease.exporter.name}"
    return message


def exporter_message(exporter: Exporter) -> client_pb2.Exporter:
    """An exporter as ClientService tells it."""
    message = client_pb2.Exporter(
        name=f"namespaces/{exporter.namespace}/exporters/{exporter.name}",
        labels=exporter.all_labels,
        online=exporter.online,
        status_message=exporter.status_message,
        enabled=exporter.enabled,
    )
    message.status = ExporterStatus(exporter.status).to_proto()
    return message


def selector_from_message(message: kubernetes_pb2.LabelSelector) -> str:
    """A Kubernetes LabelSelector as text. Raises INVALID_ARGUMENT."""
    found: list[Requirement] = []
    try:
        found += [requirement(key, Operator.EQUALS, [value]) for key, value in message.match_labels.items()]
        for item in message.match_expressions:
            if item.operator not in _OPERATORS:
                raise invalid(f"selector: operator {item.operator} is none of {', '.join(_OPERATORS)}")
            found.append(requirement(item.key, _OPERATORS[item.operator], item.values))
        return str(Selector(tuple(found)).canonical())
    except SelectorError as error:
        raise invalid(str(error)) from error


def selector_message(text: str) -> kubernetes_pb2.LabelSelector:
    """A selector, in canonical form, as a Kubernetes LabelSelector."""
    selector = parse_selector(text).canonical()
    return kubernetes_pb2.LabelSelector(
        match_labels=selector.match_labels,
        match_expressions=[
            kubernetes_pb2.LabelSelectorRequirement(key=r.key, operator=_WORDS[r.operator], values=r.values)
            for r in selector.requirements
            if r.operator is not Operator.EQUALS
        ],
    )
