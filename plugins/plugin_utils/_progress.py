# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows what the agent reports while it works. This plugin util is **PRIVATE** to the collection."""

from __future__ import annotations

import time
import typing as t

STEP_PERCENT = 10.0
STEP_SECONDS = 10.0


class ProgressPrinter:
    """Turns events into lines: every 10 % or 10 s for progress, each phase and note once, log lines only with ``-vv``.

    :param show: prints one line now.
    :param verbosity: Ansible's; from 2 on nothing is left out.
    """

    def __init__(
        self,
        host: str,
        mode: str,
        verbosity: int,
        show: t.Callable[[str], None],
        clock: t.Callable[[], float] = time.monotonic,
    ) -> None:
        self._host, self._mode, self._show, self._clock = host, mode, show, clock
        self._everything = mode == "verbose" or verbosity >= 2
        self._percent = 0.0
        self._shown_at = clock()

    def __call__(self, event: str, data: dict[str, t.Any]) -> None:
        text = str(data.get("text") or "").rstrip()
        if not text or self._mode == "off":
            return
        if event == "progress" and not self._everything and not self._due(data):
            return
        if event == "log" and not self._everything:
            return
        self._shown_at = self._clock()
        self._show(f"  {self._host} | {text}")

    def _due(self, data: dict[str, t.Any]) -> bool:
        done, total = data.get("done"), data.get("total")
        percent = data.get("percent")
        if percent is None and isinstance(done, (int, float)) and isinstance(total, (int, float)) and total:
            percent = 100.0 * done / total
        if percent is not None and percent >= self._percent + STEP_PERCENT:
            self._percent = percent - percent % STEP_PERCENT
            return True
        return self._clock() - self._shown_at >= STEP_SECONDS
