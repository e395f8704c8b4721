# SPDX-License-Identifier: Apache-2.0
"""The command `j`: the drivers of the surrounding shell or lease, as commands.

This module is what a shell loop pays for each `j`, so it imports next to nothing. `jmp shell` (and the agent) keep a
process in which everything is imported already, at the socket JMP_J_SOCKET; `j` hands its arguments, working
directory, environment and standard streams over, passes signals on and exits with the code that comes back. Without
that process it does the work itself (`jumpstarter_cli.j_main`).

The request: 4 bytes length (big endian), then fields separated by NUL: process group, session, working directory,
number of arguments, the arguments, the environment as NAME=VALUE; with the first byte travel the descriptors 0, 1 and
2. The answer: "R" (it runs) or "D" (do it yourself), then one byte, the exit code. Bytes from here in between are
signal numbers.
"""

from __future__ import annotations

import os
import sys

__all__ = ["main"]

_EXIT_LOST = 1


def main() -> None:
    """Entry point of `j`: exits with the command's real exit code."""
    _fill_streams()
    code = None
    address = os.environ.get("JMP_J_SOCKET")
    if address and os.environ.get("JMP_J_DIRECT") != "1":
        code = _hand_over(address, sys.argv[1:])
    if code is None:
        from jumpstarter_cli.j_main import run

        code = run(sys.argv[1:])
        # Not sys.exit(): what is left of gRPC and its threads has nothing more to do.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    os._exit(code)


def _hand_over(address: str, args: list[str]) -> int | None:
    """Let the warm process run the command. Returns its exit code, None when it cannot (nothing has happened then)."""
    import _socket  # the C part alone: `socket` imports ten modules

    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        connection.connect(address)
        _send(connection, args)
        if connection.recv(1) != b"R":
            connection.close()
            return None
    except OSError:
        connection.close()
        return None
    _pass_signals(connection)
    try:
        answer = connection.recv(1)
    except OSError:
        answer = b""
    if not answer:
        os.write(2, b"Error: the process that ran this command is gone (JMP_J_SOCKET)\n")
        return _EXIT_LOST
    return answer[0]


def _send(connection, args: list[str]) -> None:  # type: ignore[no-untyped-def]
    import _socket

    fields = [str(os.getpgrp()), str(os.getsid(0)), os.getcwd(), str(len(args)), *args]
    blob = b"\0".join([os.fsencode(field) for field in fields] + [k + b"=" + v for k, v in os.environb.items()])
    data = len(blob).to_bytes(4, "big") + blob
    streams = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
    sent = connection.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, streams)])
    if sent < len(data):
        connection.sendall(data[sent:])


def _fill_streams() -> None:
    """Open /dev/null for standard streams that are closed (`j ... >&-`): no socket shall get their numbers."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one


def _pass_signals(connection) -> None:  # type: ignore[no-untyped-def]
    import _signal  # type: ignore[import-not-found]  # the C part alone, as above

    def forward(number: int, _: object) -> None:
        try:
            connection.send(bytes((number,)))
        except OSError:
            pass  # the answer, or its absence, says what happened

    for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGQUIT, _signal.SIGUSR1, _signal.SIGUSR2):
        _signal.signal(number, forward)


if __name__ == "__main__":
    main()
