# SPDX-License-Identifier: GPL-3.0-or-later
"""Many boards in one run: one agent, no hangs, and nobody is disturbed by a neighbour that fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from benches import MOCK, Bench

MakeBench = Callable[..., Bench]
TASKS: list[dict[str, Any]] = [
    {"name": "Hold", "jumpstarter.lab.lease": {}},
    {"name": "Switch on", "jumpstarter.lab.power": {"state": "on"}},
    {"name": "Still on", "jumpstarter.lab.power": {"state": "on"}},
    {"name": "Read", "jumpstarter.lab.call": {"driver": "power", "method": "read"}},
    {"name": "Switch off", "jumpstarter.lab.power": {"state": "off"}},
]


def ten_boards(bench: MakeBench) -> Bench:
    made = bench({f"dut{n}": {"jumpstarter_exporter_config": f"dut{n}.yaml"} for n in range(10)})
    for n in range(10):
        made.config(f"dut{n}", MOCK)
    return made


@pytest.mark.parametrize("strategy", ["linear", "free", "host_pinned"])
def test_ten_boards_with_ten_forks(bench: MakeBench, strategy: str) -> None:
    boards = ten_boards(bench)
    played = boards.run(TASKS, "--forks", "10", play={"strategy": f"ansible.builtin.{strategy}"})
    assert played.rc == 0, played.output
    for n in range(10):
        states = {task["task"]: task["hosts"][f"dut{n}"] for task in played.tasks}
        assert [states[name]["changed"] for name in ("Hold", "Switch on", "Still on", "Read", "Switch off")] == [
            True, True, False, False, True,
        ]  # fmt: skip
    boards.wait_gone()


@pytest.mark.parametrize("support", ["false", "true"])
def test_plays_pass_whatever_grpc_fork_support_says(bench: MakeBench, support: str) -> None:
    boards = ten_boards(bench)
    played = boards.run(TASKS, "--forks", "10", "--limit", "dut0:dut1:dut2", GRPC_ENABLE_FORK_SUPPORT=support)
    assert played.rc == 0, played.output
    assert "fork" not in played.output.lower()
    boards.wait_gone()


def test_a_board_that_fails_does_not_disturb_the_others(bench: MakeBench) -> None:
    boards = ten_boards(bench)
    boards.config("dut3", {"power": {"type": "jumpstarter_driver_power.driver.NoSuchPower"}})
    (boards.folder / "dut7.yaml").unlink()
    played = boards.run(TASKS, "--forks", "10")
    assert played.rc == 2
    failed = {host for task in played.tasks for host, result in task["hosts"].items() if result["outcome"] != "ok"}
    assert failed == {"dut3", "dut7"}
    assert set(played.tasks[-1]["hosts"]) == {f"dut{n}" for n in range(10)} - failed
    boards.wait_gone()


def test_one_agent_serves_all_boards(bench: MakeBench) -> None:
    boards = ten_boards(bench)
    tasks = [
        {"name": "Hold", "jumpstarter.lab.lease": {}},
        {"name": "Wait here", "ansible.builtin.pause": {"seconds": 2}},
    ]
    playbook = boards.write([{"hosts": "duts", "gather_facts": False, "tasks": tasks}])
    process = boards.start_until(playbook, "Wait here", "--forks", "10")
    assert len(boards.pids("-m jumpstarter_agent")) == 1
    process.communicate(timeout=120)
    assert process.returncode == 0
    boards.wait_gone()
