# SPDX-License-Identifier: Apache-2.0
"""Direct connections between the real Jumpstarter 0.9 and ours: an exporter of either side, a client of the other."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyio.from_thread import start_blocking_portal

from jumpstarter.client.client import client_from_path

BENCH = Path(__file__).resolve().parents[2] / "bench"


def original_commands() -> Path:
    """Folder of the original's commands, in a virtual environment of its own that is made on first use."""
    sys.path.insert(0, str(BENCH))
    try:
        from original import original_python
    finally:
        sys.path.remove(str(BENCH))
    python = original_python()
    assert python is not None, "jumpstarter 0.9.0 could not be installed from PyPI"
    return python.parent


class ProcessTree:
    """A process and all that it started, found in /proc, so that nothing of it outlives a test.

    `jmp run` of the original works in a child that has a session of its own, and which stays when its parent is killed;
    so do the programs of its drivers. They are held by pidfd: a number that belongs to somebody else meanwhile is
    never signalled.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._found: dict[int, int] = {}

    def look(self) -> None:
        """Note the descendants of now; who has lost its parent cannot be found later."""
        waiting = [self.process.pid, *self._found]
        while waiting:
            parent = waiting.pop()
            tasks = Path(f"/proc/{parent}/task").glob("*/children")
            children: list[int] = []
            with suppress(FileNotFoundError, ProcessLookupError):  # it ends just now
                children = [int(pid) for task in tasks for pid in task.read_text().split()]
            if self._ended(parent):
                continue  # its number may be another's
            for pid in children:
                if pid not in self._found:
                    with suppress(ProcessLookupError):
                        self._found[pid] = os.pidfd_open(pid)
                        waiting.append(pid)

    def end(self, patience: float = 20) -> None:
        """Ask the process to end, then kill what is left of all, and see it gone."""
        try:
            self.look()
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
            self.look()
            self.process.kill()
            self.process.wait(10)
            for fd in self._found.values():
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
            left = [pid for pid in self._found if not self._ended(pid, 10)]
            assert not left, f"{self.process.args!r} left processes behind: {left}"
        finally:
            for fd in self._found.values():
                os.close(fd)

    def _ended(self, pid: int, seconds: float = 0) -> bool:
        if pid == self.process.pid:
            return self.process.poll() is not None
        poll = select.poll()
        poll.register(self._found[pid], select.POLLIN)
        return bool(poll.poll(seconds * 1000))


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[ProcessTree]:
    """Ends the process with all that it has started, also when the test fails."""
    with process:
        tree = ProcessTree(process)
        try:
            yield tree
        finally:
            tree.end()


@contextmanager
def running(argv: list[Any], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A program (Popen's options), ended with all that it has started."""
    with ended(subprocess.Popen(argv, text=True, **options)) as tree:
        yield tree.process


def write_config(path: Path, drivers: dict[str, Any]) -> Path:
    """An exporter's configuration that both sides read."""
    document = {
        "apiVersion": "jumpstarter.dev/v1alpha1",
        "kind": "ExporterConfig",
        "metadata": {"namespace": "default", "name": "interop"},
        "endpoint": "",
        "token": "",
        "export": drivers,
    }
    path.write_text(json.dumps(document))
    return path


@dataclass(frozen=True)
class TheirClient:
    """Runs what a user of 0.9 writes, with its packages only, against the exporter at a unix socket.

    ``original``: folder of the original's commands.
    """

    original: Path
    socket: Path

    @property
    def env(self) -> dict[str, str]:
        """What tells a program of the original where the exporter is."""
        return {**os.environ, "JUMPSTARTER_HOST": str(self.socket), "JMP_DRIVERS_ALLOW": "UNSAFE", "TERM": "dumb"}

    def python(self, program: str, *arguments: str | Path, timeout: float = 90) -> str:
        """Standard output of a Python program that must succeed."""
        return self._run([self.original / "python", "-c", program, *arguments], timeout)

    def j(self, *arguments: str, timeout: float = 60) -> str:
        """Standard output of their `j`, which must succeed."""
        return self._run([self.original / "j", *arguments], timeout)

    @contextmanager
    def talking(self, program: str) -> Iterator[subprocess.Popen[str]]:
        """A Python program with pipes, for tests that look at devices while it waits."""
        argv = [self.original / "python", "-u", "-c", program]
        with running(argv, env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            yield process

    def _run(self, argv: list[str | Path], timeout: float) -> str:
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0, f"exit code {done.returncode}: {done.stdout}\n{done.stderr}"
        return done.stdout


@contextmanager
def our_exporter(original: Path, folder: Path, drivers: dict[str, Any], **environment: str) -> Iterator[TheirClient]:
    """Our exporter on a unix socket in ``folder``, and their client of it."""
    config, path = write_config(folder / "ours.json", drivers), folder / "s"
    argv = [sys.executable, "-m", "jumpstarter.exporter", "--config", config, "--listen", f"unix:{path}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with running(argv, env={**os.environ, **environment}, **pipes) as exporter:
        assert exporter.stdout is not None
        assert exporter.stdout.readline().startswith("READY")
        yield TheirClient(original, path)


@contextmanager
def their_exporter(
    original: Path, folder: Path, drivers: dict[str, Any], through: Sequence[str] = (), **environment: str
) -> Iterator[str]:
    """Their `jmp run`, serving; gives HOST:PORT. What it says is in ``theirs.log`` of the folder.

    through: words of a program that becomes it, such as `nsenter` and its options.
    """
    config, log = write_config(folder / "theirs.yaml", drivers), folder / "theirs.log"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])  # the original cannot choose a port itself
    argv: list[str | Path] = [*through, original / "jmp", "run", "--exporter-config", config]
    argv += ["--tls-grpc-listener", f"127.0.0.1:{port}", "--tls-grpc-insecure"]
    env = {**os.environ, **environment}
    with log.open("w") as out:
        process = subprocess.Popen(argv, env=env, text=True, stdout=out, stderr=subprocess.STDOUT)
        with ended(process) as tree:
            deadline = time.monotonic() + 60
            while not _listens(process.pid, port):
                tree.look()  # its worker, should it end before
                assert process.poll() is None, f"the original's exporter ended: {log.read_text()}"
                assert time.monotonic() < deadline, f"the original's exporter does not listen: {log.read_text()}"
                time.sleep(0.02)  # another project's program: it has no other sign of being ready
            yield f"127.0.0.1:{port}"


@contextmanager
def our_client(address: str) -> Iterator[Any]:
    """Our client classes of the exporter at HOST:PORT, from a test that is not asynchronous."""
    with start_blocking_portal() as portal, ExitStack() as stack:
        connecting = client_from_path(address, portal, stack, unsafe=True, insecure=True)
        with portal.wrap_async_context_manager(connecting) as client:
            try:
                yield client
            finally:
                stack.close()  # what clients have opened needs the connection


def _listens(pid: int, port: int) -> bool:
    """Whether somebody listens on that port, in the network namespace of that process; gRPC does so on IPv6 too."""
    with suppress(OSError):  # it has ended: the caller looks
        for table in ("tcp", "tcp6"):
            for row in Path(f"/proc/{pid}/net/{table}").read_text().splitlines():
                _, local, _, state, *_ = row.split()
                if local.endswith(f":{port:04X}") and state == "0A":
                    return True
    return False
