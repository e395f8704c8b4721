# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Durations as people write them. This plugin util is **PRIVATE** to the collection."""

from __future__ import annotations

import re

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = re.compile(r"\d+(\.\d+)?")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def seconds(value: object, option: str) -> float:
    """Seconds in *value*: a number, or numbers with units such as ``90s``, ``30m`` or ``1h30m``.

    :raises ValueError: it is no duration; the message names *option*.
    """
    text = str(value).strip().lower()
    if _NUMBER.fullmatch(text):
        return float(text)
    if text and _PART.sub("", text) == "":
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    raise ValueError(f'{option} is "{value}": give seconds, or numbers with units as in 90s, 30m, 1h30m')
