# SPDX-License-Identifier: GPL-3.0-or-later
"""The console connection: what it asks the agent for, and what Ansible makes of its answers."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playing import Stage


def answer(rc: int = 0, stdout: bytes = b"", stderr: bytes = b"") -> list[dict[str, Any]]:
    out, err = base64.b64encode(stdout).decode(), base64.b64encode(stderr).decode()
    return [{"result": {"rc": rc, "stdout_b64": out, "stderr_b64": err}}]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    (tmp_path / "board.yaml").write_text("a: board\n")
    stage = Stage(tmp_path, {"dut1": {"jumpstarter_exporter_config": "board.yaml"}})
    yield stage
    stage.close()


def test_raw_gives_exit_status_stdout_and_stderr_apart(stage: Stage) -> None:
    stage.fake_agent({"console_exec": answer(3, b"out\xc3\xa9\n", b"err\n")})
    raw = {"name": "Ask", "ansible.builtin.raw": "uname -r", "failed_when": False, "changed_when": False}
    result = stage.run([raw]).result("dut1")
    assert (result["rc"], result["stdout"], result["stderr"]) == (3, "outé\n", "err\n")
    (frame,) = stage.asked("console_exec")
    assert frame["args"] == {"driver": "console", "cmd": "uname -r", "timeout": 600.0}
    assert frame["host"]["name"] == "dut1" and frame["check"] is False


def test_wrong_phase_makes_the_host_unreachable_with_the_reason(stage: Stage) -> None:
    message = "dut1: console_exec: a command needs the shell phase, the console is in phase bootloader; boot it first"
    stage.fake_agent({"console_exec": [{"error": {"code": "wrong_phase", "message": message}}]})
    played = stage.run([{"name": "Ask", "ansible.builtin.raw": "true"}])
    assert played.rc == 4
    assert played.result("dut1")["outcome"] == "unreachable"
    assert message in played.result("dut1")["msg"]
    assert "Traceback" not in played.output


def test_other_errors_fail_the_task_and_keep_the_host(stage: Stage) -> None:
    message = "dut1: console_exec: no answer within 5 s"
    stage.fake_agent({"console_exec": [{"error": {"code": "timeout", "message": message}}]})
    played = stage.run([{"name": "Ask", "ansible.builtin.raw": "true"}])
    assert (played.rc, played.result("dut1")["outcome"]) == (2, "failed")
    assert message in played.result("dut1")["msg"]


def test_script_is_put_on_the_device_and_run_there(stage: Stage) -> None:
    (stage.folder / "hello.sh").write_text("#!/bin/sh\necho hello\n")
    stage.fake_agent({"console_exec": answer(0, b"/tmp/x\n")})
    played = stage.run([{"name": "Run", "ansible.builtin.script": "hello.sh"}])
    assert played.rc == 0, played.output
    (put,) = stage.asked("console_put")
    assert put["args"]["dest"].endswith("hello.sh") and put["args"]["allow_slow"] is False
    assert any("hello.sh" in frame["args"]["cmd"] for frame in stage.asked("console_exec"))


def test_options_come_from_variables(stage: Stage) -> None:
    stage.fake_agent({"console_exec": answer()})
    variables = {"jumpstarter_console_driver": "uart1", "jumpstarter_console_timeout": "2m"}
    stage.run([{"name": "Ask", "ansible.builtin.raw": "true", "vars": variables}])
    assert stage.asked("console_exec")[0]["args"] == {"driver": "uart1", "cmd": "true", "timeout": 120.0}


def test_modules_are_fed_on_standard_input(stage: Stage) -> None:
    stage.fake_agent({"console_exec": answer(0, b'{"ping": "pong"}')})
    variables = {"ansible_python_interpreter": "/usr/bin/python3"}
    played = stage.run([{"name": "Ping", "ansible.builtin.ping": {}, "vars": variables}])
    assert played.rc == 0, played.output
    (frame,) = stage.asked("console_exec")
    assert b"ANSIBALLZ" in base64.b64decode(frame["args"]["in_data_b64"])


def test_reset_connection_and_wait_for_connection_reach_the_agent(stage: Stage) -> None:
    stage.fake_agent({"console_exec": answer(0, b'{"ping": "pong"}')})
    variables = {"ansible_python_interpreter": "/usr/bin/python3"}
    tasks: list[dict[str, Any]] = [
        {"name": "Reset", "ansible.builtin.meta": "reset_connection"},
        {"name": "Wait", "ansible.builtin.wait_for_connection": {"timeout": 5}, "vars": variables},
    ]
    played = stage.run(tasks)
    assert played.rc == 0, played.output
    assert len(stage.asked("console_reset")) == 2  # wait_for_connection resets once more
    assert stage.asked("console_exec")[0]["args"]["cmd"] == ":"


def test_host_without_a_reach_says_which_variables_there_are(stage: Stage) -> None:
    stage.fake_agent({})
    played = stage.run([{"name": "Ask", "ansible.builtin.raw": "true", "vars": {"jumpstarter_exporter_config": ""}}])
    assert "no host variable says how the board is reached" in played.result("dut1")["msg"]
