# SPDX-License-Identifier: GPL-3.0-or-later
"""What actions ask the agent for, and what becomes of its answers: real ansible-playbook, fake agent."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playing import Stage

TASK = {"name": "Do it"}


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    (tmp_path / "board.yaml").write_text("a: board\n")
    (tmp_path / "image.img").write_bytes(b"image")
    stage = Stage(tmp_path, {"dut1": {"jumpstarter_exporter_config": "board.yaml"}})
    yield stage
    stage.close()


def test_request_has_what_the_contract_says(stage: Stage) -> None:
    stage.fake_agent({})
    played = stage.run([{**TASK, "jumpstarter.lab.power": {"state": "cycled", "wait": "1m"}}], "--diff")
    assert played.rc == 0, played.output
    (frame,) = stage.asked("power")
    uuid = frame["task"].pop("uuid")
    assert len(uuid) > 20
    assert len(frame["task"].pop("play_uuid")) > 20
    assert frame == {
        "v": 1,
        "op": "power",
        "host": {"name": "dut1", "reach": {"exporter_config": str(stage.folder / "board.yaml")}, "lease": {}},
        "args": {"driver": "power", "state": "cycled", "wait": 60.0},
        "check": False,
        "diff": True,
        "task": {"name": "Do it", "play": "duts", "no_log": False},
    }


def test_yaml_booleans_are_understood_as_power_states(stage: Stage) -> None:
    stage.fake_agent({})
    assert stage.run([{**TASK, "jumpstarter.lab.power": {"state": True}}]).rc == 0
    assert stage.asked("power")[0]["args"]["state"] == "on"


def test_check_mode_is_passed_on(stage: Stage) -> None:
    stage.fake_agent({})
    stage.run([{**TASK, "jumpstarter.lab.power": {}}], "--check")
    assert stage.asked("power")[0]["check"] is True


def test_result_fields_are_flat_and_diff_only_comes_when_asked_for(stage: Stage) -> None:
    stage.fake_agent(
        {"power": [{"result": {"changed": True, "state": "on", "diff": {"before": "off", "after": "on"}}}]}
    )
    plain = stage.run([{**TASK, "jumpstarter.lab.power": {}}]).result("dut1")
    assert (plain["changed"], plain["state"]) == (True, "on")
    assert "diff" not in plain
    assert stage.run([{**TASK, "jumpstarter.lab.power": {}}], "--diff").result("dut1")["diff"]["after"] == "on"


def test_error_of_the_agent_is_the_message_word_for_word(stage: Stage) -> None:
    message = "dut1: boot: no shell after 2 s (exporter board.yaml)"
    stage.fake_agent({"boot": [{"error": {"code": "timeout", "message": message, "data": {"console_tail": "login:"}}}]})
    played = stage.run([{**TASK, "jumpstarter.lab.boot": {}}])
    result = played.result("dut1")
    assert (result["msg"], result["error_code"], result["console_tail"]) == (message, "timeout", "login:")
    assert (result["outcome"], result["changed"]) == ("failed", False)
    assert "Traceback" not in played.output


def test_agent_that_dies_in_the_task_is_one_clear_line(stage: Stage) -> None:
    stage.fake_agent({"boot": [{"event": "phase", "data": {"text": "kernel"}}, {"die": True}]})
    played = stage.run([{**TASK, "jumpstarter.lab.boot": {}}])
    result = played.result("dut1")
    assert result["error_code"] == "agent_lost"
    assert result["msg"].startswith("dut1: boot: the session agent ended before it answered")
    assert "agent.log" in result["msg"] and "\n" not in result["msg"]
    assert "Traceback" not in played.output


def test_agent_that_died_between_tasks_is_replaced_with_a_warning(stage: Stage) -> None:
    stage.fake_agent({"boot": [{"die": True}]})
    played = stage.run(
        [
            {**TASK, "jumpstarter.lab.boot": {}, "ignore_errors": True},
            {"name": "Go on", "jumpstarter.lab.power": {}},
        ]
    )
    assert played.rc == 0, played.output
    assert "session agent of this run has died" in " ".join(played.output.split())
    assert len(stage.asked("start")) == 2


def test_agent_that_does_not_start_says_why(stage: Stage) -> None:
    stage.fake_agent({"start": "fail"})
    result = stage.run([{**TASK, "jumpstarter.lab.power": {}}]).result("dut1")
    assert "does not start: the fake agent does not want to start" in result["msg"]
    assert "jumpstarter-lab" in result["msg"]


@pytest.mark.parametrize(
    ("raw", "words"),
    [("this is no json", "not JSON"), ("[1]", "not an object"), ('{"type": "surprise"}', "unknown type")],
)
def test_nonsense_from_the_agent_is_an_error_not_a_traceback(stage: Stage, raw: str, words: str) -> None:
    stage.fake_agent({"power": [{"raw": raw}]})
    played = stage.run([{**TASK, "jumpstarter.lab.power": {}}])
    assert words in played.result("dut1")["msg"]
    assert "Traceback" not in played.output


def test_ten_hosts_start_one_agent(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(*(f"dut{n}" for n in range(10)))
    stage.fake_agent({})
    played = stage.run([{**TASK, "jumpstarter.lab.power": {}}], "--forks", "10")
    assert played.rc == 0, played.output
    assert len(stage.asked("start")) == 1
    assert len(stage.asked("power")) == 10


def test_the_agent_watches_ansible_playbook_itself_and_no_worker(stage: Stage) -> None:
    stage.fake_agent({})
    playbook = stage.write([{"hosts": "duts", "gather_facts": False, "tasks": [{**TASK, "jumpstarter.lab.power": {}}]}])
    process = stage.start(playbook)
    process.communicate(timeout=120)
    assert stage.asked("start")[0]["watch_pid"] == process.pid


def test_task_timeout_closes_the_connection(stage: Stage) -> None:
    stage.fake_agent({"boot": [{"hang": True}]})
    played = stage.run([{**TASK, "jumpstarter.lab.boot": {}, "timeout": 1}])
    assert "timeout" in played.result("dut1")["msg"].lower() or "timed out" in played.output.lower()
    deadline = time.monotonic() + 60
    while not stage.asked("gone") and time.monotonic() < deadline:
        time.sleep(0.02)  # the agent may be a little slower than the play
    assert stage.asked("gone") == [{"op": "gone", "during": "boot"}]


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_ended_playbook_closes_the_connection(stage: Stage, sig: signal.Signals) -> None:
    stage.fake_agent({"boot": [{"event": "phase", "data": {"text": "kernel started"}}, {"hang": True}]})
    playbook = stage.write([{"hosts": "duts", "gather_facts": False, "tasks": [{**TASK, "jumpstarter.lab.boot": {}}]}])
    process = stage.start(playbook)
    assert process.stdout is not None
    for line in process.stdout:
        if "kernel started" in line:  # shown live, while the task works
            break
    os.killpg(process.pid, sig)
    process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while list(stage.runtime.glob("*/r-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(stage.runtime.glob("*/*")) == []


def test_progress_is_shown_and_no_log_hides_it(stage: Stage) -> None:
    steps = [{"event": "note", "data": {"text": "42 % of the image"}}, {"result": {"changed": True}}]
    stage.fake_agent({"flash": steps})
    task: dict[str, Any] = {**TASK, "jumpstarter.lab.flash": {"src": "image.img"}}
    assert "dut1 | 42 % of the image" in stage.run([task]).stdout
    assert "42 %" not in stage.run([{**task, "no_log": True}]).stdout
    assert all("progress" not in frame["args"] for frame in stage.asked("flash"))  # ours, and nothing to the agent


def test_a_failing_no_log_task_does_not_quote_its_arguments(stage: Stage) -> None:
    refusal = {"code": "not_found", "message": "dut1: power: no driver s3cret", "data": {"recording_dir": "/var/rec"}}
    stage.fake_agent({"power": [{"error": refusal}]})
    quiet = {**TASK, "no_log": True}
    played = stage.run([{**quiet, "jumpstarter.lab.power": {"driver": "s3cret"}}])
    assert "dut1: power: failed with not_found; the details are hidden by no_log" in played.output
    assert "/var/rec" in played.output and "s3cret" not in played.output
    played = stage.run([{**quiet, "jumpstarter.lab.power": {"state": "s3cret"}}])
    assert "dut1: power: its options are not valid" in played.output and "s3cret" not in played.output


def test_image_is_found_beside_the_playbook_and_missing_one_is_named(stage: Stage) -> None:
    stage.fake_agent({})
    assert stage.run([{**TASK, "jumpstarter.lab.flash": {"src": "image.img"}}]).rc == 0
    assert stage.asked("flash")[0]["args"]["src"] == str(stage.folder / "image.img")
    result = stage.run([{**TASK, "jumpstarter.lab.flash": {"src": "none.img"}}]).result("dut1")
    assert result["msg"] == "dut1: flash: image none.img is not there; nothing was changed"


def test_image_address_is_passed_on_as_it_is(stage: Stage) -> None:
    stage.fake_agent({})
    stage.run([{**TASK, "jumpstarter.lab.flash": {"src": "https://example.org/i.img"}}])
    assert stage.asked("flash")[0]["args"]["src"] == "https://example.org/i.img"


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"jumpstarter.lab.power": {"state": "sideways"}}, "state must be one of"),
        ({"jumpstarter.lab.power": {"stat": "on"}}, "Unsupported parameters"),
        ({"jumpstarter.lab.flash": {}}, "missing required arguments: src"),
        ({"jumpstarter.lab.boot": {"timeout": "soon"}}, 'timeout is "soon"'),
        ({"jumpstarter.lab.console": {}}, "action is expect but all of the following are missing: pattern"),
        ({"jumpstarter.lab.lease": {"lifetime": "detached"}}, "missing: name"),
        ({"jumpstarter.lab.storage": {}}, "one of the following is required: state, dump"),
        ({"jumpstarter.lab.power": {}, "async": 10, "poll": 1}, "does not support async"),
    ],
)
def test_bad_options_fail_before_an_agent_is_started(stage: Stage, task: dict[str, Any], words: str) -> None:
    stage.fake_agent({})
    played = stage.run([{**TASK, **task}])
    assert words in played.result("dut1")["msg"]
    assert stage.asked() == []


def test_delegated_task_acts_on_the_other_host(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage("one", "two")
    stage.fake_agent({"console_exec": [{"result": {"rc": 0, "stdout_b64": "aGkK", "stderr_b64": ""}}]})
    tasks: list[dict[str, Any]] = [
        {**TASK, "jumpstarter.lab.power": {}, "delegate_to": "two"},
        {"name": "Say", "ansible.builtin.raw": "hi", "delegate_to": "two"},
    ]
    played = stage.run(tasks, "--limit", "one")
    assert played.rc == 0, played.output
    for op in ("power", "console_exec"):
        host = stage.asked(op)[0]["host"]
        assert host["name"] == "two" and host["reach"]["exporter_config"].endswith("two.yaml")


def test_lease_publishes_connection_variables_for_later_tasks(stage: Stage) -> None:
    facts = {"ansible_host": "dut1.lab", "ansible_ssh_common_args": "-o ProxyCommand=x", "board": "virt"}
    stage.fake_agent({"lease": [{"result": {"changed": True, "lease": {"name": "l"}, "ansible_facts": facts}}]})
    played = stage.run(
        [
            {**TASK, "jumpstarter.lab.lease": {}},
            {"name": "See", "ansible.builtin.debug": {"msg": "{{ ansible_host }} {{ ansible_ssh_common_args }}"}},
            {"name": "See", "ansible.builtin.debug": {"msg": "{{ ansible_facts.board }}"}},
        ]
    )
    assert played.rc == 0, played.output
    assert played.result("dut1", 1)["msg"] == "dut1.lab -o ProxyCommand=x"
    assert played.result("dut1", 2)["msg"] == "virt"
    assert "restricted key" not in played.output


def test_delegated_lease_publishes_to_the_device_and_not_to_the_host_of_the_play(
    make_stage: Callable[..., Stage],
) -> None:
    stage = make_stage("one", "two")
    facts = {"ansible_host": "two.lab"}
    stage.fake_agent({"lease": [{"result": {"changed": True, "lease": {"name": "l"}, "ansible_facts": facts}}]})
    tasks: list[dict[str, Any]] = [
        {**TASK, "jumpstarter.lab.lease": {}, "delegate_to": "two"},
        {
            "name": "See",
            "ansible.builtin.debug": {"msg": "{{ ansible_host }} {{ hostvars.two.ansible_host | default('none') }}"},
        },
    ]
    played = stage.run(tasks, "--limit", "one")
    assert played.rc == 0, played.output
    assert played.result("one", 1)["msg"] == "one two.lab"
