# SPDX-License-Identifier: Apache-2.0
"""Duration, begin and end: what is given, what follows."""

from __future__ import annotations

from typing import Any

import pytest

from jumpstarter_controller.errors import Refused
from jumpstarter_controller.leases.times import Times, change_times, expiry, resolve_times


@pytest.mark.parametrize(
    ("given", "times"),
    [
        ((60.0, None, None), Times(60, None, None)),
        ((60.0, 100.0, None), Times(60, 100, 160)),
        ((None, 100.0, 160.0), Times(60, 100, 160)),
        ((60.0, None, 160.0), Times(60, 100, 160)),
        ((60.0, 100.0, 160.0), Times(60, 100, 160)),
    ],
)
def test_two_of_three_say_the_third(given: tuple[Any, Any, Any], times: Times) -> None:
    assert resolve_times(*given) == times


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ((None, None, None), "duration is required"),
        ((None, 100.0, None), "duration is required"),
        ((None, None, 100.0), "duration is required"),
        ((10.0, 100.0, 160.0), "duration conflicts with begin_time and end_time"),
        ((None, 160.0, 100.0), "duration must be positive, got -60s"),
        ((0.0, None, None), "duration must be positive, got 0s"),
        ((1e12, None, None), "duration must be at most"),
        ((60.0, None, float(-(2**63))), "end_time must be a time from 1970 to 9998"),
        ((60.0, float(2**63), None), "begin_time must be a time from 1970 to 9998"),
        ((3e9, 253370764798.0, None), "end_time must be a time from 1970 to 9998"),
        ((60.0, None, 10.0), "begin_time must be a time from 1970 to 9998"),
    ],
)
def test_contradictions(given: tuple[Any, Any, Any], why: str) -> None:
    with pytest.raises(Refused, match=why):
        resolve_times(*given)


@pytest.mark.parametrize(
    ("old", "acquired", "change", "new"),
    [
        (Times(60, None, None), 5.0, {"duration": 90.0}, Times(90, None, None)),
        (Times(60, None, None), 5.0, {"end": 105.0}, Times(100, None, 105)),
        (Times(60, None, None), None, {"end": 105.0}, Times(60, 45, 105)),
        (Times(60, None, None), None, {"begin": 10.0}, Times(60, 10, 70)),
        (Times(60, 10, 70), None, {"begin": 20.0}, Times(60, 20, 80)),
        (Times(60, 10, 70), 12.0, {"duration": 90.0}, Times(90, 10, 100)),
        (Times(60, 10, 70), 12.0, {"end": 100.0}, Times(90, 10, 100)),
        (Times(60, 10, 70), None, {"begin": 20.0, "end": 40.0}, Times(20, 20, 40)),
    ],
)
def test_what_an_update_changes(old: Times, acquired: float | None, change: dict[str, float], new: Times) -> None:
    assert change_times(old, acquired, **change) == new


def test_an_end_before_the_begin_is_refused() -> None:
    with pytest.raises(Refused, match="must be positive"):
        change_times(Times(60, None, None), 100.0, end=90.0)


def test_expiry_counts_from_the_acquisition_unless_an_end_is_set() -> None:
    assert expiry(Times(60, None, None), None) is None
    assert expiry(Times(60, None, None), 5.0) == 65
    assert expiry(Times(60, 0, 60), 5.0) == 60
