# SPDX-License-Identifier: Apache-2.0
"""From many small progress reports to few lines: one every 10 % or 5 seconds."""

from __future__ import annotations

import time
from typing import Any

from .context import Context, amount

__all__ = ["ProgressMeter"]

STEP_PERCENT = 10.0
STEP_SECONDS = 5.0


class ProgressMeter:
    """A progress callback for `jumpstarter.client.imaging` (call it) and for console transfers (`update`).

    Every report is remembered, so that an error can tell how far the work got; only some become events.
    """

    def __init__(self, ctx: Context, what: str) -> None:
        self._ctx = ctx
        self._what = what
        self._started = time.monotonic()
        self._shown_at = self._started
        self._shown_percent = 0.0
        self._phase = ""

    def __call__(self, report: Any) -> None:
        """Take one report; called from the event loop, returns at once."""
        self._take(report.done, report.total, report.phase, report.rate, report.eta)

    def update(self, done: int, total: int | None) -> None:
        """The same for a callback that knows only bytes; rate and time left are worked out here."""
        seconds = time.monotonic() - self._started
        rate = done / seconds if seconds > 0.2 else 0.0
        self._take(done, total, "", rate, (total - done) / rate if total and rate else None)

    def _take(self, done: int, total: int | None, phase: str, rate: float, eta: float | None) -> None:
        now = time.monotonic()
        percent = 100.0 * done / total if total else None
        data = {
            "done": done,
            "total": total,
            "percent": round(percent, 1) if percent is not None else None,
            "rate": round(rate),
            "eta": round(eta, 1) if eta is not None else None,
            "phase": phase,
        }
        self._ctx.progress = data
        if self._is_due(now, percent, phase):
            self._shown_at = now
            self._phase = phase
            self._ctx.note("progress", self._text(data), **data)

    def _is_due(self, now: float, percent: float | None, phase: str) -> bool:
        if phase != self._phase:
            self._shown_percent = 0.0
            return True
        if percent is not None and percent >= self._shown_percent + STEP_PERCENT:
            self._shown_percent = percent - percent % STEP_PERCENT
            return True
        return now - self._shown_at >= STEP_SECONDS

    def _text(self, data: dict[str, Any]) -> str:
        label = f"{self._what}: {data['phase']}" if data["phase"] else self._what
        text = f"{label} {amount(data['done'])}"
        if data["total"]:
            text += f" of {amount(data['total'])} ({data['percent']:.0f} %)"
        if data["rate"]:
            text += f", {amount(data['rate'])}/s"
        if data["eta"] is not None and data["eta"] >= 1:
            text += f", {data['eta']:.0f} s left"
        return text
