# SPDX-License-Identifier: Apache-2.0
"""The socket takes requests of its own user only, and no input brings the agent down."""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from agent_harness import AgentFailure, RunningAgent, wait_until

FOREIGN_CLIENT = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
with socket.socket(socket.AF_UNIX) as s:
    s.connect(sys.argv[1])
    body = b'{"v": 1, "op": "ping"}'
    try:
        s.sendall(len(body).to_bytes(4, "big") + body)
    except BrokenPipeError:
        pass
    sys.stdout.buffer.write(s.recv(65536))
"""


def send_raw(agent: RunningAgent, data: bytes) -> dict[str, object]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(agent.socket))
        client.sendall(data)
        header = client.recv(4, socket.MSG_WAITALL)
        reply: dict[str, object] = json.loads(client.recv(int.from_bytes(header, "big"), socket.MSG_WAITALL))
        assert client.recv(1) == b"", "the connection is closed after the refusal"
        return reply


def framed(text: str) -> bytes:
    return len(text.encode()).to_bytes(4, "big") + text.encode()


def test_socket_and_directory_are_private(agent: RunningAgent) -> None:
    assert stat.S_IMODE(agent.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(agent.socket.stat().st_mode) == 0o600


def test_foreign_user_is_refused_even_when_it_reaches_the_socket(agent: RunningAgent, base: Path) -> None:
    if os.getuid() != 0:
        # Only root can become somebody else; for everybody else the check itself is asked.
        check_uid_by_hand(agent)
        return
    for path, mode in ((base, 0o755), (agent.directory, 0o755), (agent.socket, 0o666)):
        path.chmod(mode)
    run = subprocess.run(
        ["/usr/bin/env", "python3", "-I", "-S", "-c", FOREIGN_CLIENT, str(agent.socket)],
        capture_output=True,
        timeout=30,
        check=False,
    )
    reply = json.loads(run.stdout[4:] or b"null")
    assert reply is not None, run.stderr.decode()
    assert reply["error"]["code"] == "refused"
    assert "uid 65534" in reply["error"]["message"]
    assert agent.ask("ping")["changed"] is False


def check_uid_by_hand(agent: RunningAgent) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(agent.socket))
        pid, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        assert (pid, uid) == (agent.process.pid, os.getuid())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ((1 << 31).to_bytes(4, "big"), "over the limit"),
        (framed("{not json"), "not UTF-8 JSON"),
        (b"\x00\x00\x00\x02\xff\xfe", "not UTF-8 JSON"),
        (framed("[1, 2]"), "not an object"),
        (framed("[" * 100_000), "not UTF-8 JSON"),
        (framed('{"v": 2, "op": "ping"}'), "protocol version 2"),
        (framed('{"v": 1}'), "'op'"),
        (framed('{"v": 1, "op": "nonsense"}'), "unknown operation 'nonsense'"),
        (framed('{"v": 1, "op": "ping", "extra": 1}'), "'extra'"),
        (framed('{"v": 1, "op": "ping", "args": []}'), "'args'"),
        (framed('{"v": 1, "op": "ping", "check": "yes"}'), "'check'"),
        (framed('{"v": 1, "op": "power", "host": "x"}'), "'host'"),
        (framed('{"v": 1, "op": "power", "host": {"name": ""}}'), "'host.name'"),
        (framed('{"v": 1, "op": "power"}'), "names no host"),
        (framed('{"v": 1, "op": "power", "host": {"name": "x"}}'), "how to reach it"),
        (framed('{"v": 1, "op": "power", "host": {"name": "x", "reach": {"exporter_config": "a.yaml"}}}'), "absolute"),
        (framed('{"v": 1, "op": "power", "host": {"name": "x", "reach": {"endpoint": "a"}}}'), "HOST:PORT"),
        (framed('{"v": 1, "op": "power", "host": {"name": "x", "reach": {"selector": "a=b"}}}'), "controller"),
    ],
)
def test_hostile_or_wrong_requests_get_one_clear_error(agent: RunningAgent, data: bytes, words: str) -> None:
    reply = send_raw(agent, data)
    assert reply["type"] == "error"
    error = reply["error"]
    assert isinstance(error, dict)
    assert words in error["message"]
    assert "\n" not in error["message"]
    assert agent.ask("ping")["changed"] is False


def test_connections_that_send_nothing_or_half_a_frame_harm_nobody(agent: RunningAgent) -> None:
    idle = []
    for data in (b"", b"\x00", b"\x00\x00\x10\x00abc"):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(agent.socket))
        client.sendall(data)
        idle.append(client)
    assert agent.ask("ping")["changed"] is False
    for client in idle:
        client.close()
    assert agent.ask("ping")["changed"] is False


def test_bytes_after_the_request_cancel_it(agent: RunningAgent) -> None:
    body = framed('{"v": 1, "op": "operation", "host": null, "args": {"id": "none-1"}}')
    with pytest.raises(AgentFailure, match="no operation"):
        agent.ask("operation", None, id="none-1")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(agent.socket))
        client.sendall(body + b"more")
        assert client.recv(65536)
    assert agent.ask("ping")["changed"] is False


def test_second_agent_in_the_same_directory_is_refused(agent: RunningAgent) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "jumpstarter_agent", "--dir", str(agent.directory)]
        + ["--watch-pid", str(os.getpid()), "--watch-start", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 1
    assert "another agent serves this directory" in run.stderr
    wait_until(lambda: agent.ask("ping"), 60, "first agent still there")
