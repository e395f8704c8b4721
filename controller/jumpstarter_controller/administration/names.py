# SPDX-License-Identifier: Apache-2.0
"""What names, labels and user names may be."""

from __future__ import annotations

import re
from collections.abc import Mapping

from jumpstarter.common.selectors import SelectorError, check_label
from jumpstarter_controller.errors import invalid
from jumpstarter_controller.selectors import read_selector

__all__ = ["check_labels", "check_name", "check_namespace", "check_username", "selector_text"]

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_MAX_LABELS = 64
_MAX_USERNAME = 256
#: Characters of a wrong value that a message repeats.
_SHOWN = 80


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def check_name(kind: str, name: str) -> None:
    """Raise INVALID_ARGUMENT for a name that a client, exporter or policy (``kind``) cannot have."""
    if not _NAME.fullmatch(name):
        raise invalid(
            f'{kind} name "{_shown(name)}" must be at most 63 lower case letters, digits, "-" or ".", and begin and '
            "end with a letter or digit"
        )


def check_namespace(namespace: str) -> None:
    """Raise INVALID_ARGUMENT for a namespace that there cannot be."""
    if not _NAMESPACE.fullmatch(namespace):
        raise invalid(
            f'namespace "{_shown(namespace)}" must be at most 63 lower case letters, digits or "-", and begin and end '
            "with a letter or digit"
        )


def check_labels(labels: Mapping[str, str]) -> None:
    """Raise INVALID_ARGUMENT for labels that Kubernetes would not take, or too many of them."""
    if len(labels) > _MAX_LABELS:
        raise invalid(f"there can be at most {_MAX_LABELS} labels, got {len(labels)}")
    try:
        for key, value in labels.items():
            check_label(key, value)
    except SelectorError as error:
        raise invalid(str(error)) from error


def check_username(username: str) -> None:
    """Raise INVALID_ARGUMENT for a name that no issuer would give."""
    if len(username) > _MAX_USERNAME or not username.isprintable():
        raise invalid(f'username "{_shown(username)}" must be at most {_MAX_USERNAME} printable characters')


def selector_text(field: str, text: str) -> str:
    """A selector in canonical form. Raises INVALID_ARGUMENT naming the field."""
    try:
        return str(read_selector(text, field).canonical())
    except SelectorError as error:
        raise invalid(f"{field}: {error}") from error
