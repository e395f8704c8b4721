# SPDX-License-Identifier: Apache-2.0
"""Which frames a caller waits for. Used by the exporter, and by plays that reach a Jumpstarter 0.9 exporter."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from jumpstarter_driver_can.notation import DataPattern, format_frame, parse_filter

__all__ = ["Expectations"]

_KEYS = {"id", "data", "count"}
#: Other frames that an error text shows.
_SHOWN = 5


class _Expected:
    def __init__(self, wish: Mapping[str, Any]) -> None:
        unknown = sorted(set(wish) - _KEYS)
        if unknown or not isinstance(wish.get("id"), str):
            raise ValueError(f"{dict(wish)!r} is no expectation: it has id (text), data and count")
        self.filter = parse_filter(wish["id"])
        data = wish.get("data")
        if data is not None and not isinstance(data, str):
            raise ValueError(f"data is {data!r}, not text (in YAML put the digits in quotes)")
        self.pattern = None if data is None else DataPattern(data)
        count = wish.get("count", 1)
        if isinstance(count, bool) or not isinstance(count, (int, float)) or count < 1 or count != int(count):
            raise ValueError(f"count is {count!r}, not a positive number")
        self.left = int(count)
        self.text = wish["id"] + (f"#{data}" if data is not None else "") + (f" x{count}" if count != 1 else "")

    def matches(self, frame: Mapping[str, Any]) -> bool:
        if bool(frame["is_extended_id"]) != self.filter["extended"] or frame["is_error_frame"]:
            return False
        if (int(frame["arbitration_id"]) ^ self.filter["can_id"]) & self.filter["can_mask"]:
            return False
        return self.pattern is None or self.pattern.matches(base64.b64decode(frame["data"] or ""))


class Expectations:
    """A list of wishes ``{id, data, count}``, each to be fulfilled by frames of its own, in any order.

    id: hex digits, with ``:mask`` if wanted; data: see `DataPattern`. frames: those that fulfilled a wish, as they
    came. Raises ValueError for a wish that is none.
    """

    def __init__(self, wishes: Sequence[Mapping[str, Any]]) -> None:
        self._open = [_Expected(wish) for wish in wishes]
        self.frames: list[dict[str, Any]] = []
        self.others = 0
        self._last: list[str] = []

    @property
    def done(self) -> bool:
        """Whether nothing is missing."""
        return not self._open

    def offer(self, frame: dict[str, Any]) -> None:
        """A frame came (as drivers send it)."""
        for wish in self._open:
            if wish.matches(frame):
                self.frames.append(frame)
                wish.left -= 1
                if not wish.left:
                    self._open.remove(wish)
                return
        self.others += 1
        self._last = [*self._last, format_frame(frame)][-_SHOWN:]

    def missing(self, seconds: float) -> str:
        """Why it failed, for an error text."""
        wanted = ", ".join(wish.text for wish in self._open)
        seen = f"{self.others} other frames came, the last {', '.join(self._last)}" if self.others else "no other came"
        return f"no frame {wanted} within {seconds:g} s; {seen}"
