# SPDX-License-Identifier: Apache-2.0
"""Durations and times are read the way people write them, and nothing else is taken for one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from jumpstarter_cli.times import local, parse_duration, parse_time, span


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("0.5", 0.5),
        ("30m", 1800),
        ("1d3h40m", 99600),
        ("1w 3 d", 864000),
        ("2 hours 5 minutes", 7500),
        ("3 days, 4:13:02", 274382),
        ("1.5h", 5400),
        ("01:30:00", 5400),
        ("PT1H30M", 5400),
        ("p1dt12h", 129600),
        (" 5 Min ", 300),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "m", "0", "0s", "-5", "1e9", "3mo", "1h1h", "4:13", "1:99:00", "P", "PT", "soon", "99999999999", "1m2h"],
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|too long"):
        parse_duration(text)


def test_times_without_a_zone_are_local() -> None:
    assert parse_time("2026-01-31T08:00") == datetime(2026, 1, 31, 8).astimezone()
    assert parse_time("2026-01-31T08:00:00+02:00") == datetime(2026, 1, 31, 6, tzinfo=UTC)
    assert parse_time("2026-01-31T08:00Z").utcoffset() is not None


def test_times_from_now_on() -> None:
    now = datetime(2026, 1, 31, 8, tzinfo=UTC)
    assert parse_time("+1h30m", now) == now + timedelta(minutes=90)


@pytest.mark.parametrize("text", ["", "tomorrow", "+", "+-1h", "2026-13-01", "8:00"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match=r"no time|no duration"):
        parse_time(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (-4, "0s"), (59.6, "1m"), (61, "1m 1s"), (3600, "1h"), (3661, "1h 1m"), (90061, "1d 1h")],
)
def test_spans_have_two_units(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_no_time_is_an_empty_cell() -> None:
    assert local(None) == ""
