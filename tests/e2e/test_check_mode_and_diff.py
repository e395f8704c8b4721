# SPDX-License-Identifier: GPL-3.0-or-later
"""Check mode predicts and touches nothing; diff says what changed."""

from __future__ import annotations

from collections.abc import Callable

from benches import MOCK, Bench

MakeBench = Callable[..., Bench]


def board(bench: MakeBench) -> Bench:
    made = bench({"dut": {"jumpstarter_exporter_config": "dut.yaml"}})
    made.config("dut", MOCK)
    return made


def test_check_mode_of_a_lease_starts_no_exporter(bench: MakeBench) -> None:
    made = board(bench)
    played = made.run([{"name": "Hold", "jumpstarter.lab.lease": {}}], "--check")
    assert played.rc == 0, played.output
    assert played.result("dut")["changed"] is True
    assert played.result("dut")["lease"]["state"] == "absent"
    made.wait_gone()


def test_check_mode_says_what_would_change_and_changes_nothing(bench: MakeBench) -> None:
    made = board(bench)
    played = made.run(
        [
            {"name": "Would switch on", "jumpstarter.lab.power": {"state": "on"}, "check_mode": True, "diff": True},
            {"name": "Is it on?", "jumpstarter.lab.power": {"state": "status"}},
            {"name": "Would call", "jumpstarter.lab.call": {"driver": "power", "method": "on"}, "check_mode": True},
            {"name": "Is it on now?", "jumpstarter.lab.power": {"state": "status"}},
        ]
    )
    assert played.rc == 0, played.output
    would = played.result("dut", 0)
    assert would["changed"] is True
    assert ("off" in str(would["diff"]["before"]), "on" in str(would["diff"]["after"])) == (True, True)
    assert played.result("dut", 2)["changed"] is True
    assert (played.result("dut", 1)["state"], played.result("dut", 3)["state"]) == ("off", "off")
    made.wait_gone()


def test_diff_shows_the_power_before_and_after(bench: MakeBench) -> None:
    made = board(bench)
    played = made.run([{"name": "Switch on", "jumpstarter.lab.power": {"state": "on"}}], "--diff")
    assert "-power: off" in played.stdout and "+power: on" in played.stdout
    made.wait_gone()
