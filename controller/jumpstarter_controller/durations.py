# SPDX-License-Identifier: Apache-2.0
"""Durations in configuration files."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

__all__ = ["NotNegative", "Seconds", "seconds"]

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?")
_UNITS = (86400, 3600, 60, 1)


def seconds(value: object) -> object:
    """``1d2h3m4.5s`` in seconds; numbers are seconds already."""
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip())
    if match is None or not any(match.groups()):
        raise ValueError(f'expected a duration such as 90s, 10m or 30d, got "{value}"')
    return sum(float(part) * unit for part, unit in zip(match.groups(), _UNITS, strict=True) if part)


#: A century: what a clock can still be added to.
_LONGEST = 36600 * 86400.0

Seconds = Annotated[float, BeforeValidator(seconds), Field(gt=0, le=_LONGEST)]
NotNegative = Annotated[float, BeforeValidator(seconds), Field(ge=0, le=_LONGEST)]
