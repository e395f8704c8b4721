# SPDX-License-Identifier: Apache-2.0
"""Nothing survives a run, however it ends; what is left of a killed agent is removed by the next one."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from agent_harness import AgentFailure, Board, RunningAgent, process_alive, wait_until, write_config

from jumpstarter_agent.sweep import sweep

Start = Callable[[], RunningAgent]
GONE_SECONDS = 60.0
"""Ends a test that hangs. (The agent forces its own end after 2.9 s; a busy machine is slow to do even that.)"""


def exporter_pid(agent: RunningAgent, board: Board) -> int:
    match = re.search(r"pid (\d+)", agent.ask("lease_info", board.host)["lease"]["exporter"])
    assert match is not None
    return int(match[1])


def test_kill_of_the_playbook_ends_agent_exporter_and_sockets(agent: RunningAgent, board: Board) -> None:
    agent.ask("power", board.host, state="on")
    pid = exporter_pid(agent, board)
    socket = Path(agent.ask("lease_info", board.host)["lease"]["jumpstarter_host"])
    assert socket.exists()
    agent.playbook.send_signal(signal.SIGKILL)
    # The stand-in playbook is our child: as long as it is not reaped it is a zombie, which has to count as ended.
    wait_until(agent.gone, GONE_SECONDS, "agent gone")
    wait_until(lambda: not process_alive(pid), GONE_SECONDS, "exporter gone")
    assert not socket.exists()
    assert board.trace()[-1] == "off", "the exporter has to switch off what the run switched on"


def test_kill_of_the_playbook_in_the_middle_of_a_call(agent: RunningAgent, board: Board) -> None:
    with agent.request("call", board.host, driver="worker", method="work", args=[600]):
        wait_until(lambda: board.said("work started"), 60, "call running")
        agent.playbook.send_signal(signal.SIGKILL)
        wait_until(agent.gone, GONE_SECONDS, "agent gone")
    wait_until(lambda: board.said("work cancelled"), GONE_SECONDS, "driver call cancelled")


def test_slow_supply_is_switched_off_although_the_agent_does_not_wait(agent: RunningAgent, tmp_path: Path) -> None:
    trace = tmp_path / "slow.trace"
    config = {"type": "agent_test_drivers.SlowPower", "config": {"trace": str(trace)}}
    host = {"name": "slow", "reach": {"exporter_config": str(write_config(tmp_path / "slow.yaml", {"power": config}))}}
    agent.ask("power", host, state="on")
    exporter = agent.ask("lease_info", host)["lease"]["exporter"]
    pid = int(exporter.rpartition("pid ")[2].rstrip(")"))
    agent.playbook.kill()
    wait_until(agent.gone, GONE_SECONDS, "agent gone")
    assert trace.read_text() == "on\n"
    (tmp_path / "slow.trace.go").touch()
    wait_until(lambda: trace.read_text().startswith("on\noff\n"), GONE_SECONDS, "switched off by the exporter alone")
    wait_until(lambda: not process_alive(pid), GONE_SECONDS, "exporter gone")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_the_agent_cleanly(agent: RunningAgent, board: Board, number: signal.Signals) -> None:
    agent.ask("power", board.host, state="on")
    pid = exporter_pid(agent, board)
    agent.process.send_signal(number)
    wait_until(agent.gone, GONE_SECONDS, "agent gone")
    # An agent whose exporter is slow, as on a busy machine, does not wait for it.
    wait_until(lambda: not process_alive(pid), GONE_SECONDS, "exporter gone")
    assert board.trace()[-1] == "off"
    assert agent.process.returncode == 0


def test_shutdown_is_answered_before_the_agent_ends(agent: RunningAgent, board: Board) -> None:
    agent.ask("lease", board.host)
    assert agent.ask("shutdown") == {"changed": True}
    wait_until(agent.gone, GONE_SECONDS, "agent gone")


def test_kill_of_the_agent_makes_the_exporter_switch_off_and_end(agent: RunningAgent, board: Board) -> None:
    agent.ask("power", board.host, state="on")
    pid = exporter_pid(agent, board)
    agent.process.kill()
    wait_until(lambda: not process_alive(pid), GONE_SECONDS, "exporter gone")
    assert board.trace()[-1] == "off"


def test_next_run_works_at_once_after_a_killed_agent(start_agent: Start, board: Board) -> None:
    first = start_agent()
    first.ask("power", board.host, state="on")
    first.process.kill()
    first.process.wait()
    assert start_agent().ask("power", board.host, state="status")["state"] == "off"


def test_agent_ends_at_once_when_the_process_to_watch_is_not_there(base: Path) -> None:
    from jumpstarter_agent.__main__ import main

    directory = base / "r-none"
    assert main(["--dir", str(directory), "--watch-pid", str(os.getpid()), "--watch-start", "1"]) == 0
    assert not directory.exists()


def test_killed_exporter_fails_the_running_call_and_is_named(agent: RunningAgent, board: Board) -> None:
    pid = exporter_pid_after_lease(agent, board)
    with agent.request("call", board.host, driver="worker", method="work", args=[600]) as call:
        wait_until(lambda: board.said("work started"), 60, "call running")
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        with pytest.raises(AgentFailure) as failure:
            call.answer()
    assert time.monotonic() - killed < 60
    assert failure.value.code == "exporter_lost"
    assert failure.value.message.startswith("board-1: call: exporter ")
    assert str(board.config) in failure.value.message
    assert "SIGKILL" in failure.value.message


def test_exporter_that_died_between_tasks_is_reported_once_then_replaced(agent: RunningAgent, board: Board) -> None:
    pid = exporter_pid_after_lease(agent, board)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not agent.ask("lease_info", board.host)["leased"], GONE_SECONDS, "loss noticed")
    with pytest.raises(AgentFailure, match=r"\[exporter_lost\]"):
        agent.ask("power", board.host, state="on")
    assert agent.ask("power", board.host, state="on")["changed"] is True


def test_directories_of_dead_agents_are_swept(start_agent: Start, base: Path) -> None:
    dead = start_agent()
    dead.process.kill()
    dead.process.wait()
    own = base / "r-own"
    assert sweep(base, own) == [], "the log of a dead agent stays while its playbook runs"
    dead.playbook.kill()
    dead.playbook.communicate()
    living = start_agent()
    wait_until(lambda: not dead.directory.exists(), GONE_SECONDS, "directory of the dead agent removed")
    assert sweep(base, own) == []
    assert living.directory.exists()


def exporter_pid_after_lease(agent: RunningAgent, board: Board) -> int:
    agent.ask("lease", board.host)
    return exporter_pid(agent, board)
