# SPDX-License-Identifier: Apache-2.0
"""Real agents for tests: started as the plugins start them, talked to as the plugins talk to them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jumpstarter_agent.paths import run_dir
from jumpstarter_agent.procwatch import start_time

START_SECONDS = 60.0


def python_path() -> str:
    """PYTHONPATH for child processes: the drivers of these tests, then what the test itself was given."""
    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(Path(__file__).parent), *([given] if given else [])])


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Poll until `condition()` is true and return its value; AssertionError naming `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)
    return value


class AgentFailure(Exception):
    """The error frame of a request."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"[{error['code']}] {error['message']}")
        self.code: str = error["code"]
        self.message: str = error["message"]
        self.data: dict[str, Any] = error["data"]


class Conversation:
    """One request on its own connection."""

    def __init__(self, path: Path, document: dict[str, Any]) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(60)
        self.socket.connect(str(path))
        self.events: list[dict[str, Any]] = []
        body = json.dumps(document).encode()
        self.socket.sendall(len(body).to_bytes(4, "big") + body)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def frame(self) -> dict[str, Any] | None:
        """The next frame, None at the end."""
        header = self._read(4)
        if header is None:
            return None
        body = self._read(int.from_bytes(header, "big"))
        assert body is not None
        value: dict[str, Any] = json.loads(body)
        return value

    def answer(self) -> dict[str, Any]:
        """The value of the result (or "ready") frame; `AgentFailure` for an error frame."""
        while (frame := self.frame()) is not None:
            if frame["type"] == "event":
                self.events.append(frame)
            elif frame["type"] == "error":
                raise AgentFailure(frame["error"])
            else:
                value: dict[str, Any] = frame["value"]
                return value
        raise ConnectionError("the agent closed the connection without an answer")

    def _read(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            if not piece:
                return None
            data += piece
        return data


class RunningAgent:
    """An agent and the process it watches (a stand-in for ansible-playbook)."""

    def __init__(self, base: Path) -> None:
        self.base = base
        # `cat` without input ends when its stdin is closed, so it cannot outlive the test.
        self.playbook = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        started = start_time(self.playbook.pid)
        assert started is not None
        self.directory = run_dir(base, self.playbook.pid, started)
        self.directory.mkdir(mode=0o700)
        self.log_path = self.directory / "agent.log"
        self.process = self._spawn(started)

    @property
    def socket(self) -> Path:
        """The agent's socket."""
        return self.directory / "agent.sock"

    def request(self, op: str, host: dict[str, Any] | None = None, /, **rest: Any) -> Conversation:
        """Send a request; `check`, `diff`, `task` are fields of it, everything else arguments."""
        document: dict[str, Any] = {"v": 1, "op": op, "host": host}
        for field in ("check", "diff", "task"):
            if field in rest:
                document[field] = rest.pop(field)
        document["args"] = rest
        return Conversation(self.socket, document)

    def ask(self, op: str, host: dict[str, Any] | None = None, /, **rest: Any) -> dict[str, Any]:
        """Send a request and wait for its result."""
        with self.request(op, host, **rest) as conversation:
            return conversation.answer()

    def gone(self) -> bool:
        """The agent has ended and removed its directory."""
        return self.process.poll() is not None and not self.directory.exists()

    def close(self) -> None:
        """End everything and reap it."""
        self.playbook.kill()
        self.playbook.communicate()
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the agent had to be killed:\n{self.log()}") from None

    def log(self) -> str:
        """The agent's log so far."""
        return self.log_path.read_text() if self.log_path.exists() else ""

    def _spawn(self, started: str) -> subprocess.Popen[bytes]:
        ready, write = os.pipe()
        command = [sys.executable, "-m", "jumpstarter_agent", "--dir", str(self.directory)]
        command += ["--watch-pid", str(self.playbook.pid), "--watch-start", started, "--ready-fd", str(write)]
        with self.log_path.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(write,),
                start_new_session=True,
                # Exporters, grandchildren of the test, import the drivers of the tests.
                env={**os.environ, "PYTHONPATH": python_path()},
            )
        os.close(write)
        readable, _, _ = select.select([ready], [], [], START_SECONDS)
        data = os.read(ready, 1) if readable else b""
        os.close(ready)
        if data != b"R":
            process.kill()
            process.wait()
            self.playbook.kill()
            self.playbook.communicate()
            raise AssertionError(f"the agent did not start:\n{self.log()}")
        return process


@contextlib.contextmanager
def agent_base() -> Iterator[Path]:
    """A short private directory in place of the user's own: socket paths are limited to 107 bytes."""
    base = Path(tempfile.mkdtemp(prefix="jl-"))
    try:
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)


def write_config(path: Path, export: dict[str, Any], name: str = "board") -> Path:
    """An exporter configuration file."""
    document = {
        "apiVersion": "jumpstarter.dev/v1alpha1",
        "kind": "ExporterConfig",
        "metadata": {"namespace": "default", "name": name},
        "export": export,
    }
    path.write_text(json.dumps(document))
    return path


def process_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    return start_time(pid) is not None


class Board:
    """A host with a local exporter; `trace` is what its drivers wrote."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self.trace_path = directory / f"{name}.trace"
        config = {"trace": str(self.trace_path)}
        self.config = write_config(
            directory / f"{name}.yaml",
            {
                "power": {"type": "agent_test_drivers.TracedPower", "config": config},
                "old_power": {"type": "agent_test_drivers.OldPower", "config": config},
                "worker": {"type": "agent_test_drivers.Worker", "config": config},
            },
            name,
        )

    @property
    def host(self) -> dict[str, Any]:
        """The `host` field of requests."""
        return {"name": self.name, "reach": {"exporter_config": str(self.config)}}

    def trace(self) -> list[str]:
        """Lines the drivers wrote so far."""
        return self.trace_path.read_text().splitlines() if self.trace_path.exists() else []

    def said(self, word: str) -> bool:
        """Whether a driver wrote a line that starts with `word`."""
        return any(line.startswith(word) for line in self.trace())
