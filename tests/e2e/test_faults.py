# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever ends a run, in the middle of a flash or of a boot: nothing of it is left, and the next run works at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import disk_images as images
import pytest
from benches import GONE_SECONDS, MOCK, Bench
from disk_images import MIB

MakeBench = Callable[..., Bench]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]
POWER_STATUS = {"name": "Is it on?", "jumpstarter.lab.power": {"state": "status"}}


def end(process: Any, sig: signal.Signals) -> None:
    """As a terminal, a service manager, a lost ssh session and the kernel do it."""
    if sig in (signal.SIGINT, signal.SIGHUP):
        os.killpg(process.pid, sig)
    else:
        os.kill(process.pid, sig)
    process.communicate(timeout=60)


def play(bench: Bench, *tasks: dict[str, Any]) -> Path:
    return bench.write([{"hosts": "duts", "gather_facts": False, "tasks": list(tasks)}])


def slow_flash(bench: MakeBench, mib: int = 48) -> tuple[Bench, Path]:
    """A board with a disk and a play whose flash takes a while, power on meanwhile.

    The image is unpacked twice, to check it and then to write it: each takes a second or more for 24 MiB.
    """
    made = bench({"dut": {"jumpstarter_exporter_config": "dut.yaml"}})
    disk = {"type": "jumpstarter_driver_storage.driver.FileFlasher"}
    power = {"type": "jumpstarter_driver_power.driver.MockPower"}
    config = {"path": str(made.folder / "disk"), "size": mib * MIB}
    made.config("dut", {"power": power, "storage": {**disk, "config": config}})
    image = images.slow_to_unpack(made.folder / "i.img.bz2", mib)
    flash = {"src": str(image), "progress": "verbose"}
    return made, play(
        made,
        {"name": "Switch on", "jumpstarter.lab.power": {"state": "on"}},
        {"name": "Write it", "jumpstarter.lab.flash": flash},
    )


@pytest.mark.parametrize("sig", SIGNALS, ids=lambda sig: sig.name)
def test_playbook_ended_in_the_middle_of_a_flash(bench: MakeBench, sig: signal.Signals) -> None:
    made, playbook = slow_flash(bench)
    process = made.start_until(playbook, "writing")
    assert made.pids("jumpstarter.exporter")
    end(process, sig)
    made.wait_gone()
    after = made.run([POWER_STATUS])
    assert after.rc == 0, after.output
    assert after.result("dut")["state"] == "off"
    small = images.patterned(made.folder / "small.img", 2)
    flashed = made.run([{"name": "Write it", "jumpstarter.lab.flash": {"src": str(small)}}])
    assert flashed.result("dut")["changed"] is True
    made.wait_gone()


@pytest.mark.parametrize("milliseconds", [0, 60, 150, 400])
@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda sig: sig.name)
def test_playbook_ended_while_its_agent_starts(bench: MakeBench, sig: signal.Signals, milliseconds: int) -> None:
    made = bench({"dut": {"jumpstarter_exporter_config": "dut.yaml"}})
    made.config("dut", MOCK)
    process = made.start_until(play(made, {"name": "Hold it", "jumpstarter.lab.lease": {}}), "TASK [Hold it]")
    time.sleep(milliseconds / 1000)  # where in the start it hits, not a wait for something
    end(process, sig)
    made.wait_gone()


@pytest.mark.parametrize("sig", SIGNALS, ids=lambda sig: sig.name)
def test_playbook_ended_in_the_middle_of_a_boot(arm64: Bench, arm64_image: Path, sig: signal.Signals) -> None:
    flash = {"name": "Write it", "jumpstarter.lab.flash": {"src": str(arm64_image)}}
    boot = {"name": "Boot it", "jumpstarter.lab.boot": {"timeout": "2m"}}
    process = arm64.start_until(play(arm64, flash, boot), "kernel after")
    assert arm64.pids("qemu-system")
    end(process, sig)
    arm64.wait_gone()
    again = arm64.run([{**boot, "jumpstarter.lab.boot": {"until": "kernel", "timeout": "2m"}}])
    assert again.rc == 0, again.output
    arm64.wait_gone()


def test_killed_agent_is_one_clear_line_and_the_exporter_switches_off(arm64: Bench, arm64_image: Path) -> None:
    flash = {"name": "Write it", "jumpstarter.lab.flash": {"src": str(arm64_image)}}
    boot = {"name": "Boot it", "jumpstarter.lab.boot": {"timeout": "2m"}}
    process = arm64.start_until(play(arm64, flash, boot), "kernel after")
    (agent,) = arm64.pids("-m jumpstarter_agent")
    os.kill(agent, signal.SIGKILL)
    killed_at = time.monotonic()
    while arm64.pids("qemu-system") or arm64.pids("jumpstarter.exporter"):
        assert time.monotonic() - killed_at < GONE_SECONDS, arm64.processes()
        time.sleep(0.02)
    output, _unused = process.communicate(timeout=60)
    assert process.returncode == 2
    lines = [line for line in output.splitlines() if line.startswith("[ERROR]")]
    assert len(lines) == 1 and "the session agent ended before it answered" in lines[0]
    assert "Traceback" not in output
    assert arm64.run([POWER_STATUS]).result("virt-arm64")["state"] == "off"
    arm64.wait_gone()


def test_exporter_killed_in_the_middle_of_a_flash(bench: MakeBench) -> None:
    made, playbook = slow_flash(bench)
    process = made.start_until(playbook, "writing")
    (exporter,) = made.pids("jumpstarter.exporter")
    os.kill(exporter, signal.SIGKILL)
    killed_at = time.monotonic()
    output, _unused = process.communicate(timeout=60)
    assert time.monotonic() - killed_at < 10
    assert process.returncode == 2
    (line,) = [line for line in output.splitlines() if line.startswith("[ERROR]")]
    assert "dut: flash: " in line and "dut.yaml" in line and "MiB" in line, line
    assert "Traceback" not in output
    made.wait_gone()
    small = images.patterned(made.folder / "small.img", 2)
    again = made.run([{"name": "Write it", "jumpstarter.lab.flash": {"src": str(small)}}])
    assert again.result("dut")["changed"] is True
    made.wait_gone()


def test_task_timeout_ends_the_flash_and_the_play_goes_on(bench: MakeBench) -> None:
    made, _playbook = slow_flash(bench, 128)
    image = str(made.folder / "i.img.bz2")
    small = images.patterned(made.folder / "small.img", 2)
    started = time.monotonic()
    played = made.run(
        [
            {"name": "Slow", "jumpstarter.lab.flash": {"src": image}, "timeout": 3, "ignore_errors": True},
            {"name": "Small one", "jumpstarter.lab.flash": {"src": str(small)}},
        ]
    )
    assert played.rc == 0, played.output
    assert played.result("dut", 0)["outcome"] == "failed"
    assert played.result("dut", 1)["changed"] is True
    assert time.monotonic() - started < 30
    made.wait_gone()


def test_second_run_on_a_held_board_is_told_who_holds_it(bench: MakeBench) -> None:
    made, playbook = slow_flash(bench, 128)
    process = made.start_until(playbook, "Write it")
    second = made.run([POWER_STATUS])
    result = second.result("dut")
    assert (second.rc, result["error_code"]) == (2, "busy")
    assert str(process.pid) in result["msg"]
    end(process, signal.SIGTERM)
    made.wait_gone()
