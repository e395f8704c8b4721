# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs plays in a temporary folder, as a user would: ansible-playbook with an inventory and a playbook."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

FAKE = Path(__file__).parent / "fake"

# A run must not outlive the test, not even when pytest itself is killed (a time limit, kill -9): the kernel ends it
# then, and its agent sees that. In a program of its own, because a preexec_fn may not run Python safely.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # with nohup, a play would ignore it too: nothing would be tested
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass
class Played:
    """A finished run. `stats` and `results` come from Ansible's json callback and are empty with another one."""

    rc: int
    stdout: str
    stderr: str
    tasks: list[dict[str, Any]] = field(default_factory=list)

    def result(self, host: str, index: int = -1) -> dict[str, Any]:
        """Result of `host` in the task number `index`."""
        found: dict[str, Any] = self.tasks[index]["hosts"][host]
        return found

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


class Stage:
    """A folder with an inventory, to run plays in."""

    def __init__(self, folder: Path, hosts: dict[str, dict[str, Any]], **variables: Any) -> None:
        self.folder = folder
        self.prefix: list[str] = []
        self._started: list[subprocess.Popen[str]] = []
        # Unix sockets have 108 bytes for their path: pytest's folders are too long for some.
        self.runtime = Path(tempfile.mkdtemp(prefix="jl-", dir="/tmp"))
        inventory = {"duts": {"hosts": hosts, "vars": {"ansible_connection": "jumpstarter.lab.console", **variables}}}
        (folder / "inventory.yml").write_text(yaml.safe_dump(inventory))
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
            "XDG_RUNTIME_DIR": str(self.runtime),
            "ANSIBLE_LOCAL_TEMP": str(folder / "local-tmp"),
            "ANSIBLE_HOME": str(folder / "home"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
            "ANSIBLE_RETRY_FILES_ENABLED": "0",
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
            # Ansible leaves a pipe to Python's buffer: without this a test that waits for a line waits for ever.
            "PYTHONUNBUFFERED": "1",
        }

    def fake_agent(self, script: dict[str, Any]) -> None:
        """Let the fake agent answer, as `script` says."""
        (self.folder / "script.json").write_text(json.dumps(script))
        self.env["PYTHONPATH"] = str(FAKE)
        self.env["FAKE_AGENT_SCRIPT"] = str(self.folder / "script.json")
        self.env["FAKE_AGENT_LOG"] = str(self.folder / "agent-log.jsonl")

    def asked(self, op: str | None = None) -> list[dict[str, Any]]:
        """What the fake agent was asked."""
        log = self.folder / "agent-log.jsonl"
        entries = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [entry for entry in entries if op is None or entry["op"] == op]

    def write(self, plays: list[dict[str, Any]], name: str = "play.yml") -> Path:
        path = self.folder / name
        path.write_text(yaml.safe_dump(plays, sort_keys=False))
        return path

    def command(self, playbook: Path, *args: str) -> list[str]:
        inventory = [] if "-i" in args else ["-i", str(self.folder / "inventory.yml")]
        return [*self.prefix, sys.executable, "-m", "ansible", "playbook", *inventory, str(playbook), *args]

    def start(self, playbook: Path, *args: str, **env: str) -> subprocess.Popen[str]:
        """The run in the background, as the leader of a process group of its own."""
        command = self.command(playbook, *args)
        command[0] = shutil.which(command[0]) or command[0]
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command],
            cwd=self.folder,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def processes(self) -> dict[int, str]:
        """Living processes of this stage: pid -> command line."""
        return processes_of(self.runtime)

    def close(self) -> None:
        """End what a failing test has left, reap it, and remove the runtime folder."""
        for process in self._started:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.communicate()
        remove_runtime(self.runtime)

    def run(
        self, tasks: list[dict[str, Any]], *args: str, timeout: float = 300, play: Any = None, **env: str
    ) -> Played:
        """One play on all duts with `tasks`; results per task and host are read back."""
        playbook = self.write([{"hosts": "duts", "gather_facts": False, **(play or {}), "tasks": tasks}])
        return self.run_playbook(playbook, *args, timeout=timeout, **env)

    def run_playbook(self, playbook: Path, *args: str, timeout: float = 300, **env: str) -> Played:
        results = self.folder / "results.jsonl"
        results.unlink(missing_ok=True)
        extra = {
            "ANSIBLE_CALLBACK_PLUGINS": str(Path(__file__).parent / "callbacks"),
            "ANSIBLE_CALLBACKS_ENABLED": ",".join(filter(None, ["results_file", env.pop("callbacks", "")])),
            "RESULTS_FILE": str(results),
        }
        process = self.start(playbook, *args, **{**extra, **env})
        try:
            stdout, _unused = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        tasks: dict[str, dict[str, Any]] = {}
        if results.exists():
            for line in results.read_text().splitlines():
                entry = json.loads(line)
                task = tasks.setdefault(entry["uuid"], {"task": entry["task"], "t": entry["t"], "hosts": {}})
                task["hosts"][entry["host"]] = entry["result"]
        return Played(process.returncode, stdout, "", list(tasks.values()))


def processes_of(runtime: Path) -> dict[int, str]:
    """Living processes that have `runtime` as their runtime directory: pid -> command line."""
    mark = f"XDG_RUNTIME_DIR={runtime}\0".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if mark not in (entry / "environ").read_bytes() + b"\0":
                continue
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue  # it ended while we looked
        if state not in "ZX":
            found[int(entry.name)] = command
    return found


def remove_runtime(folder: Path | str) -> None:
    """Remove a runtime folder in which an ending agent may be removing its own files at the same moment."""
    for _attempt in range(200):
        shutil.rmtree(folder, ignore_errors=True)
        if not Path(folder).exists():
            return
        time.sleep(0.02)
    raise AssertionError(f"{folder} cannot be removed: {sorted(map(str, Path(folder).rglob('*')))}")
