# SPDX-License-Identifier: Apache-2.0
"""A lab in a temporary directory: authority, configuration, identities, and the controller as a process."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from jumpstarter_controller.main import cli


def run_cli(*argv: str | Path) -> None:
    """`jumpstarter-controller` in this process."""
    cli.main([str(word) for word in argv], standalone_mode=False)


_RESERVED: list[socket.socket] = []


def reserved_port() -> int:
    """A port of 127.0.0.1 for a server of a test, which keeps it over restarts: nobody else is given it in between.

    It is bound here, and never listened on, until this process ends; a server that reuses addresses can bind it too.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    _RESERVED.append(holder)
    return int(holder.getsockname()[1])


@dataclass
class LabFiles:
    """The files of a lab. endpoint: of the running controller. ready: what it said when it was."""

    folder: Path
    endpoint: str = "127.0.0.1:1"
    ready: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path, **settings: Any) -> LabFiles:
        """An authority and a configuration; ``settings`` go into the latter."""
        folder.mkdir()
        run_cli("ca", "init", "--dir", folder)
        run_cli("ca", "issue", "--dir", folder, "localhost", "127.0.0.1")
        config = {
            "apiVersion": "jumpstarter.lab/v1alpha1",
            "kind": "ControllerConfig",
            "listen": "127.0.0.1:0",
            "database": "lab.db",
            "tls": {"certificate": "server.crt", "key": "server.key", "ca": "ca.crt"},
            **settings,
        }
        (folder / "controller.yaml").write_text(yaml.safe_dump(config))
        return cls(folder)

    @property
    def config(self) -> Path:
        return self.folder / "controller.yaml"

    @property
    def ca(self) -> bytes:
        return (self.folder / "ca.crt").read_bytes()

    def client(self, name: str, *options: str) -> Path:
        """Make a client; its configuration file."""
        return self._create("client", name, "--unsafe", *options)

    def exporter(self, name: str, *options: str, export: dict[str, Any] | None = None) -> Path:
        """Make an exporter; its configuration file, with these drivers."""
        path = self._create("exporter", name, *options)
        data = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump({**data, "export": export or {}}))
        return path

    def _create(self, kind: str, name: str, *options: str) -> Path:
        path = self.folder / f"{kind}-{name}.yaml"
        argv = ["admin", "create", kind, name, "--config", self.config, "--save", path, "--endpoint", self.endpoint]
        run_cli(*argv, *options)
        return path

    def audit(self, limit: int = 1000) -> list[dict[str, Any]]:
        """The audit log, as `admin audit` prints it."""
        out = io.StringIO()
        with redirect_stdout(out):
            run_cli("admin", "audit", "--config", self.config, "-n", str(limit))
        return [json.loads(line) for line in out.getvalue().splitlines()]

    def wait_for_audit(self, matches: Callable[[dict[str, Any]], bool]) -> None:
        """Return when an entry of the audit log matches; fail after a minute."""
        deadline = time.monotonic() + 60
        while not any(matches(entry) for entry in self.audit()):
            assert time.monotonic() < deadline, self.audit()[-5:]
            time.sleep(0.1)

    @contextmanager
    def serving(self, *, killed: bool = False, role: str = "all") -> Iterator[subprocess.Popen[str]]:
        """Context: the controller as a process, which ends well when asked to, unless the test has killed it."""
        argv = [sys.executable, "-m", "jumpstarter_controller", "serve", "--role", role, "--config", self.config]
        with (self.folder / "controller.log").open("a") as log:
            with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, text=True) as process:
                try:
                    assert process.stdout is not None
                    line = process.stdout.readline()
                    assert line.startswith("READY "), (self.folder / "controller.log").read_text()
                    self.ready = json.loads(line.removeprefix("READY "))
                    self.endpoint = self.ready["endpoint"]
                    yield process
                    process.terminate()
                    assert process.wait(60) == (-signal.SIGKILL if killed else 0)
                finally:
                    process.kill()
