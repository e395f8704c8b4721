# SPDX-License-Identifier: Apache-2.0
"""Leases: one holder at a time, idempotent, limited in time, by run, play or name."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from agent_harness import AgentFailure, Board, RunningAgent, process_alive, wait_until, write_config

Start = Callable[[], RunningAgent]
MakeBoard = Callable[[str], Board]


def test_lease_is_idempotent_and_describes_the_device(agent: RunningAgent, board: Board) -> None:
    first = agent.ask("lease", board.host, diff=True)
    assert first["changed"] is True
    assert first["diff"]["before"] == "lease: absent\n"
    lease = first["lease"]
    assert lease["state"] == "held"
    assert set(lease["drivers"]) == {"power", "old_power", "worker"}
    assert "work" in lease["drivers"]["worker"]["methods"]
    assert Path(lease["jumpstarter_host"]).is_socket()
    assert Path(lease["recording_dir"]).is_dir()
    again = agent.ask("lease", board.host)
    assert again["changed"] is False
    assert again["lease"]["name"] == lease["name"]
    assert agent.ask("lease_info", board.host)["leased"] is True
    assert agent.ask("lease", board.host, state="absent")["changed"] is True
    assert agent.ask("lease", board.host, state="absent")["changed"] is False
    assert agent.ask("lease_info", board.host)["lease"]["state"] == "absent"


def test_given_back_lease_switches_off_and_ends_the_exporter(agent: RunningAgent, board: Board) -> None:
    agent.ask("power", board.host, state="on")
    pid = int(agent.ask("lease_info", board.host)["lease"]["exporter"].rpartition("pid ")[2].rstrip(")"))
    agent.ask("lease", board.host, state="absent")
    assert board.trace()[-1] == "off"
    assert not process_alive(pid)


def test_check_mode_starts_nothing(agent: RunningAgent, board: Board) -> None:
    value = agent.ask("lease", board.host, check=True)
    assert value["changed"] is True
    assert value["lease"]["simulated"] is True
    assert agent.ask("ping")["hosts"] == []
    agent.ask("lease", board.host)
    assert agent.ask("lease", board.host, state="absent", check=True)["changed"] is True
    assert agent.ask("ping")["hosts"] == [board.name]


def test_second_run_on_a_local_exporter_is_told_who_has_it(start_agent: Start, board: Board) -> None:
    first, second = start_agent(), start_agent()
    first.ask("lease", board.host)
    with pytest.raises(AgentFailure) as failure:
        second.ask("power", {**board.host, "name": "other-name"}, state="on")
    assert failure.value.code == "busy"
    assert str(board.config) in failure.value.message
    assert f"ansible-playbook pid {first.playbook.pid}" in failure.value.message
    assert "host board-1" in failure.value.message
    assert not board.said("on")
    first.ask("lease", board.host, state="absent")
    assert second.ask("power", board.host, state="on")["changed"] is True


def test_second_run_right_after_the_first_was_killed_waits_for_its_exporter(start_agent: Start, board: Board) -> None:
    first, second = start_agent(), start_agent()
    first.ask("power", board.host, state="on")
    first.process.kill()
    first.process.wait()  # of an agent that is still dying the second run is told that it has the exporter
    assert second.ask("power", board.host, state="status")["state"] == "off"


def test_ten_hosts_at_once_do_not_disturb_each_other(
    agent: RunningAgent, make_board: MakeBoard, tmp_path: Path
) -> None:
    boards = [make_board(f"board-{number}") for number in range(9)]
    broken = {"name": "broken", "reach": {"exporter_config": str(tmp_path / "missing.yaml")}}
    with ThreadPoolExecutor(10) as pool:
        failed = pool.submit(agent.ask, "power", broken, state="on")
        values = list(pool.map(lambda board: agent.ask("power", board.host, state="on"), boards))
        assert [value["changed"] for value in values] == [True] * 9
        with pytest.raises(AgentFailure, match="missing.yaml"):
            failed.result()
    with ExitStack() as stack:
        for board in boards:
            stack.enter_context(agent.request("call", board.host, driver="worker", method="work", args=[600]))
        for board in boards:
            wait_until(lambda board=board: board.said("work started"), 60, "nine calls run beside each other")
    for board in boards:
        wait_until(lambda board=board: board.said("work cancelled"), 60, "call cancelled")
    assert len(agent.ask("ping")["hosts"]) == 9
    agent.playbook.kill()
    wait_until(agent.gone, 60, "agent gone with nine exporters")
    # Nine exporters may take longer than the agent waits.
    wait_until(lambda: all(board.trace()[-1] == "off" for board in boards), 60, "every device switched off")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("export: [", "broken.yaml"),
        (
            "apiVersion: jumpstarter.dev/v1alpha1\nkind: ExporterConfig\nexport: {x: {type: no.such.Driver}}\n",
            "no.such",
        ),
        ("apiVersion: jumpstarter.dev/v1alpha1\nkind: ExporterConfig\nexport: {x: {type: {}}}\n", "broken.yaml"),
    ],
)
def test_bad_exporter_configuration_is_one_line_from_the_exporter(
    agent: RunningAgent, tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(AgentFailure) as failure:
        agent.ask("lease", {"name": "broken", "reach": {"exporter_config": str(path)}})
    assert failure.value.code == "exporter_failed"
    assert words in failure.value.message
    assert failure.value.message.startswith("broken: lease: ")
    assert "\n" not in failure.value.message
    assert "Traceback" not in failure.value.message
    assert list(agent.directory.glob("x-*.sock")) == []


def test_lease_that_ran_out_is_an_error_until_it_is_taken_again(agent: RunningAgent, board: Board) -> None:
    agent.ask("lease", board.host, duration="2s")
    wait_until(lambda: not agent.ask("lease_info", board.host)["leased"], 60, "lease over")
    for _ in range(2):
        with pytest.raises(AgentFailure) as failure:
            agent.ask("power", board.host, state="on")
        assert failure.value.code == "lease_lost"
        assert "longer duration" in failure.value.message
    assert not board.said("on")
    assert agent.ask("lease", board.host, duration="10m")["changed"] is True
    assert agent.ask("power", board.host, state="on")["changed"] is True


def test_end_of_the_lease_ends_a_running_call(agent: RunningAgent, board: Board) -> None:
    # The lease and the call by one request: a lease that was taken before may be over when the call comes.
    host = {**board.host, "lease": {"duration": "3s"}}
    with pytest.raises(AgentFailure) as failure:
        agent.ask("call", host, driver="worker", method="work", args=[600])
    assert failure.value.code == "lease_lost"
    wait_until(lambda: board.said("work cancelled"), 60, "driver call cancelled")


def test_asking_again_with_a_longer_duration_extends(agent: RunningAgent, board: Board) -> None:
    first = agent.ask("lease", board.host, duration="10m")["lease"]["expires_at"]
    shorter = agent.ask("lease", board.host, duration="1m")
    assert (shorter["extended"], shorter["lease"]["expires_at"]) == (False, first)
    longer = agent.ask("lease", board.host, duration="1h")
    assert (longer["changed"], longer["extended"]) == (False, True)
    assert longer["lease"]["expires_at"] > first


def test_lease_for_a_play_ends_with_the_play(agent: RunningAgent, board: Board) -> None:
    first = agent.ask("lease", board.host, lifetime="play", task={"play_uuid": "p1"})["lease"]["name"]
    assert agent.ask("lease", board.host, lifetime="play", task={"play_uuid": "p1"})["changed"] is False
    second = agent.ask("lease", board.host, lifetime="play", task={"play_uuid": "p2"})
    assert second["changed"] is True
    assert second["lease"]["name"] != first
    agent.ask("recording", None, event="play_start", data={"play_uuid": "p3"})
    assert agent.ask("ping")["hosts"] == []


def test_same_host_through_another_exporter_is_refused(agent: RunningAgent, make_board: MakeBoard) -> None:
    one, two = make_board("one"), make_board("two")
    agent.ask("lease", one.host)
    with pytest.raises(AgentFailure, match="give the lease back first"):
        agent.ask("power", {"name": "one", "reach": two.host["reach"]}, state="on")


def test_cancelled_acquisition_leaves_nothing(agent: RunningAgent, tmp_path: Path) -> None:
    trace = tmp_path / "slow.trace"
    config = {"trace": str(trace)}
    path = write_config(tmp_path / "slow.yaml", {"slow": {"type": "agent_test_drivers.SlowStart", "config": config}})
    host = {"name": "slow", "reach": {"exporter_config": str(path)}}
    with agent.request("lease", host):
        wait_until(lambda: trace.exists() and trace.read_text().endswith("\n"), 60, "driver starting")
        pid = int(trace.read_text())
    wait_until(lambda: not process_alive(pid), 60, "exporter of the cancelled acquisition gone")
    assert agent.ask("lease_info", host)["leased"] is False


def test_detached_lease_outlives_the_run_and_is_found_by_name(start_agent: Start, board: Board) -> None:
    first = start_agent()
    taken = first.ask("lease", board.host, lifetime="detached", name="bench", duration="10m")
    try:
        assert taken["changed"] is True
        assert taken["lease"]["reattached"] is False
        assert "name: bench" in taken["lease"]["reattach"]
        first.ask("power", board.host, state="on")
        first.playbook.kill()
        wait_until(first.gone, 60, "first agent gone")
        assert board.trace()[-1] == "on", "a detached lease keeps the device on"
        second = start_agent()
        found = second.ask("lease", board.host, lifetime="detached", name="bench")
        assert found["changed"] is False
        assert found["lease"]["reattached"] is True
        assert second.ask("power", board.host, state="status")["state"] == "on"
        # The far agent's events and byte streams come through as well.
        with second.request("stream", board.host, driver="worker") as stream:
            stream.answer()
            stream.socket.sendall(b"abc")
            assert stream.socket.recv(3) == b"ABC"
        third = start_agent()
        with pytest.raises(AgentFailure) as failure:
            third.ask("power", board.host, state="on")
        assert failure.value.code == "busy"
        assert "'bench'" in failure.value.message
    finally:
        last = start_agent()
        gone = last.ask("lease", board.host, state="absent", name="bench")
    assert gone["changed"] is True
    assert board.trace()[-1] == "off"
    assert last.ask("lease", board.host, state="absent", name="bench")["changed"] is False
    wait_until(lambda: not list(last.base.glob("d-*")), 60, "detached agent gone, and its lock file with it")


def test_detached_lease_needs_a_name(agent: RunningAgent, board: Board) -> None:
    with pytest.raises(AgentFailure, match="needs a name"):
        agent.ask("lease", board.host, lifetime="detached")


def test_detached_agent_that_gets_no_lease_does_not_stay(agent: RunningAgent, tmp_path: Path) -> None:
    host = {"name": "x", "reach": {"exporter_config": str(tmp_path / "missing.yaml")}}
    with pytest.raises(AgentFailure, match="missing.yaml"):
        agent.ask("lease", host, lifetime="detached", name="nothing")
    wait_until(lambda: not list(agent.base.glob("d-*/agent.sock")), 60, "detached agent gone")


def test_failed_run_keeps_the_device_for_inspection(start_agent: Start, board: Board, make_board: MakeBoard) -> None:
    healthy = make_board("healthy")
    first = start_agent()
    first.ask("lease", board.host, name="kept", hold_on_failure="10m")
    first.ask("lease", healthy.host, hold_on_failure="10m")
    first.ask("power", board.host, state="on")
    first.ask("power", healthy.host, state="on")
    first.ask("recording", board.host, event="task", data={"status": "failed"})
    end = first.ask("recording", None, event="run_end", data={"failed": True})
    assert [held["host"] for held in end["held"]] == [board.name]
    assert "name: kept" in end["held"][0]["reattach"]
    first.playbook.kill()
    wait_until(lambda: healthy.trace()[-1] == "off", 60, "the host that did not fail is given back")
    wait_until(lambda: list(first.base.glob("d-*/agent.sock")), 60, "the other is kept under its name")
    second = start_agent()
    found = second.ask("lease", board.host, lifetime="detached", name="kept")
    assert found["lease"]["reattached"] is True
    assert second.ask("power", board.host, state="status")["state"] == "on"
    assert board.trace() == ["on"]
    second.ask("lease", board.host, state="absent")
    assert board.trace()[-1] == "off"
    wait_until(lambda: first.process.poll() is not None, 60, "the agent that kept the device has ended")


def test_failed_operation_is_enough_where_no_callback_tells(start_agent: Start, board: Board) -> None:
    first = start_agent()
    first.ask("lease", board.host, name="kept", hold_on_failure="10m")
    first.ask("power", board.host, state="on")
    with pytest.raises(AgentFailure):
        first.ask("call", board.host, driver="worker", method="nope")
    first.playbook.kill()
    wait_until(lambda: list(first.base.glob("d-*/agent.sock")), 60, "kept under its name")
    second = start_agent()
    assert second.ask("lease", board.host, lifetime="detached", name="kept")["lease"]["reattached"] is True
    assert board.trace() == ["on"]
    second.ask("lease", board.host, state="absent")


def test_run_that_did_not_fail_keeps_nothing(agent: RunningAgent, board: Board) -> None:
    agent.ask("lease", board.host, hold_on_failure="10m")
    assert agent.ask("recording", None, event="run_end", data={"failed": False})["held"] == []
    agent.playbook.kill()
    wait_until(agent.gone, 60, "agent gone")
