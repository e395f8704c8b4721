# SPDX-License-Identifier: Apache-2.0
"""Durations and times, as people write them on a command line and as they read them in a table."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

import click

__all__ = ["DURATION", "TIME", "local", "parse_duration", "parse_time", "span"]

#: Longer ones are a mistake (seconds taken for milliseconds, mostly).
_MAX_SECONDS = 100 * 365 * 86400.0

_NUMBER = r"(\d+(?:\.\d+)?)"
_UNITS = (
    ("weeks", r"w|wks?|weeks?", 604800),
    ("days", r"d|dys?|days?", 86400),
    ("hours", r"h|hrs?|hours?", 3600),
    ("minutes", r"m|mins?|minutes?", 60),
    ("seconds", r"s|secs?|seconds?", 1),
)
_WORDS = re.compile(r"[\s,]*".join(rf"(?:{_NUMBER}\s*(?:{names})(?![a-z]))?" for _, names, _ in _UNITS))
_ISO = re.compile(
    rf"p(?:{_NUMBER}w)?(?:{_NUMBER}d)?(?:t(?:{_NUMBER}h)?(?:{_NUMBER}m)?(?:{_NUMBER}s)?)?",
)
_CLOCK = re.compile(r"(?:(\d+)\s*(?:d|days?)[\s,]*)?(\d+):([0-5]?\d):([0-5]?\d(?:\.\d+)?)")
_SECONDS = re.compile(r"\d+(?:\.\d+)?")


def parse_duration(text: str) -> float:
    """Seconds of "90", "1d3h40m", "2 hours 5 minutes", "PT1H30M" or "1:30:00". Raises ValueError, one line."""
    word = text.strip().lower()
    seconds = _seconds(word)
    if seconds is None:
        raise ValueError(
            f'"{text}" is no duration: expected seconds, or something like 30m, 1d3h40m, PT1H30M, 01:30:00'
        )
    if seconds <= 0:
        raise ValueError(f'"{text}" is no duration: it must be longer than nothing')
    if seconds > _MAX_SECONDS:
        raise ValueError(f'"{text}" is too long: 100 years at most')
    return seconds


def _seconds(word: str) -> float | None:
    if _SECONDS.fullmatch(word):
        return float(word)
    if match := _CLOCK.fullmatch(word):
        days, hours, minutes, seconds = match.groups()
        return float(days or 0) * 86400 + float(hours) * 3600 + float(minutes) * 60 + float(seconds)
    for pattern in (_WORDS, _ISO):
        match = pattern.fullmatch(word)
        if match and any(match.groups()):
            return sum(float(n) * unit for n, (_, _, unit) in zip(match.groups(), _UNITS, strict=True) if n)
    return None


def parse_time(text: str, now: datetime | None = None) -> datetime:
    """A time of ISO 8601 ("2026-01-31T08:00", without a zone: local), or "+2h" from now. Raises ValueError."""
    word = text.strip()
    if word.startswith("+"):
        return (now or _now()) + timedelta(seconds=parse_duration(word[1:]))
    try:
        return datetime.fromisoformat(word).astimezone()
    except (ValueError, OverflowError, OSError):
        raise ValueError(
            f'"{text}" is no time: expected something like 2026-01-31T08:00 or 2026-01-31T08:00:00+01:00, or +2h'
        ) from None


if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:  # not generic in the older ones
    _ParamType = click.ParamType


@cache
def _now() -> datetime:
    """One "now" for all times of a command, so that +2h and +3h are an hour apart."""
    return datetime.now(UTC)


class _Parsed(_ParamType):
    """An option's value by one of the functions above."""

    def __init__(self, name: str, parse: Any) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value of the text."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


#: Seconds (float).
DURATION = _Parsed("duration", parse_duration)
#: datetime with a zone.
TIME = _Parsed("time", parse_time)


def span(seconds: float) -> str:
    """A duration for people: its two largest units, as in "1d 3h", "29m 58s", "0s"."""
    rest = max(0, round(seconds))
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
        elif parts:
            break
    return " ".join(parts[:2])


def local(time: datetime | None) -> str:
    """A time for people, in the local zone, to the second; "" for None."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S") if time else ""
