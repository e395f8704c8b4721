# SPDX-License-Identifier: Apache-2.0
"""Real services for network tests: TCP, UDP and unix servers in threads, and an sshd of our own."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


class Service:
    """Calls ``handle(socket)`` in a thread for each connection."""

    def __init__(self, listener: socket.socket, handle: Callable[[socket.socket], None]) -> None:
        self.listener = listener
        self.connections: list[socket.socket] = []
        self._handle = handle
        self._threads: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(peer)
            thread = threading.Thread(target=self._serve, args=(peer,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _serve(self, peer: socket.socket) -> None:
        with peer:
            try:
                self._handle(peer)
            except OSError:
                return  # what the test does to the connection is seen at its other end

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._thread.join(5)
        for peer in self.connections:
            try:
                peer.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed already
        for thread in self._threads:
            thread.join(5)


@pytest.fixture
def service() -> Iterator[Callable[..., Service]]:
    """Makes services: ``service(handle)``, on 127.0.0.1 unless a listening socket is given."""
    made: list[Service] = []

    def make(handle: Callable[[socket.socket], None], listener: socket.socket | None = None) -> Service:
        made.append(Service(listener or socket.create_server(("127.0.0.1", 0), backlog=128), handle))
        return made[-1]

    yield make
    for each in made:
        each.close()


class Sshd:
    """A running sshd: port and the client's private key."""

    def __init__(self, port: int, key: Path, user: str) -> None:
        self.port, self.key, self.user = port, key, user


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program, "sshd is needed for this test (apt install openssh-server)"
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True, timeout=30
        )
    config = tmp_path / "config"
    # -i: one connection on stdin and stdout, handed over by a listener of ours: no port to guess, nothing left behind.
    config.write_text(
        f"HostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/user.pub\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nPermitRootLogin prohibit-password\nPidFile none\n"
        "Subsystem sftp internal-sftp\n"
    )
    if os.getuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)  # sshd insists on it when root; normally made by its service
    processes: list[subprocess.Popen[bytes]] = []

    def handle(peer: socket.socket) -> None:
        process = subprocess.Popen(
            [program, "-i", "-e", "-f", str(config)], stdin=peer, stdout=peer, stderr=subprocess.DEVNULL
        )
        processes.append(process)
        process.wait()

    service = Service(socket.create_server(("127.0.0.1", 0)), handle)
    yield Sshd(service.port, tmp_path / "user", pwd.getpwuid(os.getuid()).pw_name)
    service.close()
    for process in processes:
        process.wait(10)
