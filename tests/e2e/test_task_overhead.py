# SPDX-License-Identifier: GPL-3.0-or-later
"""A task with a driver call costs hardly more than a task without: nobody starts a process or a channel for each."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from typing import Any

from benches import MOCK, Bench
from playing import Played

TASKS = 25


def median_seconds(played: Played) -> float:
    assert played.rc == 0, played.output
    times = [task["t"] for task in played.tasks[3:]]  # the first ones start the agent and the exporter
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(times))


def test_a_driver_call_costs_less_than_two_empty_tasks(bench: Callable[..., Bench]) -> None:
    made = bench({"dut": {"jumpstarter_exporter_config": "dut.yaml"}})
    made.config("dut", MOCK)
    empty: list[dict[str, Any]] = [{"name": f"T{n}", "ansible.builtin.debug": {"msg": "x"}} for n in range(TASKS)]
    call: list[dict[str, Any]] = [{"name": f"T{n}", "jumpstarter.lab.power": {"state": "status"}} for n in range(TASKS)]
    # Alternating, best of three: other work on the machine must not decide.
    pairs = [(median_seconds(made.run(empty)), median_seconds(made.run(call))) for _round in range(3)]
    assert min(call for _empty, call in pairs) < 2 * min(empty for empty, _call in pairs), pairs
    made.wait_gone()
