# SPDX-License-Identifier: GPL-3.0-or-later
"""Times between task starts, written as JSON when the run ends."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Stdout callback that prints nothing."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "bench_times"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.marks: list[tuple[str, float]] = []
        self.failures: list[str] = []

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        self.marks.append((task.get_name(), time.perf_counter()))

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self.failures.append(str(getattr(result, "result", None) or result._result)[:300])

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self.marks.append(("end", time.perf_counter()))
        spans = [(name, then - now) for (name, now), (_, then) in zip(self.marks, self.marks[1:], strict=False)]
        with open(os.environ["BENCH_TIMES"], "w") as file:
            json.dump({"spans": spans, "failures": self.failures}, file)
