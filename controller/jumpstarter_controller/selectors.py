# SPDX-License-Identifier: Apache-2.0
"""Selectors that somebody sends."""

from __future__ import annotations

from jumpstarter.common.selectors import Selector, SelectorError, parse_selector
from jumpstarter_controller.errors import invalid

__all__ = ["check_size", "read_selector"]

#: Characters. Selectors are matched with everything in a lab, again and again: nobody may make that expensive.
_LONGEST = 16384


def read_selector(text: str, field: str = "") -> Selector:
    """Parse the selector in ``field`` of a request. Raises INVALID_ARGUMENT."""
    try:
        check_size(text)
        return parse_selector(text)
    except SelectorError as error:
        raise invalid(f"{field}: {error}" if field else str(error)) from error


def check_size(text: str) -> None:
    """Raise SelectorError for a selector that is too long."""
    if len(text) > _LONGEST:
        raise SelectorError(f"a selector can have at most {_LONGEST} characters, got {len(text)}")
