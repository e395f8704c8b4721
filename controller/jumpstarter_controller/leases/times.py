# SPDX-License-Identifier: Apache-2.0
"""When a lease begins and ends: duration, begin and end, of which some are given.

duration alone runs from acquisition; begin + duration and begin + end are scheduled; end + duration begins in time for
the end. All in seconds (since 1970 UTC).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from jumpstarter_controller.errors import invalid

__all__ = ["Times", "change_times", "expiry", "resolve_times"]

#: Clocks and JSON numbers are not exact; times that differ by less are the same.
_SAME = 0.001
#: A century: a number that a clock can still be added to.
_LONGEST = 100 * 366 * 86400.0
#: The end of the year 9998: what comes later cannot be written as a time any more.
_LATEST = 253370764799.0


class Times(NamedTuple):
    """begin and end are None when they depend on the acquisition."""

    duration: float
    begin: float | None
    end: float | None


def resolve_times(duration: float | None, begin: float | None, end: float | None) -> Times:
    """What the given values say together. Raises INVALID_ARGUMENT when they say nothing or contradict themselves."""
    _check_time("begin_time", begin)
    _check_time("end_time", end)
    if duration is None and (begin is None or end is None):
        raise invalid("duration is required (must specify Duration, or both BeginTime and EndTime)")
    if begin is not None and end is not None:
        span = end - begin
        if duration is not None and abs(span - duration) > _SAME:
            raise invalid(
                f"duration conflicts with begin_time and end_time: {duration:g}s is not the {span:g}s between them"
            )
        duration = span
    assert duration is not None
    if duration <= 0:
        raise invalid(f"duration must be positive, got {duration:g}s")
    if duration > _LONGEST:
        raise invalid(f"duration must be at most {_LONGEST:g}s, got {duration:g}s")
    if begin is not None:
        end = begin + duration
    elif end is not None:
        begin = end - duration
    _check_time("begin_time", begin)
    _check_time("end_time", end)
    return Times(duration, begin, end)


def _check_time(field: str, value: float | None) -> None:
    if value is not None and not 0 <= value <= _LATEST:
        raise invalid(f"{field} must be a time from 1970 to 9998, got {value:g}s since 1970")


def change_times(
    old: Times,
    acquired: float | None,
    *,
    duration: float | None = None,
    begin: float | None = None,
    end: float | None = None,
    clear: Collection[str] = (),
) -> Times:
    """The times after an update that gives the named values; the others follow. acquired: when it was, if it was.

    A duration alone moves the end; an end alone changes the duration of a lease that has begun or is scheduled.
    clear: "begin" lets it begin as soon as it can; "end" lets it run for its duration.
    """
    if "begin" in clear and begin is None or "end" in clear and acquired is not None:
        old = Times(old.duration, None, None)
    started = begin if begin is not None else old.begin
    if end is None:
        if old.begin is None and begin is None:
            return resolve_times(duration if duration is not None else old.duration, None, None)
        return resolve_times(duration if duration is not None else old.duration, started, None)
    if started is None and acquired is not None:
        # It counts from its acquisition, and keeps doing so.
        span = resolve_times(duration, acquired, end).duration
        return Times(span, None, end)
    if started is None:
        return resolve_times(duration if duration is not None else old.duration, None, end)
    return resolve_times(duration, started, end)


def expiry(times: Times, acquired: float | None) -> float | None:
    """When the lease ends by itself; None while it waits for an exporter and has no end of its own."""
    if times.end is not None:
        return times.end
    return None if acquired is None else acquired + times.duration
