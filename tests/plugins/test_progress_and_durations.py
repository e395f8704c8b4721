# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress is shown often enough to trust and seldom enough to read; durations mean what people write."""

from __future__ import annotations

import pytest

from ansible_collections.jumpstarter.lab.plugins.plugin_utils._duration import seconds
from ansible_collections.jumpstarter.lab.plugins.plugin_utils._progress import ProgressPrinter


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def printer(mode: str = "auto", verbosity: int = 0) -> tuple[ProgressPrinter, list[str], Clock]:
    lines: list[str] = []
    clock = Clock()
    return ProgressPrinter("board", mode, verbosity, lines.append, clock), lines, clock


def test_a_fast_flash_shows_one_line_every_ten_percent() -> None:
    show, lines, _clock = printer()
    for done in range(1001):
        show("progress", {"text": f"{done}", "done": done, "total": 1000})
    assert lines == [f"  board | {done}" for done in range(100, 1001, 100)]


def test_a_slow_flash_shows_a_line_every_ten_seconds() -> None:
    show, lines, clock = printer()
    for second in range(60):
        clock.now = float(second)
        show("progress", {"text": str(second), "done": 0, "total": 1000})
    assert lines == [f"  board | {second}" for second in range(10, 60, 10)]


def test_phases_and_notes_are_always_shown_and_log_lines_are_not() -> None:
    show, lines, _clock = printer()
    for kind in ("phase", "note", "log"):
        show(kind, {"text": kind})
    assert lines == ["  board | phase", "  board | note"]


@pytest.mark.parametrize(("mode", "verbosity"), [("verbose", 0), ("auto", 2)])
def test_verbose_leaves_nothing_out(mode: str, verbosity: int) -> None:
    show, lines, _clock = printer(mode, verbosity)
    for kind in ("progress", "log"):
        show(kind, {"text": kind})
    assert len(lines) == 2


def test_off_is_silent_even_when_ansible_is_verbose() -> None:
    show, lines, _clock = printer("off", 4)
    show("phase", {"text": "kernel"})
    assert lines == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90.0), (90, 90.0), ("1.5", 1.5), ("30m", 1800.0), ("1h30m", 5400.0), ("500ms", 0.5), ("2d", 172800.0)],
)
def test_duration(text: object, expected: float) -> None:
    assert seconds(text, "timeout") == expected


@pytest.mark.parametrize("text", ["", "soon", "30x", "m30", "-5", "1h soon"])
def test_duration_mistakes_name_the_option(text: str) -> None:
    with pytest.raises(ValueError, match="timeout is"):
        seconds(text, "timeout")
