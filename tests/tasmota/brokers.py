# SPDX-License-Identifier: Apache-2.0
"""A mosquitto for tests: plain, TLS with a password and an authority of its own, websockets, unix socket."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cli_harness import Authority

USER, PASSWORD = "lab", "s3cret-broker"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _tool(name: str) -> str:
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    assert path, f"Debian's {name} is not installed (make debian-test)"
    return path


@dataclass
class Mosquitto:
    """A broker with four ways in. plain, tls, websockets: ports. unix: path of a socket. ca: its authority."""

    folder: Path
    plain: int = 0
    tls: int = 0
    websockets: int = 0
    unix: Path = Path()
    ca: Path = Path()
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start it on the ports it has, or on new ones at the first time."""
        fresh = not self.plain
        for _ in range(5):  # another process may take a port before mosquitto does
            if fresh:
                self.plain, self.tls, self.websockets = _free_port(), _free_port(), _free_port()
                self._configure()
            log = (self.folder / "mosquitto.log").open("ab")
            with log:
                self.process = subprocess.Popen(
                    [_tool("mosquitto"), "-c", self.folder / "mosquitto.conf"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            if self._listens():
                return
            self.stop()
        raise AssertionError(f"mosquitto did not start: {(self.folder / 'mosquitto.log').read_text()}")

    def _configure(self) -> None:
        authority = Authority(self.folder)
        certificate, key = authority.issue("broker")
        self.ca = authority.ca
        self.unix = self.folder / "mqtt.sock"
        passwords = self.folder / "passwords"
        passwords.touch(mode=0o600)
        subprocess.run([_tool("mosquitto_passwd"), "-b", passwords, USER, PASSWORD], check=True)
        for path in (certificate, key, passwords):
            path.chmod(0o644)  # mosquitto gives up root
        # Started by root it becomes the user it is told, who must be able to make the socket.
        lines = [f"user {'root' if os.geteuid() == 0 else os.environ.get('USER', 'nobody')}"]
        lines += ["per_listener_settings true", "persistence false", "log_type error", "log_type warning"]
        lines += [f"listener {self.plain} 127.0.0.1", "allow_anonymous true"]
        lines += [f"listener {self.tls} 127.0.0.1", "allow_anonymous false", f"password_file {passwords}"]
        lines += [f"certfile {certificate}", f"keyfile {key}"]
        lines += [f"listener {self.websockets} 127.0.0.1", "protocol websockets", "allow_anonymous true"]
        lines += [f"listener 0 {self.unix}", "allow_anonymous true"]
        (self.folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")

    def _listens(self) -> bool:
        deadline = time.monotonic() + 10
        assert self.process is not None
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                for port in (self.plain, self.tls, self.websockets):
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return True
            except OSError:
                time.sleep(0.02)
        return False

    def stop(self) -> None:
        """End it, with all connections."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None


@contextmanager
def mosquitto(folder: Path) -> Iterator[Mosquitto]:
    """A running broker; it ends with the context."""
    made = Mosquitto(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()
