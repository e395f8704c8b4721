# SPDX-License-Identifier: Apache-2.0
"""A lab around `jmp shell`: a controller, exporters and the commands, all of them processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cli_harness import BIN, TIMEOUT, Cli

from jumpstarter.client.records import ExporterInfo, LeaseInfo
from jumpstarter.config.client import ClientConfigV1Alpha1
from jumpstarter_testing import eventually

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("exporter", "controller")]

from exporter_harness import Controller, JmpRun, Place  # noqa: E402 (the path comes first)

__all__ = ["Shell", "ShellLab", "alive", "gone", "processes_of", "shell_lab", "variables"]


class ShellLab:
    """The lab. Clients are made as they are named."""

    def __init__(self, cli: Cli, stack: ExitStack) -> None:
        self.cli = cli
        self.place = Place.make(cli.directory)
        self._stack = stack
        self.controller: Controller = stack.enter_context(self.place.controller())

    def exporter(self, name: str = "board", **settings: Any) -> JmpRun:
        """An exporter as `jmp run`, available."""
        config = self.place.exporter(name, **settings)
        run = self.cli.directory / "run-exporters"
        run.mkdir(mode=0o700, exist_ok=True)
        runner = JmpRun("--exporter-config", config, **{**self.cli.environ, "XDG_RUNTIME_DIR": str(run)})
        self._stack.callback(runner.end, signal.SIGTERM)
        eventually(lambda: self.is_available(name), timeout=TIMEOUT)
        return runner

    def is_available(self, name: str) -> None:
        info: ExporterInfo = self.config("watcher").get_exporter(name)
        assert info.online and info.status.name == "AVAILABLE", info

    def client(self, name: str = "alice") -> Path:
        """The configuration file of a client."""
        path = self.place.lab.folder / f"client-{name}.yaml"
        return path if path.exists() else self.place.lab.client(name)

    def config(self, name: str = "alice") -> ClientConfigV1Alpha1:
        """The configuration of a client."""
        return ClientConfigV1Alpha1.from_file(self.client(name))

    def leases(self, *, active: bool = True) -> list[LeaseInfo]:
        """All leases."""
        found: list[LeaseInfo] = self.config("watcher").list_leases(only_active=active)
        return found

    def shell(self, *args: str | Path, client: str = "alice", **options: Any) -> subprocess.CompletedProcess[str]:
        """`jmp shell` to its end."""
        return self.cli.jmp("shell", "--client-config", self.client(client), *args, **options)

    @contextmanager
    def started(self, *args: str | Path, client: str = "alice", **env: str) -> Iterator[Shell]:
        """`jmp shell` in the background, killed at the end if it still runs."""
        shell = Shell(self.cli, ["--client-config", self.client(client), *args], env)
        try:
            yield shell
        finally:
            shell.end()


class Shell:
    """A running `jmp shell` and what it says."""

    def __init__(self, cli: Cli, args: list[str | Path], env: dict[str, str]) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [str(BIN / "jmp"), "shell", *map(str, args)],
            env={**cli.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()

    def wait_for(self, pattern: str) -> str:
        """The first line that matches, when it is there."""

        def found() -> str | None:
            return next((line for line in self.lines if re.search(pattern, line)), None)

        with self._changed:
            self._changed.wait_for(lambda: found() is not None, TIMEOUT)
            line = found()
        assert line is not None, f"no line matches {pattern!r}: {self.lines}"
        return line

    def wait(self) -> int:
        """The exit code, at its end."""
        code = self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        return code

    def end(self) -> None:
        """Make sure that it has ended."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def shell_lab(cli: Cli) -> Iterator[ShellLab]:
    """A lab without exporters."""
    with ExitStack() as stack:
        yield ShellLab(cli, stack)


def variables(output: str) -> dict[str, str]:
    """What `env` printed."""
    return dict(line.partition("=")[::2] for line in output.splitlines())


def gone(condition: Callable[[], Any]) -> None:
    """Wait until the condition is false."""

    def check() -> None:
        found = condition()
        assert not found, found

    eventually(check, timeout=TIMEOUT)


def alive(pid: int) -> bool:
    """Whether this process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def processes_of(directory: Path) -> list[str]:
    """Command lines of the other processes that mention `directory`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(directory) in line:
                found.append(line)
    return found
