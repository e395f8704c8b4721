# SPDX-License-Identifier: Apache-2.0
"""A real BusyBox shell (Debian's static one) on a terminal of 80 columns, where a flasher system would be."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import socket
import struct
import subprocess
import termios
import threading
from pathlib import Path

BUSYBOX = "/bin/busybox"


class BusyboxBoard:
    """Connects the shell to the unix socket of a console (PySerial's ``unix-listen://``).

    ``program``: what runs on the terminal instead of the interactive shell. ``limit``: kill it after so many bytes.
    """

    def __init__(self, path: str, folder: Path, program: list[str] | None = None) -> None:
        tools = folder / "tools"
        if not tools.exists():
            tools.mkdir(parents=True)
            for name in ("dd", "wget", "zcat", "xzcat", "sha256sum", "cat", "grep", "sleep", "tail", "head", "tr", "ls",
                         "readlink", "sync", "rm", "stty", "blockdev", "chmod", "sh"):  # fmt: skip
                (tools / name).symlink_to(BUSYBOX)
        self.tools = tools
        master, slave = pty.openpty()
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            program or [str(tools / "sh"), "-i"], stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            cwd=folder, env={"PATH": str(tools), "PS1": "~ # ", "TERM": "linux", "HISTFILE": ""},
        )  # fmt: skip
        os.close(slave)
        self._master = master
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._threads = [
            threading.Thread(target=self._out, daemon=True),
            threading.Thread(target=self._in, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def kill(self) -> None:
        """The power goes: shell and console."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)  # with what it runs: that holds the terminal open, too
        except ProcessLookupError:
            pass  # it ended by itself
        self.process.wait()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other side was first

    def close(self) -> None:
        """End everything."""
        self.kill()
        for thread in self._threads:
            thread.join(5)
        os.close(self._master)
        self._socket.close()

    def _out(self) -> None:
        try:
            while data := os.read(self._master, 4096):
                self._socket.sendall(data)
        except OSError:
            return  # the shell or the console is gone

    def _in(self) -> None:
        try:
            while data := self._socket.recv(4096):
                os.write(self._master, data)
        except OSError:
            return
