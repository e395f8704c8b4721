# SPDX-License-Identifier: Apache-2.0
"""Access policies: set, list, delete. Transactions for `Lab.change`; every one names its actor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from jumpstarter_controller.administration.names import check_name, check_namespace, selector_text
from jumpstarter_controller.administration.subjects import LOCAL_ACTOR
from jumpstarter_controller.errors import invalid, not_found
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Policy

__all__ = ["Rule", "delete_policy", "find_policy", "list_policies", "put_policy", "set_policy"]

_MAX_RULES = 100
_MAX_DESCRIPTION = 256
_PRIORITIES = range(-(2**31), 2**31)


@dataclass(frozen=True)
class Rule:
    """One rule. clients: selector, "" for all. maximum_duration: seconds, None without a limit. spot: the lease may be
    taken away for others."""

    clients: str = ""
    priority: int = 0
    maximum_duration: float | None = None
    spot: bool = False
    description: str = ""


def put_policy(tx: Transaction, actor: str, namespace: str, name: str, exporters: str, rules: Sequence[Rule]) -> Policy:
    """Make or replace an access policy. Raises `Refused`."""
    check_name("policy", name)
    check_namespace(namespace)
    if not 1 <= len(rules) <= _MAX_RULES:
        raise invalid(f"policy {name}: it needs 1 to {_MAX_RULES} rules, got {len(rules)}")
    texts = [_rule(f"policy {name}: rule {number}", rule) for number, rule in enumerate(rules, 1)]
    selector = selector_text(f"policy {name}: exporters", exporters)
    policy = _find(tx, namespace, name)
    if policy is None:
        policy = Policy(namespace=namespace, name=name)
        tx.session.add(policy)
    policy.exporters, policy.rules = selector, texts
    tx.session.flush()
    tx.audit(actor, "policy set", namespace=namespace, policy=name, exporters=selector, rules=texts)
    return policy


def _rule(where: str, rule: Rule) -> dict[str, Any]:
    if rule.maximum_duration is not None and rule.maximum_duration <= 0:
        raise invalid(f"{where}: maximum duration must be positive, got {rule.maximum_duration:g}s")
    if rule.priority not in _PRIORITIES:
        raise invalid(f"{where}: priority {rule.priority} does not fit 32 bits")
    if len(rule.description) > _MAX_DESCRIPTION:
        raise invalid(f"{where}: description has {len(rule.description)} characters, {_MAX_DESCRIPTION} are allowed")
    return {
        "clients": selector_text(f"{where}: clients", rule.clients),
        "priority": rule.priority,
        "maximum_duration": rule.maximum_duration,
        "spot": rule.spot,
        "description": rule.description,
    }


def set_policy(
    tx: Transaction,
    namespace: str,
    name: str,
    exporters: str,
    clients: str,
    priority: int,
    maximum_duration: float | None,
) -> None:
    """Make or replace an access policy with one rule, on the controller's host. Raises `Refused`."""
    put_policy(tx, LOCAL_ACTOR, namespace, name, exporters, [Rule(clients, priority, maximum_duration)])


def _find(tx: Transaction, namespace: str, name: str) -> Policy | None:
    return tx.session.scalars(select(Policy).where(Policy.namespace == namespace, Policy.name == name)).first()


def find_policy(tx: Transaction, namespace: str, name: str) -> Policy:
    """A policy. Raises NOT_FOUND."""
    policy = _find(tx, namespace, name)
    if policy is None:
        raise not_found(f"policy {namespace}/{name} does not exist")
    return policy


def list_policies(tx: Transaction, namespace: str) -> list[Policy]:
    """The policies of a namespace, by name."""
    return list(tx.session.scalars(select(Policy).where(Policy.namespace == namespace).order_by(Policy.name)))


def delete_policy(tx: Transaction, actor: str, namespace: str, name: str) -> None:
    """Delete a policy. With the last one every client may lease every exporter again. Raises NOT_FOUND."""
    policy = find_policy(tx, namespace, name)
    tx.session.delete(policy)
    tx.audit(actor, "policy deleted", namespace=namespace, policy=name, exporters=policy.exporters, rules=policy.rules)
