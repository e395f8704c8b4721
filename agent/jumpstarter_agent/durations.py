# SPDX-License-Identifier: Apache-2.0
"""Durations as people write them: 90, "90s", "2m", "1h30m", "500ms"."""

from __future__ import annotations

import math
import re

__all__ = ["format_duration", "parse_duration"]

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd])")


def parse_duration(value: object) -> float:
    """Seconds. A bare number is seconds; ValueError for anything that is not a finite duration >= 0."""
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a duration")
    if isinstance(value, (int, float)):
        seconds = float(value)
    elif isinstance(value, str):
        seconds = _parse_text(value.strip())
    else:
        raise ValueError(f"{value!r} is not a duration")
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{value!r} is not a finite duration >= 0")
    return seconds


def format_duration(seconds: float) -> str:
    """Shortest exact writing of whole seconds: 5400 -> "1h30m"."""
    rest = round(seconds)
    parts = []
    for unit, size in (("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def _parse_text(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    if not text or _PART.sub("", text):
        raise ValueError(f"{text!r} is not a duration; write seconds or something like 90s, 2m, 1h30m")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
