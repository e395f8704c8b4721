# SPDX-License-Identifier: Apache-2.0
"""Between rows and the messages of the protocol."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Select

from jumpstarter.common.enums import ExporterStatus
from jumpstarter.common.selectors import Operator, Requirement, Selector, SelectorError, parse_selector, requirement
from jumpstarter_controller.errors import invalid, permission_denied
from jumpstarter_controller.identity import Caller
from jumpstarter_controller.leases.requests import LeaseRequest
from jumpstarter_controller.selectors import check_size, read_selector
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Exporter, Lease
from jumpstarter_protocol.jumpstarter.client.v1 import client_pb2
from jumpstarter_protocol.jumpstarter.v1 import kubernetes_pb2

__all__ = [
    "number_place",
    "page_token",
    "place_token",
    "read_page",
    "selector_of",
    "lease_request",
    "LabelViews",
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

#: Entries of a page when the client does not say, and at most.
_PAGE, _MAX_PAGE = 100, 1000

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


@dataclass(frozen=True)
class LabelViews:
    """Labels that clients are not shown unless they ask: hidden ones, and deprecated ones with what to use instead."""

    hidden: frozenset[str] = frozenset()
    deprecated: Mapping[str, str] = field(default_factory=dict)

    def shown(self, labels: Mapping[str, str]) -> dict[str, str]:
        """Without those."""
        return {k: v for k, v in labels.items() if k not in self.hidden and k not in self.deprecated}

    def warnings(self, keys: Iterable[str]) -> dict[str, str]:
        """The deprecated ones among ``keys``, and what is said about them."""
        return {key: self.deprecated[key] for key in keys if key in self.deprecated}


_EVERYTHING = LabelViews()


def lease_message(lease: Lease, now: float, labels: LabelViews = _EVERYTHING) -> client_pb2.Lease:
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
    if labels.deprecated and lease.selector:
        used = (requirement.key for requirement in parse_selector(lease.selector).requirements)
        message.deprecated_labels.update(labels.warnings(used))
    if lease.exporter is not None:
        message.exporter = f"{home}/exporters/{lease.exporter.name}"
    return message


def exporter_message(
    exporter: Exporter, labels: LabelViews = _EVERYTHING, show_hidden: bool = False
) -> client_pb2.Exporter:
    """An exporter as ClientService tells it."""
    all_labels = exporter.all_labels
    message = client_pb2.Exporter(
        name=f"namespaces/{exporter.namespace}/exporters/{exporter.name}",
        labels=all_labels if show_hidden else labels.shown(all_labels),
        deprecated_labels=labels.warnings(all_labels),
        online=exporter.online,
        status_message=exporter.status_message,
        enabled=exporter.enabled,
    )
    message.status = ExporterStatus(exporter.status).to_proto()
    return message


def lease_request(request: Any, **more: Any) -> LeaseRequest:
    """What a CreateLeaseRequest of either service asks for; ``more`` are fields that the older one does not have."""
    lease = request.lease
    return LeaseRequest(
        name=request.lease_id,
        selector=lease.selector,
        exporter_name=lease.exporter_name or None,
        duration=time_of(lease, "duration"),
        begin=time_of(lease, "begin_time"),
        end=time_of(lease, "end_time"),
        tags=dict(lease.tags),
        context=dict(lease.context),
        allow_disabled=lease.allow_disabled,
        **more,
    )


def selector_of(field: str, text: str) -> Selector:
    """A selector in field ``field`` of a request. Raises INVALID_ARGUMENT."""
    return read_selector(text, f"invalid {field}")


def read_page(tx: Transaction, query: Select[Any], matches: Callable[[Any], bool], size: int) -> tuple[list[Any], bool]:
    """The first ``size`` rows that match, and whether there are more."""
    size = min(size if size > 0 else _PAGE, _MAX_PAGE)
    found: list[Any] = []
    for row in tx.session.scalars(query.execution_options(yield_per=size + 1)):
        if matches(row):
            if len(found) == size:
                return found, True
            found.append(row)
    return found, False


def place_token(place: str) -> str:
    """The page token for what comes after ``place``."""
    return base64.urlsafe_b64encode(place.encode()).decode()


def page_token(text: str) -> str:
    """The place that a page token stands for; "" for the beginning. Raises INVALID_ARGUMENT."""
    try:
        return base64.b64decode(text.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise invalid("page_token is not one of ours") from None


def number_place(token: str) -> int | None:
    """The number that a page token stands for; None for the beginning. Raises INVALID_ARGUMENT."""
    place = page_token(token)
    if place and not (place.isascii() and place.isdigit() and len(place) < 19):
        raise invalid("page_token is not one of ours")
    return int(place) if place else None


def selector_from_message(message: kubernetes_pb2.LabelSelector) -> str:
    """A Kubernetes LabelSelector as text. Raises INVALID_ARGUMENT."""
    found: list[Requirement] = []
    try:
        found += [requirement(key, Operator.EQUALS, [value]) for key, value in message.match_labels.items()]
        for item in message.match_expressions:
            if item.operator not in _OPERATORS:
                raise invalid(f"selector: operator {item.operator} is none of {', '.join(_OPERATORS)}")
            found.append(requirement(item.key, _OPERATORS[item.operator], item.values))
        text = str(Selector(tuple(found)).canonical())
        check_size(text)
        return text
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
