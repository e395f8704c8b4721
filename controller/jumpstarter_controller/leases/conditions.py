# SPDX-License-Identifier: Apache-2.0
"""Conditions of a lease, as existing clients read them: Ready first, then Unsatisfiable, Invalid and Pending.

The newest is the last. A lease that has an exporter or has ended is not pending any more.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "INVALID",
    "PENDING",
    "READY",
    "UNSATISFIABLE",
    "has_reason",
    "has_status",
    "newest_message",
    "with_condition",
]

READY = "Ready"
PENDING = "Pending"
UNSATISFIABLE = "Unsatisfiable"
INVALID = "Invalid"


def with_condition(
    conditions: list[dict[str, Any]], kind: str, status: bool, reason: str, message: str, now: float
) -> list[dict[str, Any]]:
    """A new list in which the condition ``kind`` is as given. Its transition time changes with its status only."""
    if kind != PENDING and has_status(conditions, PENDING, True):
        conditions = _with(conditions, PENDING, False, reason, "The lease does not wait any more", now)
    return _with(conditions, kind, status, reason, message, now)


def _with(
    conditions: list[dict[str, Any]], kind: str, status: bool, reason: str, message: str, now: float
) -> list[dict[str, Any]]:
    word = "True" if status else "False"
    old = next((c for c in conditions if c["type"] == kind), None)
    new = {
        "type": kind,
        "status": word,
        "reason": reason,
        "message": message,
        "at": old["at"] if old is not None and old["status"] == word else now,
    }
    return [c for c in conditions if c is not old] + [new] if old != new else conditions


def has_status(conditions: list[dict[str, Any]], kind: str, status: bool) -> bool:
    """Whether the condition ``kind`` is there with this status."""
    return any(c["type"] == kind and c["status"] == ("True" if status else "False") for c in conditions)


def has_reason(conditions: list[dict[str, Any]], kind: str, reason: str) -> bool:
    """Whether the condition ``kind`` is there with this reason."""
    return any(c["type"] == kind and c["reason"] == reason for c in conditions)


def newest_message(conditions: list[dict[str, Any]]) -> str:
    """The line of the newest condition."""
    return str(conditions[-1]["message"]) if conditions else ""
