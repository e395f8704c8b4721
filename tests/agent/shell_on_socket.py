# SPDX-License-Identifier: Apache-2.0
"""A board for console tests: a shell on a terminal of its own, its bytes on the unix socket given as argument.

Ends with the socket, and takes the shell along.
"""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import socket
import sys


def main() -> None:
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(sys.argv[1])
        pid, terminal = pty.fork()
        if pid == 0:
            environment = {"PATH": os.environ["PATH"], "PS1": "board# ", "TERM": "vt100", "HOME": "/"}
            os.execvpe("sh", ["sh", "-i"], environment)
        try:
            copy(line, terminal)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def copy(line: socket.socket, terminal: int) -> None:
    while True:
        readable, _, _ = select.select([line, terminal], [], [])
        if line in readable:
            data = line.recv(4096)
            if not data:
                return
            os.write(terminal, data)
        if terminal in readable:
            data = b""
            with contextlib.suppress(OSError):
                data = os.read(terminal, 4096)
            if not data:
                return
            line.sendall(data)


main()
