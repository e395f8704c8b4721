# SPDX-License-Identifier: Apache-2.0
"""Console operations through the agent: a real exporter, its serial driver, and a shell at the other end."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_harness import AgentFailure, RunningAgent, wait_until, write_config


class ConsoleBoard:
    """A host whose console leads to a shell on this machine."""

    def __init__(self, agent: RunningAgent, base: Path) -> None:
        self.agent = agent
        self.line = base / "serial.sock"
        serial = {"type": "jumpstarter_driver_pyserial.driver.PySerial"}
        config = {"url": f"unix-listen://{self.line}", "check_present": False}
        self.config = write_config(base / "console.yaml", {"console": {**serial, "config": config}})
        self.host = {"name": "console-1", "reach": {"exporter_config": str(self.config)}}
        self.lease = agent.ask("lease", self.host)["lease"]
        wait_until(self.line.exists, 60, "the serial driver listens")
        # The agent reads from now on: it opens the console beside the lease, and what came before is not in its log.
        self.ask("console", action="log")
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("shell_on_socket.py")), self.line]
        )
        wait_until(lambda: "board#" in self.ask("console", action="log")["log"], 60, "prompt of the shell")

    def ask(self, op: str, **args: Any) -> dict[str, Any]:
        return self.agent.ask(op, self.host, **args)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


@pytest.fixture
def console(agent: RunningAgent, base: Path) -> Iterator[ConsoleBoard]:
    board = ConsoleBoard(agent, base)
    yield board
    board.close()


def decoded(value: dict[str, Any]) -> tuple[int, bytes, bytes]:
    return value["rc"], base64.b64decode(value["stdout_b64"]), base64.b64decode(value["stderr_b64"])


def test_commands_files_and_text_over_the_console(console: ConsoleBoard, tmp_path: Path) -> None:
    assert console.ask("boot", until="shell", power_cycle=False, timeout=60)["phase"] == "shell"
    rc, out, err = decoded(console.ask("console_exec", cmd="printf 'a\\0b'; echo no >&2; exit 7"))
    assert (rc, out, err) == (7, b"a\0b", b"no\n")
    data = base64.b64encode(b"from stdin").decode()
    assert decoded(console.ask("console_exec", cmd="cat", in_data_b64=data)) == (0, b"from stdin", b"")
    local, remote, back = tmp_path / "local", tmp_path / "remote", tmp_path / "back"
    local.write_bytes(os.urandom(3000))
    first = console.ask("copy_to", src=str(local), dest=str(remote), mode="0640")
    assert (first["changed"], first["size"]) == (True, 3000)
    assert remote.read_bytes() == local.read_bytes()
    assert remote.stat().st_mode & 0o777 == 0o640
    assert console.ask("copy_to", src=str(local), dest=str(remote), mode="0640")["changed"] is False
    assert console.ask("copy_from", src=str(remote), dest=str(back))["changed"] is True
    assert back.read_bytes() == local.read_bytes()
    found = console.ask("console", action="expect", send="echo $((40+2))", pattern=r"\b(42)\r?$", timeout=60)
    assert (found["match"].strip(), found["groups"], found["changed"]) == ("42", ["42"], True)
    assert "42" in console.ask("console", action="log")["log"]
    log = Path(console.lease["recording_dir"]) / "console.log"
    assert "board#" in log.read_text()


def test_text_that_does_not_come_is_a_timeout_with_the_last_lines(console: ConsoleBoard) -> None:
    console.ask("console", action="expect", send="echo he''re", pattern="here", timeout=60)
    with pytest.raises(AgentFailure) as failure:
        console.ask("console", action="expect", pattern="never said", timeout="200ms")
    assert failure.value.code == "timeout"
    assert failure.value.message.startswith("console-1: console: ")
    assert "never said" in failure.value.message


def test_check_mode_types_nothing(console: ConsoleBoard) -> None:
    assert console.ask("console", action="send", send="echo unwanted", check=True)["simulated"] is True
    assert "unwanted" not in console.ask("console", action="log")["log"]


def test_attached_client_sees_and_types_raw_bytes(console: ConsoleBoard) -> None:
    with console.agent.request("console_attach", console.host) as attached:
        attached.answer()
        attached.socket.sendall(b"echo raw$((1+1))\r")
        seen = b""
        while b"raw2" not in seen:
            piece = attached.socket.recv(4096)
            assert piece
            seen += piece
    assert decoded(console.ask("console_exec", cmd="echo after"))[1] == b"after\n"


def test_hanging_up_interrupts_the_command_on_the_device(console: ConsoleBoard, tmp_path: Path) -> None:
    started = tmp_path / "started"
    with console.agent.request("console_exec", console.host, cmd=f"touch {started}; sleep 600"):
        wait_until(started.exists, 60, "command running on the device")
    assert decoded(console.ask("console_exec", cmd="echo free", timeout=60))[1] == b"free\n"


def test_password_reaches_neither_log_nor_recording(console: ConsoleBoard) -> None:
    console.ask("console", action="send", send="hunter2", secret=True)
    console.ask("console", action="expect", send="echo do''ne", pattern="done", timeout=60)
    directory = Path(console.lease["recording_dir"])
    for path in [console.agent.log_path, *directory.iterdir()]:
        assert "hunter2" not in path.read_text()
