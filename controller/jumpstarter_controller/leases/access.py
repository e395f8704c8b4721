# SPDX-License-Identifier: Apache-2.0
"""What the access policies of a namespace say about one client and one exporter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from jumpstarter.common.selectors import Selector, parse_selector
from jumpstarter_controller.state.models import Policy

__all__ = ["AccessRules"]


@dataclass(frozen=True)
class _Rule:
    exporters: Selector
    clients: Selector
    priority: int
    maximum_duration: float | None
    description: str


class AccessRules:
    """The policies of one namespace. Without any, every client may lease every exporter."""

    def __init__(self, policies: Iterable[Policy]) -> None:
        self._rules = [
            _Rule(
                parse_selector(policy.exporters),
                parse_selector(rule.get("clients", "")),
                rule.get("priority", 0),
                rule.get("maximum_duration"),
                rule.get("description") or policy.name,
            )
            for policy in policies
            for rule in policy.rules
        ]
        self._open = not self._rules

    @classmethod
    def of(cls, session: Session, namespace: str) -> AccessRules:
        """Read them."""
        return cls(session.scalars(select(Policy).where(Policy.namespace == namespace)))

    def priority(self, exporter: Mapping[str, str], client: Mapping[str, str], duration: float) -> int | None:
        """The best priority that a rule grants these labels for this many seconds; None when no rule does."""
        if self._open:
            return 0
        granted = [
            rule.priority
            for rule in self._rules
            if (rule.maximum_duration is None or duration <= rule.maximum_duration)
            and rule.exporters.matches(exporter)
            and rule.clients.matches(client)
        ]
        return max(granted, default=None)

    def why_not(self, exporters: Iterable[Mapping[str, str]], client: Mapping[str, str]) -> str:
        """For a message: the descriptions of the rules for these exporters that do not let this client in."""
        exporters = list(exporters)
        names = {
            f"{rule.description} (at most {rule.maximum_duration:g}s)"
            if rule.maximum_duration is not None and rule.clients.matches(client)
            else rule.description
            for rule in self._rules
            if any(rule.exporters.matches(labels) for labels in exporters)
        }
        return ", ".join(sorted(names))[:4096]
