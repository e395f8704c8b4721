# SPDX-License-Identifier: Apache-2.0
"""What the access policies of a namespace say about one client and one exporter."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from jumpstarter.common.selectors import Selector, parse_selector
from jumpstarter_controller.state.models import Policy

__all__ = ["AccessRules", "Grant"]


class Grant(NamedTuple):
    """By what right a client may have an exporter. spot: only until somebody needs it who may have more."""

    priority: int
    spot: bool

    @property
    def order(self) -> tuple[bool, int]:
        """Grants sort by it, the best first."""
        return (self.spot, -self.priority)


@dataclass(frozen=True)
class _Rule:
    exporters: Selector
    clients: Selector
    grant: Grant
    maximum_duration: float | None
    description: str


class AccessRules:
    """The policies of one namespace. Without any, every client may lease every exporter."""

    def __init__(self, policies: Iterable[Policy]) -> None:
        policies = list(policies)
        self._rules = [
            _Rule(
                parse_selector(policy.exporters),
                parse_selector(rule.get("clients", "")),
                Grant(rule.get("priority", 0), bool(rule.get("spot", False))),
                rule.get("maximum_duration"),
                rule.get("description") or policy.name,
            )
            for policy in policies
            for rule in policy.rules
        ]
        self._open = not policies
        self._limits = sorted({rule.maximum_duration for rule in self._rules if rule.maximum_duration is not None})

    @classmethod
    def of(cls, session: Session, namespace: str) -> AccessRules:
        """Read them."""
        return cls(session.scalars(select(Policy).where(Policy.namespace == namespace)))

    def length_class(self, duration: float) -> int:
        """A small number: durations with the same one are treated alike by every rule."""
        return bisect_left(self._limits, duration)

    def grant(self, exporter: Mapping[str, str], client: Mapping[str, str], duration: float) -> Grant | None:
        """The best that a rule grants these labels for this many seconds; None when no rule does."""
        if self._open:
            return Grant(0, False)
        return min(
            (
                rule.grant
                for rule in self._rules
                if (rule.maximum_duration is None or duration <= rule.maximum_duration)
                and rule.exporters.matches(exporter)
                and rule.clients.matches(client)
            ),
            key=lambda grant: grant.order,
            default=None,
        )

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
