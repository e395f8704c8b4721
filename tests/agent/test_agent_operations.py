# SPDX-License-Identifier: Apache-2.0
"""What tasks do with a device: power, calls, background work, streams, forwards; cancelled by hanging up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from agent_harness import AgentFailure, Board, RunningAgent, wait_until

from jumpstarter_agent.operations import BackgroundOperation
from jumpstarter_agent.recording import Recording


def test_power_is_idempotent_and_tells_before_and_after(agent: RunningAgent, board: Board) -> None:
    first = agent.ask("power", board.host, state="on", diff=True)
    assert (first["changed"], first["previous"], first["state"]) == (True, "off", "on")
    assert first["diff"] == {"before": "power: off\n", "after": "power: on\n"}
    assert agent.ask("power", board.host, state="on", diff=True) == {"changed": False, "previous": "on", "state": "on"}
    assert agent.ask("power", board.host, state="status")["state"] == "on"
    assert agent.ask("power", board.host, state="cycled", wait=0)["changed"] is True
    assert board.trace() == ["on", "off", "on"]


def test_of_tasks_that_switch_on_at_once_one_changes_something(agent: RunningAgent, board: Board) -> None:
    agent.ask("lease", board.host)
    with contextlib.ExitStack() as stack:
        asked = [stack.enter_context(agent.request("power", board.host, state="on")) for _ in range(8)]
        answers = [one.answer() for one in asked]
    assert sorted(answer["changed"] for answer in answers) == 7 * [False] + [True]
    assert board.trace() == ["on"]


@pytest.mark.parametrize(
    ("op", "args", "words"),
    [
        ("flash", {"src": "ftp://lab/disk.img"}, "only files, http://, https:// and oci://"),
        ("lease", {"duration": "0"}, "would end before the next task"),
    ],
)
def test_what_makes_no_sense_is_refused(
    agent: RunningAgent, board: Board, op: str, args: dict[str, Any], words: str
) -> None:
    with pytest.raises(AgentFailure, match=words):
        agent.ask(op, board.host, **args)


def test_the_message_of_a_task_with_no_log_is_not_recorded(agent: RunningAgent, board: Board) -> None:
    recording = Path(agent.ask("lease", board.host)["lease"]["recording_dir"])
    with pytest.raises(AgentFailure, match="s3cret"):
        agent.ask("power", board.host, driver="s3cret", task={"name": "Quiet", "no_log": True})
    events = (recording / "events.jsonl").read_text()
    assert "s3cret" not in events and "hidden by no_log" in events


def test_no_file_names_a_lease_as_its_task_does(agent: RunningAgent, board: Board) -> None:
    recording = Path(agent.ask("lease", board.host, name="s3cret", task={"no_log": True})["lease"]["recording_dir"])
    agent.ask("lease", board.host, state="absent")
    events = (recording / "events.jsonl").read_text()
    assert '"held"' in events and '"ended"' in events and "s3cret" not in events


@pytest.mark.parametrize("name", ["report.html", "junit.xml"])
def test_a_host_named_like_a_report_has_a_directory_of_another_name(tmp_path: Path, name: str) -> None:
    recording = Recording(tmp_path)
    assert recording.directory(name).name not in (name, recording.directory(f"{name}_").name)
    assert recording.directory("dut.html").name == "dut.html"


def test_power_check_mode_touches_nothing(agent: RunningAgent, board: Board) -> None:
    assert agent.ask("power", board.host, state="on", check=True)["changed"] is True
    assert agent.ask("power", board.host, state="off", check=True)["changed"] is False
    assert agent.ask("power", board.host, state="cycled", check=True)["changed"] is True
    assert board.trace() == []


def test_power_of_a_driver_that_cannot_tell_always_acts(agent: RunningAgent, board: Board) -> None:
    for _ in range(2):
        value = agent.ask("power", board.host, driver="old_power", state="on")
        assert (value["changed"], value["previous"]) == (True, "unknown")
    assert board.trace() == ["on", "on"]


def test_driver_that_is_no_supply_is_refused(agent: RunningAgent, board: Board) -> None:
    with pytest.raises(AgentFailure, match="is no power driver"):
        agent.ask("power", board.host, driver="worker", state="on")


def test_call_keeps_types_and_takes_names(agent: RunningAgent, board: Board) -> None:
    def call(method: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return agent.ask("call", board.host, driver="worker", method=method, args=list(args), kwargs=kwargs)

    assert call("add", 2, right=3) == {"changed": False, "value": 5}
    assert call("add", left=2)["value"] == 3
    nested = {"a": [1, 2.5, None, True, "x"], "b": {"c": []}}
    assert call("echo", nested) == {"changed": True, "value": nested}
    assert call("data")["value"] == {"base64": "AP8="}
    assert call("echo", {"base64": "AP8="})["value"] == {"base64": "AP8="}


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ({"driver": "nope", "method": "on"}, "not_found", ['"nope"', "old_power", "power", "worker"]),
        ({"driver": "worker", "method": "nope"}, "not_found", ["'nope'", "add, connect, data, echo, listen, work"]),
        ({"driver": "worker", "method": "connect"}, "invalid", ["byte stream", "forward"]),
        ({"driver": "worker", "method": "add", "args": ["x"]}, "invalid", ["add", '"left"', "'x'"]),
        ({"driver": "worker", "method": "add"}, "invalid", ["add", "left"]),
        ({"driver": "worker", "method": "add", "args": [1], "kwargs": {"nope": 1}}, "invalid", ["add", "nope"]),
        ({"driver": "worker", "method": "add", "args": {}}, "invalid", ["'args'", "a list"]),
        ({"driver": "worker", "method": "add", "nope": 1}, "invalid", ["unknown argument 'nope'"]),
        ({"driver": "worker"}, "invalid", ["'method' is missing"]),
    ],
)
def test_wrong_calls_say_what_would_be_right(
    agent: RunningAgent, board: Board, args: dict[str, Any], code: str, words: list[str]
) -> None:
    with pytest.raises(AgentFailure) as failure:
        agent.ask("call", board.host, **args)
    assert failure.value.code == code
    assert failure.value.message.startswith("board-1: call: ")
    for word in words:
        assert word in failure.value.message


def test_check_mode_calls_only_what_changes_nothing(agent: RunningAgent, board: Board) -> None:
    assert agent.ask("call", board.host, driver="worker", method="add", args=[1], check=True)["value"] == 2
    value = agent.ask("call", board.host, driver="power", method="on", check=True)
    assert value == {"changed": True, "value": None, "simulated": True}
    assert board.trace() == []


def test_hanging_up_cancels_the_driver_call(agent: RunningAgent, board: Board) -> None:
    with agent.request("call", board.host, driver="worker", method="work", args=[600]):
        wait_until(lambda: board.said("work started"), 60, "call running")
    wait_until(lambda: board.said("work cancelled"), 60, "driver call cancelled")
    assert agent.ask("call", board.host, driver="worker", method="add", args=[1])["value"] == 2


def test_background_work_is_watched_waited_for_and_cancelled(agent: RunningAgent, board: Board) -> None:
    def start(seconds: float) -> dict[str, Any]:
        value = agent.ask("call", board.host, driver="worker", method="work", args=[seconds], wait=False)
        operation: dict[str, Any] = value["operation"]
        return operation

    long = start(600)
    assert long["state"] == "running"
    wait_until(lambda: board.said("work started"), 60, "work running although its request is over")
    with pytest.raises(AgentFailure) as failure:
        agent.ask("operation", None, id=long["id"], state="wait", timeout="100ms")
    assert failure.value.code == "timeout"
    assert agent.ask("operation", None, id=long["id"], state="cancel", check=True)["changed"] is False
    assert agent.ask("operation", None, id=long["id"], state="cancel")["operation"]["state"] == "canceled"
    wait_until(lambda: board.said("work cancelled"), 60, "driver call cancelled")
    assert agent.ask("operation", None, id=long["id"], state="cancel")["changed"] is False
    with pytest.raises(AgentFailure, match=r"\[canceled\]"):
        agent.ask("operation", None, id=long["id"], state="wait")
    short = start(0)
    done = agent.ask("operation", None, id=short["id"], state="wait")
    assert (done["value"], done["operation"]["state"]) == ("done", "succeeded")
    with pytest.raises(AgentFailure, match=r"no operation 'nope'.*call-1"):
        agent.ask("operation", None, id="nope")


def test_work_that_is_cancelled_before_it_began_is_cancelled() -> None:
    async def body() -> None:
        ran: list[str] = []

        async def work() -> None:
            ran.append("begun")

        async def keep(event: str, data: dict[str, Any]) -> None:
            ran.append(event)

        operation = BackgroundOperation("call-1", "call", "board-1")
        operation.start(work())
        async with asyncio.timeout(60):
            await operation.cancel()
            await operation.wait(keep)
        assert (operation.state, operation.error and operation.error.code, ran) == ("canceled", "canceled", [])

    asyncio.run(body())


def test_stream_passes_bytes_and_half_close_both_ways(agent: RunningAgent, board: Board) -> None:
    with agent.request("stream", board.host, driver="worker") as stream:
        assert stream.answer() == {"driver": "worker", "method": "connect"}
        stream.socket.sendall(b"hello")
        assert stream.socket.recv(5) == b"HELLO"
        stream.socket.shutdown(socket.SHUT_WR)
        assert stream.socket.recv(100) == b"<eof>"
        assert stream.socket.recv(100) == b""
    wait_until(lambda: board.said("stream closed"), 60, "driver stream closed")


def test_stream_of_a_client_that_vanishes_is_closed(agent: RunningAgent, board: Board) -> None:
    with agent.request("stream", board.host, driver="worker", method="listen") as stream:
        stream.answer()
        assert stream.socket.recv(5) == b"hello"
        stream.socket.shutdown(socket.SHUT_WR)
        assert not board.said("stream closed"), "who stops sending may still listen"
    wait_until(lambda: board.said("stream closed"), 60, "driver stream closed")


def test_proxy_carries_stdin_and_stdout_without_importing_grpc(agent: RunningAgent, board: Board) -> None:
    agent.ask("lease", board.host)
    proxy = Path(sys.modules["jumpstarter_agent"].__path__[0]) / "proxy.py"
    options = ["--socket", str(agent.socket), "--host", board.name, "--driver", "worker"]
    data = b"a" * 300_000
    for command in ([sys.executable, "-I", "-S", str(proxy)], [sys.executable, "-m", "jumpstarter_agent.proxy"]):
        run = subprocess.run([*command, *options], input=data, capture_output=True, timeout=60, check=False)
        assert (run.returncode, run.stderr) == (0, b"")
        assert run.stdout == data.upper() + b"<eof>"
    imported = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "jumpstarter_agent.proxy", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stderr
    assert "grpc" not in imported
    assert "asyncio" not in imported


def test_proxy_says_in_one_line_why_it_cannot(agent: RunningAgent, board: Board, tmp_path: Path) -> None:
    def run(socket_path: Path, host: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "jumpstarter_agent.proxy", "--socket", str(socket_path), "--host", host]
        done = subprocess.run(command, input=b"", capture_output=True, timeout=60, check=False)
        return done.returncode, done.stderr.decode()

    status, text = run(tmp_path / "none.sock", "x")
    assert status == 255
    assert "none.sock: No such file" in text
    assert text.count("\n") == 1
    status, text = run(agent.socket, "stranger")
    assert status == 255
    assert "stranger: stream: stranger holds no lease" in text
    agent.ask("lease", board.host)
    status, text = run(agent.socket, board.name)
    assert status == 255
    assert 'has no driver "ssh"' in text


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_forward_is_idempotent_and_ends_with_the_lease(agent: RunningAgent, board: Board, kind: str) -> None:
    first = agent.ask("forward", board.host, driver="worker", kind=kind)
    again = agent.ask("forward", board.host, driver="worker", kind=kind)
    assert (first["changed"], again["changed"]) == (True, False)
    assert first["address"] == again["address"]

    def connect() -> socket.socket:
        client = socket.socket(socket.AF_INET if kind == "tcp" else socket.AF_UNIX)
        client.settimeout(60)
        client.connect((first["host"], first["port"]) if kind == "tcp" else first["path"])
        return client

    with connect() as one, connect() as two:
        one.sendall(b"one")
        two.sendall(b"two")
        assert (one.recv(3), two.recv(3)) == (b"ONE", b"TWO")
        one.shutdown(socket.SHUT_WR)
        assert one.recv(100) == b"<eof>"
    assert agent.ask("forward", board.host, driver="worker", kind=kind, state="absent")["changed"] is True
    with pytest.raises(OSError):
        connect()
    agent.ask("forward", board.host, driver="worker", kind=kind)
    agent.ask("lease", board.host, state="absent")
    assert agent.ask("forward", board.host, state="info")["forwards"] == []


def test_forward_to_something_that_is_no_stream_is_refused(agent: RunningAgent, board: Board) -> None:
    with pytest.raises(AgentFailure, match="has no byte stream 'connect'"):
        agent.ask("forward", board.host, driver="power")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(AgentFailure, match="cannot listen on 127.0.0.1"):
            agent.ask("forward", board.host, driver="worker", port=taken.getsockname()[1])


def test_jumpstarter_host_serves_the_ordinary_client_inside_the_run(agent: RunningAgent, board: Board) -> None:
    path = agent.ask("lease", board.host)["lease"]["jumpstarter_host"]
    script = (
        "import asyncio, sys\n"
        "from jumpstarter.client.aio import connect\n"
        "async def main():\n"
        "    async with connect(sys.argv[1]) as session:\n"
        "        print(await session.node('worker').call('add', 40, 2))\n"
        "asyncio.run(main())\n"
    )
    run = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=60, check=False)
    assert run.stdout == "42\n", run.stderr


def test_recording_collects_what_happens_and_moves_to_the_report(
    agent: RunningAgent, board: Board, tmp_path: Path
) -> None:
    report = tmp_path / "report"
    agent.ask("recording", None, event="run_start", data={"dir": str(report)})
    agent.ask("power", board.host, state="on")
    value = agent.ask("recording", board.host, event="task", data={"task": "Switch on", "status": "changed"})
    assert value["recording_dirs"] == {board.name: str(report / board.name)}
    agent.playbook.kill()
    wait_until(agent.gone, 60, "agent gone")
    events = [json.loads(line) for line in (report / board.name / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["acquiring", "held", "operation", "task", "ended"]
    assert (events[2]["op"], events[2]["changed"]) == ("power", True)
    assert events[3]["task"] == "Switch on"
    assert abs(events[0]["t"] - time.time()) < 300
