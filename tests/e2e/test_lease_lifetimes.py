# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a board is held: for the run, for a play, over several runs, or for inspection after a failure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from benches import MOCK, Bench

STATUS = {"name": "Is it on?", "jumpstarter.lab.power": {"state": "status"}}
SWITCH_ON = {"name": "Switch on", "jumpstarter.lab.power": {"state": "on"}}
INFO = {"name": "Look", "jumpstarter.lab.lease_info": {}}


@pytest.fixture
def board(bench: Callable[..., Bench]) -> Iterator[Bench]:
    made = bench({"dut": {"jumpstarter_exporter_config": "dut.yaml"}})
    made.config("dut", MOCK)
    yield made
    made.wait_gone()


def test_a_lease_of_the_run_lasts_over_its_plays_and_no_longer(board: Bench) -> None:
    plays = [
        {"name": "One", "hosts": "duts", "gather_facts": False, "tasks": [SWITCH_ON]},
        {"name": "Two", "hosts": "duts", "gather_facts": False, "tasks": [STATUS, INFO]},
    ]
    played = board.run_playbook(board.write(plays))
    assert played.result("dut", 1)["state"] == "on"
    assert played.result("dut", 2)["lease"]["state"] == "held"
    assert board.run([INFO, STATUS]).result("dut", 0)["lease"]["state"] == "absent"
    assert board.run([STATUS]).result("dut")["state"] == "off"


def test_a_lease_is_given_back_once_and_taken_again(board: Bench) -> None:
    lease, absent = {"jumpstarter.lab.lease": {}}, {"jumpstarter.lab.lease": {"state": "absent"}}
    names = ["Take", "Take again", "Give back", "Give back again", "Take anew"]
    tasks: list[dict[str, Any]] = [
        {"name": name, **task} for name, task in zip(names, [lease, lease, absent, absent, lease], strict=True)
    ]
    played = board.run(tasks)
    assert played.rc == 0, played.output
    assert [played.result("dut", n)["changed"] for n in range(5)] == [True, False, True, False, True]


def test_a_lease_of_a_play_ends_with_it(board: Bench) -> None:
    hold = {"name": "Hold", "jumpstarter.lab.lease": {"lifetime": "play"}}
    plays = [
        {"name": "One", "hosts": "duts", "gather_facts": False, "tasks": [hold, SWITCH_ON]},
        {"name": "Two", "hosts": "duts", "gather_facts": False, "tasks": [INFO, STATUS]},
    ]
    played = board.run_playbook(board.write(plays), callbacks="jumpstarter.lab.recording")
    assert played.rc == 0, played.output
    assert played.result("dut", 2)["lease"]["state"] == "absent"
    assert played.result("dut", 3)["state"] == "off"


def test_a_detached_lease_is_found_again_by_its_name(board: Bench) -> None:
    hold = {"name": "Hold", "jumpstarter.lab.lease": {"lifetime": "detached", "name": "nightly-7", "duration": "5m"}}
    first = board.run([hold, SWITCH_ON])
    assert first.rc == 0, first.output
    assert board.processes(), "the lease is held"
    second = board.run([hold, STATUS])
    assert (second.result("dut", 0)["changed"], second.result("dut", 1)["state"]) == (False, "on"), second.output
    stranger = board.run([STATUS])
    assert stranger.result("dut")["error_code"] == "busy"
    release = {"lifetime": "detached", "name": "nightly-7", "state": "absent"}
    third = board.run([{"name": "Give back", "jumpstarter.lab.lease": release}])
    assert third.result("dut")["changed"] is True, third.output
    board.wait_gone()


def test_a_failing_board_is_kept_for_inspection_and_the_run_says_how_to_get_it_back(board: Bench) -> None:
    tasks: list[dict[str, Any]] = [
        {"name": "Hold", "jumpstarter.lab.lease": {"hold_on_failure": "2m"}},
        SWITCH_ON,
        {"name": "Fail", "ansible.builtin.fail": {"msg": "on purpose"}},
    ]
    failed = board.run(tasks, callbacks="jumpstarter.lab.recording")
    assert failed.rc == 2
    match = re.search(r"dut is kept for inspection until .*\n +jumpstarter.lab.lease: .*name: ([^},]+)", failed.stdout)
    assert match, failed.stdout
    again = {"name": "Back", "jumpstarter.lab.lease": {"lifetime": "detached", "name": match[1].strip()}}
    back = board.run([again, STATUS])
    assert back.rc == 0, back.output
    assert back.result("dut")["state"] == "on"
    board.run([{"name": "Done", "jumpstarter.lab.lease": {**again["jumpstarter.lab.lease"], "state": "absent"}}])  # type: ignore[dict-item]
    board.wait_gone()


def test_a_passing_board_is_not_kept(board: Bench) -> None:
    hold = {"name": "Hold", "jumpstarter.lab.lease": {"hold_on_failure": "2m"}}
    assert "kept for inspection" not in board.run([hold], callbacks="jumpstarter.lab.recording").stdout
    board.wait_gone()
