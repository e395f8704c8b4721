# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever fails around a leased board - play, agent, controller, exporter, people - is survived or clearly said."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import disk_images as images
import pytest
import yaml
from benches import Bench, board_config
from labs import Lab, wait_until
from router_harness import attached

from jumpstarter.client.admin import PolicyRule
from jumpstarter.client.controller import LeaseWish

MakeBench = Callable[..., Bench]
ANY_X = {"jumpstarter_selector": "board=x"}
HOLD: dict[str, Any] = {"name": "Hold", "jumpstarter.lab.lease": {}}
SWITCH_ON: dict[str, Any] = {"name": "Switch on", "jumpstarter.lab.power": {"state": "on"}}
STATUS: dict[str, Any] = {"name": "Is it on?", "jumpstarter.lab.power": {"state": "status"}}
LONG: dict[str, Any] = {"name": "Cycle", "jumpstarter.lab.power": {"state": "cycled", "wait": "100s"}}
LOOP = {"url": "loop://"}
INFO: dict[str, Any] = {"name": "Look", "jumpstarter.lab.lease_info": {}}


@pytest.fixture
def board(bench: MakeBench, lab: Lab) -> Bench:
    """A bench whose only host leases the exporter e1."""
    lab.add("e1", "board=x")
    return bench({"dut": ANY_X}, jumpstarter_client_config=str(lab.client))


def pause(made: Bench, name: str) -> dict[str, Any]:
    """A task that waits until the test has made a file of this name."""
    wait = {"path": str(made.folder / name), "timeout": 100, "sleep": 1}
    return {"name": f"Wait for {name}", "ansible.builtin.wait_for": wait, "delegate_to": "localhost"}


def play(made: Bench, *tasks: dict[str, Any]) -> Path:
    return made.write([{"hosts": "duts", "gather_facts": False, "tasks": list(tasks)}])


def finish(process: subprocess.Popen[str], rc: int = 0) -> str:
    """The rest of a run's output, once it has ended as expected."""
    output, _unused = process.communicate(timeout=120)
    assert process.returncode == rc, output
    assert "Traceback" not in output
    return output


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda sig: sig.name)
def test_an_ended_play_gives_its_board_back(board: Bench, lab: Lab, sig: signal.Signals) -> None:
    process = board.start_until(play(board, SWITCH_ON, LONG), "TASK [Cycle]")
    assert lab.leases()[0].exporter == "e1"
    os.killpg(process.pid, sig)
    process.communicate(timeout=60)
    board.wait_gone()
    assert lab.wait_released() < 2
    assert board.run([STATUS]).result("dut")["state"] == "off"
    board.wait_gone()


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGINT], ids=lambda sig: sig.name)
def test_an_ended_play_leaves_the_queue(board: Bench, lab: Lab, sig: signal.Signals) -> None:
    with lab.held("board=x") as other:
        process = board.start_until(play(board, HOLD), "waiting for a lease")
        os.killpg(process.pid, sig)
        process.communicate(timeout=60)
        board.wait_gone()
        assert [lease.name for lease in lab.leases()] == [other]


def test_a_task_timeout_ends_the_wait(board: Bench, lab: Lab) -> None:
    with lab.held("board=x") as other:
        played = board.run([{**HOLD, "timeout": 2, "ignore_errors": True}])
        assert played.result("dut")["outcome"] == "failed"
        board.wait_gone()
        assert [lease.name for lease in lab.leases()] == [other]


def test_a_killed_agent_loses_its_lease_by_heartbeat(board: Bench, lab: Lab) -> None:
    process = board.start_until(
        play(board, SWITCH_ON, pause(board, "go"), STATUS), "TASK [Wait for go]", JUMPSTARTER_LEASE_HEARTBEAT="2"
    )
    for pid in board.pids("-m jumpstarter_agent"):
        os.kill(pid, signal.SIGKILL)
    assert lab.wait_released(15) < 15
    (board.folder / "go").write_text("")
    output = finish(process)  # the next task starts an agent of its own, and that takes a lease of its own
    assert "session agent of this run has died" in output
    board.wait_gone()
    assert (
        "no heartbeat" in lab.leases(active=False)[0].message or lab.leases(active=False)[0].reason == "HeartbeatLost"
    )


def test_a_lease_lives_as_long_as_its_heartbeats_come(board: Bench, lab: Lab) -> None:
    wait = {"name": "Wait", "ansible.builtin.pause": {"seconds": 6}}
    played = board.run([SWITCH_ON, wait, STATUS], JUMPSTARTER_LEASE_HEARTBEAT="2")
    assert played.rc == 0 and played.result("dut")["state"] == "on", played.output
    board.wait_gone()


def test_a_play_carries_on_through_a_restart_of_the_controller(board: Bench, lab: Lab) -> None:
    process = board.start_until(
        play(board, SWITCH_ON, pause(board, "go"), STATUS, pause(board, "again"), STATUS, INFO), "TASK [Wait for go]"
    )
    (lease,) = lab.leases()
    lab.stop_controller()
    lab.start_controller()
    (board.folder / "go").write_text("")
    (board.folder / "again").write_text("")
    finish(process)
    board.wait_gone()
    lab.wait_released()
    assert [one.name for one in lab.leases(active=False)] == [lease.name]


def test_a_play_waits_in_the_queue_through_a_restart_of_the_controller(board: Bench, lab: Lab) -> None:
    with lab.held("board=x"):
        process = board.start_until(play(board, HOLD, STATUS), "waiting for a lease: 1 of 1")
        lab.stop_controller()
        lab.start_controller()
        assert len(lab.leases()) == 2
    finish(process)
    board.wait_gone()


def test_the_board_keeps_its_power_through_a_restart_of_the_controller(board: Bench, lab: Lab) -> None:
    check = {**STATUS, "register": "power", "failed_when": "power.state != 'on'"}
    process = board.start_until(play(board, SWITCH_ON, pause(board, "go"), check), "TASK [Wait for go]")
    lab.stop_controller()
    (board.folder / "go").write_text("")  # the task runs while the controller is away, and waits for it
    time.sleep(2)  # not a synchronisation: how long it is away
    lab.start_controller()
    finish(process)
    board.wait_gone()


def test_an_exporter_that_was_killed_is_used_again_when_it_is_back(board: Bench, lab: Lab) -> None:
    process = board.start_until(play(board, SWITCH_ON, pause(board, "go"), STATUS, SWITCH_ON), "TASK [Wait for go]")
    lab.kill("e1")
    lab.run("e1")
    (board.folder / "go").write_text("")
    output = finish(process)
    assert "exporter e1 is back with a new session" in output
    assert "changed: [dut]" in output, "it was switched off meanwhile"
    board.wait_gone()
    lab.wait_released()
    assert len(lab.leases(active=False)) == 1


def test_a_call_on_an_exporter_that_dies_fails_at_once_and_the_next_task_waits_for_it(board: Bench, lab: Lab) -> None:
    process = board.start_until(play(board, HOLD, {**LONG, "ignore_errors": True}, STATUS), "TASK [Cycle]")
    lab.wait_for(lambda one: one.lease is not None, "the exporter is leased")
    time.sleep(1.5)  # into the cycle
    lab.kill("e1")
    killed = time.monotonic()
    assert process.stdout is not None
    for line in process.stdout:
        if "fatal: [dut]" in line or "[ERROR]" in line:
            break
    assert time.monotonic() - killed < 15, "it did not wait for the end of the cycle"
    assert "exporter e1" in line and "dut: power: " in line, line
    lab.run("e1")
    output = finish(process)
    assert "exporter e1 is back with a new session" in output
    board.wait_gone()


def test_a_lease_that_an_administrator_ends_is_said_once_and_can_be_taken_again(board: Bench, lab: Lab) -> None:
    process = board.start_until(
        play(board, SWITCH_ON, pause(board, "go"), {**STATUS, "ignore_errors": True}, HOLD, STATUS),
        "TASK [Wait for go]",
    )
    (lease,) = lab.leases()
    lab.administer(lambda admin: admin.end_lease(lease.name, "needed for the release"))
    (board.folder / "go").write_text("")
    output = finish(process)
    assert "dut: power: " in output and f"lease {lease.name} has ended" in output, output
    assert "needed for the release" in output
    assert "take it again with jumpstarter.lab.lease" in output
    board.wait_gone()


def test_a_lease_that_was_transferred_is_lost(board: Bench, lab: Lab) -> None:
    lab.files.client("other")
    process = board.start_until(play(board, SWITCH_ON, pause(board, "go"), STATUS), "TASK [Wait for go]")
    (lease,) = lab.leases()
    lab.ask(lambda controller: controller.update_lease(lease.name, client="other"))
    (board.folder / "go").write_text("")
    output = finish(process, 2)
    assert "was transferred to client other" in output, output
    board.wait_gone()
    # It is not ours to give back.
    assert [one.client for one in lab.leases()] == ["other"]
    lab.ask(lambda controller: controller.delete_lease(lease.name), client="other")


def test_a_controller_that_is_away_at_the_end_does_not_hold_up_the_run(board: Bench, lab: Lab) -> None:
    process = board.start_until(play(board, SWITCH_ON, pause(board, "go")), "TASK [Wait for go]")
    lab.stop_controller()
    (board.folder / "go").write_text("")
    finish(process)
    board.wait_gone()
    lab.start_controller()


@pytest.mark.lab_settings(leases={"spotGrace": "3s"})
def test_a_spot_lease_that_is_taken_away_is_announced_and_then_lost(board: Bench, lab: Lab) -> None:
    lab.files.client("boss", "-l", "team=release")
    rules = [PolicyRule(clients="team=release", priority=10), PolicyRule(clients="", spot=True)]
    lab.administer(lambda admin: admin.set_policy("spot", "", rules))
    task = {"name": "Go on", "jumpstarter.lab.power": {"state": "status"}}
    lost = {**STATUS, "name": "Too late"}
    process = board.start_until(
        play(board, SWITCH_ON, pause(board, "go"), task, pause(board, "later"), lost), "TASK [Wait for go]"
    )
    wish = LeaseWish(selector="board=x", duration=600)
    better = lab.ask(lambda controller: controller.create_lease(wish), client="boss")
    logs = list(board.runtime.glob("*/r-*/agent.log"))
    wait_until(lambda: any("is taken away at" in log.read_text() for log in logs), "the agent knows of it")
    (board.folder / "go").write_text("")
    wait_until(lambda: lab.lease(better.name).state == "ready", "the board has changed hands")
    (board.folder / "later").write_text("")
    output = finish(process, 2)
    assert "is taken away at" in output and "TASK [Too late]" in output, output
    assert "dut: power: exporter e1 was lost" in output.rpartition("TASK [Too late]")[2], output
    board.wait_gone()
    lab.ask(lambda controller: controller.delete_lease(better.name), client="boss")


def test_a_flash_that_a_dying_controller_cuts_is_one_clear_line_and_can_be_repeated(
    bench: MakeBench, lab: Lab, tmp_path: Path
) -> None:
    disk = {"path": str(tmp_path / "disk"), "size": 48 * images.MIB}
    lab.add(
        "e1", "board=x", export={"storage": {"type": "jumpstarter_driver_storage.driver.FileFlasher", "config": disk}}
    )
    made = bench({"dut": ANY_X}, jumpstarter_client_config=str(lab.client))
    image = images.slow_to_unpack(made.folder / "i.img.bz2", 48)
    small = images.patterned(made.folder / "small.img", 2)
    slow = {"name": "Slow", "jumpstarter.lab.flash": {"src": str(image), "progress": "verbose"}, "ignore_errors": True}
    again = {"name": "Small", "jumpstarter.lab.flash": {"src": str(small)}}
    process = made.start_until(play(made, slow, again), "writing")
    (lease,) = lab.leases()
    lab.stop_controller()
    lab.start_controller()
    output = finish(process)
    assert "dut: flash: " in output and f"lease {lease.name} is still held" in output, output
    made.wait_gone()
    lab.wait_released()
    assert len(lab.leases(active=False)) == 1


@pytest.mark.timeout(600)
def test_a_boot_goes_on_through_a_restart_of_the_controller(bench: MakeBench, lab: Lab, arm64_image: Path) -> None:
    made = bench({"dut": ANY_X}, jumpstarter_client_config=str(lab.client))
    document = yaml.safe_load((made.folder / board_config(made, "virt-arm64")).read_text())
    lab.add("e1", "board=x", export=document["export"])
    flash = {"name": "Write it", "jumpstarter.lab.flash": {"src": str(arm64_image)}}
    boot = {"name": "Boot it", "jumpstarter.lab.boot": {"timeout": "3m"}}
    ask = {"name": "Ask", "ansible.builtin.raw": "uname -r", "changed_when": False}
    process = made.start_until(play(made, flash, boot, ask), "bootloader after")
    lab.stop_controller()
    lab.start_controller()
    output = finish(process)
    assert "kernel after" in output
    made.wait_gone()


def test_the_console_is_read_on_through_a_restart_and_opened_anew_in_a_new_exporter(bench: MakeBench, lab: Lab) -> None:
    lab.add(
        "e1", "board=x", export={"console": {"type": "jumpstarter_driver_pyserial.driver.PySerial", "config": LOOP}}
    )
    made = bench({"dut": ANY_X}, jumpstarter_client_config=str(lab.client))

    def say(word: str) -> dict[str, Any]:
        return {"name": f"Say {word}", "jumpstarter.lab.console": {"action": "send", "send": word, "pattern": word}}

    playbook = play(made, say("one"), pause(made, "go"), say("two"), pause(made, "on"), say("three"))
    process = made.start_until(playbook, "TASK [Wait for go]", ANSIBLE_CALLBACKS_ENABLED="jumpstarter.lab.recording")
    lab.stop_controller()
    lab.start_controller()
    (made.folder / "go").write_text("")
    assert process.stdout is not None
    assert any("TASK [Wait for on]" in line for line in process.stdout)
    lab.kill("e1")
    lab.run("e1")
    (made.folder / "on").write_text("")
    output = finish(process)
    made.wait_gone()
    (log,) = made.folder.glob("jumpstarter-report/*/dut/console.log")
    assert [word for word in ("one", "two", "three") if f"< {word}" in log.read_text()] == ["one", "two", "three"]
    assert "exporter e1 is back with a new session" in output


def test_a_router_that_is_killed_breaks_no_play(board: Bench, lab: Lab) -> None:
    check = {**STATUS, "register": "power", "failed_when": "power.state != 'on'"}
    with attached(lab.files, "r1") as router:
        process = board.start_until(
            play(board, SWITCH_ON, pause(board, "go"), check),
            "TASK [Wait for go]",
            ANSIBLE_CALLBACKS_ENABLED="jumpstarter.lab.recording",
        )
        router.kill()
        (board.folder / "go").write_text("")
        output = finish(process)
    assert "new session" not in output, "the exporter's session was not touched"
    board.wait_gone()
    (events,) = board.folder.glob("jumpstarter-report/*/dut/events.jsonl")
    assert "exporter_away" in events.read_text(), "its tunnel went through the router that was killed"
