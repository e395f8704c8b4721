# SPDX-License-Identifier: Apache-2.0
"""A real sshd on loopback, one process per connection (inetd mode), so that its port is whichever is free."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path


class SshServer:
    """OpenSSH's sshd. ``key``: the client's private key; ``log``: what sshd says; ``connections``: how many came."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program, "sshd is needed for this test (apt install openssh-server)"
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)  # sshd insists on it when root; normally made by its service
        self._program = program
        self.folder = folder
        self.user = getpass.getuser()
        self.key = folder / "client_key"
        self.log = folder / "sshd.log"
        self._config = folder / "sshd_config"
        self.new_host_key()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True)
        settings = {
            "HostKey": folder / "host_key", "AuthorizedKeysFile": folder / "client_key.pub", "StrictModes": "no",
            "UsePAM": "no", "PasswordAuthentication": "no", "KbdInteractiveAuthentication": "no", "PidFile": "none",
            "LogLevel": "VERBOSE", "Subsystem": "sftp internal-sftp", "AcceptEnv": "GREETING",
        }  # fmt: skip
        self._config.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
        self.connections = 0
        self._processes: list[subprocess.Popen[bytes]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def new_host_key(self) -> None:
        """What flashing a device does to its host keys."""
        path = self.folder / "host_key"
        for one in (path, path.with_suffix(".pub")):
            one.unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)

    @property
    def host_key(self) -> str:
        """Type and key, as known_hosts has them."""
        return " ".join((self.folder / "host_key.pub").read_text().split()[:2])

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection, self.log.open("ab") as log:
                command = [self._program, "-i", "-e", "-f", str(self._config)]
                self._processes.append(subprocess.Popen(command, stdin=connection, stdout=connection, stderr=log))

    def close(self) -> None:
        """End everything."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        for process in self._processes:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
