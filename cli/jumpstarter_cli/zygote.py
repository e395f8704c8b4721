# SPDX-License-Identifier: Apache-2.0
"""The warm process behind `j`: everything is imported once, each command runs in a fork of it.

Started by `jmp shell` with `fork_zygote`, or by any other program as ``python -m jumpstarter_cli.zygote --socket PATH
--lifeline FD``. It opens no gRPC channel and starts no thread, so that forking it is safe, and ends when its lifeline
reaches end of file, that is, with the process that started it, however that one ends.

Only the same user may connect: the socket is 0600 in a directory 0700, and the peer's user id is checked as well.

Job control: a command joins the process group of the `j` that asked for it when both are of one session, so that
Ctrl-C, Ctrl-Z and /dev/tty work as for any command. When they are not, and there is a terminal, `j` is told to do the
work itself.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib
import io
import os
import select
import selectors
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["fork_zygote", "listen", "main", "serve"]

_HEADER = 4
_REQUEST_LIMIT = 16 << 20
_GRACE_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1  # prctl(2)
_IGNORED = (
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
)
_PASSED = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2})
_PRELOAD = (
    "anyio._backends._asyncio",
    "anyio.from_thread",
    "click",
    "jumpstarter.streams.blocking",
    "jumpstarter.utils.quick",
    "jumpstarter.utils.env",
    "jumpstarter_cli.errors",
    "jumpstarter_cli.j_main",
    "jumpstarter_driver_composite.client",
)


@dataclass(eq=False)
class _Command:
    """A `j` and the process that works for it."""

    connection: socket.socket
    pid: int = 0
    pidfd: int = -1
    own_group: bool = False
    data: bytearray = field(default_factory=bytearray)
    streams: list[int] = field(default_factory=list)
    kill_at: float | None = None


def listen(path: str) -> socket.socket:
    """A listening unix socket at `path`, mode 0600, in a directory that only its owner may enter.

    Raises PermissionError for a directory that others may enter or that belongs to somebody else.
    """
    directory = os.path.dirname(os.path.abspath(path))
    state = os.stat(directory)
    if state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise PermissionError(
            f"{directory} must belong to the user and have mode 0700, has {state.st_mode & 0o777:04o}"
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(old)
    listener.listen(128)
    return listener


def fork_zygote(listener: socket.socket) -> tuple[int, int]:
    """Fork this process into the warm one. Returns its pid and the lifeline: closing that ends it.

    Must be called before the caller starts threads or imports gRPC. A `j` may connect at once: it waits in the
    listener's queue until the imports are done.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(reading)
        return pid, writing
    code = 1
    try:
        os.close(writing)
        # Our caller's input and output end with our caller: nobody shall wait for us at the other end of a pipe.
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        os.close(nothing)
        serve(listener, reading)
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it was: this is the end of the process
        traceback.print_exc()
    finally:
        os._exit(code)


def serve(listener: socket.socket, lifeline: int) -> None:
    """Serve until `lifeline` ends."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # there is nothing of gRPC to prepare for a fork
    _Server(listener, lifeline).run()


class _Server:
    def __init__(self, listener: socket.socket, lifeline: int) -> None:
        self._listener = listener
        self._lifeline = lifeline
        self._pid = os.getpid()
        self._prctl = ctypes.CDLL(None).prctl
        self._selector = selectors.DefaultSelector()
        self._commands: set[_Command] = set()
        self._learned, self._teach = os.pipe()
        self._running = True

    def run(self) -> None:
        for name in _PRELOAD:
            importlib.import_module(name)
            if select.select([self._lifeline], [], [], 0)[0]:
                return  # a short command: it has ended before we were ready
        os.set_blocking(self._learned, False)
        self._listener.setblocking(False)
        self._watch(self._listener, self._accept)
        self._watch(self._lifeline, self._lifeline_ended)
        self._watch(self._learned, self._learn)
        gc.collect()
        gc.freeze()  # forks share these pages: the collector must not touch them
        while self._running:
            for key, _ in self._selector.select(self._next_kill()):
                key.data()
            self._kill_overdue()
        for command in self._commands:
            if command.pid:
                self._signal(command, signal.SIGKILL)

    def _watch(self, file: Any, callback: Callable[[], None]) -> None:
        self._selector.register(file, selectors.EVENT_READ, callback)

    def _lifeline_ended(self) -> None:
        if not os.read(self._lifeline, 4096):
            self._running = False

    # One command -----------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it left again
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, _ = struct.unpack("3i", credentials)
        if uid != os.getuid():
            connection.close()
            return
        connection.setblocking(False)
        command = _Command(connection)
        self._commands.add(command)
        self._watch(connection, lambda: self._readable(command))

    def _readable(self, command: _Command) -> None:
        try:
            data, streams, _, _ = socket.recv_fds(command.connection, 65536, 3)
        except BlockingIOError:
            return
        except OSError:
            data, streams = b"", []
        command.streams.extend(streams)
        if command.pid:
            self._steer(command, data)
            return
        command.data += data
        if not data:
            self._drop(command)
        elif len(command.data) >= _HEADER:
            size = int.from_bytes(command.data[:_HEADER], "big")
            if size > _REQUEST_LIMIT or len(command.streams) != 3:
                self._drop(command)
            elif len(command.data) >= _HEADER + size:
                self._start(command, bytes(command.data[_HEADER : _HEADER + size]))

    def _steer(self, command: _Command, data: bytes) -> None:
        """Signals that `j` got; or its end, and then the command has nobody to work for."""
        if not data:
            self._selector.unregister(command.connection)
            self._signal(command, signal.SIGTERM)
            command.kill_at = time.monotonic() + _GRACE_SECONDS
        for number in data:
            if number in _PASSED:
                self._signal(command, number)

    def _signal(self, command: _Command, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if command.own_group:
                os.killpg(command.pid, number)
            else:
                os.kill(command.pid, number)

    def _drop(self, command: _Command) -> None:
        self._commands.discard(command)
        with contextlib.suppress(KeyError):
            self._selector.unregister(command.connection)
        command.connection.close()
        for stream in command.streams:
            os.close(stream)
        command.streams.clear()

    def _start(self, command: _Command, request: bytes) -> None:
        group, session, cwd, count, *rest = request.split(b"\0")
        same_session = int(session) == os.getsid(0)
        if not same_session and os.isatty(command.streams[0]):
            with contextlib.suppress(OSError):
                command.connection.send(b"D")
            self._drop(command)
            return
        args, environ = rest[: int(count)], rest[int(count) :]
        command.own_group = not same_session
        pid = os.fork()
        if not pid:
            self._child(command, int(group), cwd, args, environ)
        command.pid = pid
        if command.own_group:
            with contextlib.suppress(OSError):
                os.setpgid(pid, pid)  # both sides do it: a signal must not come before the group
        command.pidfd = os.pidfd_open(pid)
        for stream in command.streams:
            os.close(stream)
        command.streams.clear()
        self._watch(command.pidfd, lambda: self._ended(command))
        with contextlib.suppress(OSError):
            command.connection.send(b"R")

    def _ended(self, command: _Command) -> None:
        _, status = os.waitpid(command.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self._selector.unregister(command.pidfd)
        os.close(command.pidfd)
        with contextlib.suppress(OSError):
            command.connection.send(bytes((code if code >= 0 else 128 - code,)))
        self._drop(command)

    def _next_kill(self) -> float | None:
        times = [command.kill_at for command in self._commands if command.kill_at is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        for command in self._commands:
            if command.kill_at is not None and command.kill_at <= now:
                command.kill_at = None
                self._signal(command, signal.SIGKILL)

    # Learning --------------------------------------------------------------------------------------------------

    def _learn(self) -> None:
        """Import what a command had to import itself: client classes of this exporter's drivers, mostly."""
        data = os.read(self._learned, 65536)
        for name in data.decode().split():
            if name not in sys.modules:
                # What cannot be imported here was no problem before, either.
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
        gc.freeze()

    # In the fork -----------------------------------------------------------------------------------------------

    def _child(self, command: _Command, group: int, cwd: bytes, args: list[bytes], environ: list[bytes]) -> None:
        code = 1
        try:
            self._become(command, group, cwd, environ)
            before = set(sys.modules)
            from jumpstarter_cli.j_main import run

            code = run([os.fsdecode(arg) for arg in args])
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            new = [name for name in sys.modules if name not in before and "__main__" not in name]
            with contextlib.suppress(OSError):
                # At most what a pipe takes at once, so that two commands do not mix their lines.
                os.write(self._teach, " ".join(new)[:4000].encode() + b"\n") if new else None
        except BaseException:  # noqa: BLE001 - the fork must never return into the server
            traceback.print_exc()
        finally:
            os._exit(code & 0xFF)

    def _become(self, command: _Command, group: int, cwd: bytes, environ: list[bytes]) -> None:
        """Take over what `j` handed us. Without the server nobody would tell us that `j` is gone: we end with it."""
        if command.own_group:
            os.setpgid(0, 0)
        else:
            with contextlib.suppress(OSError):  # `j` was killed in the meantime: its group may be gone
                os.setpgid(0, group)
        for ignored in _IGNORED:
            signal.signal(ignored, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != self._pid:
            os._exit(1)  # it was killed just now
        # First what is ours (the lifeline may be descriptor 0), then theirs in the place of it.
        self._listener.close()
        for other in self._commands:
            other.connection.close()
            if other.pidfd >= 0:
                os.close(other.pidfd)
        self._selector.close()
        os.close(self._lifeline)
        os.close(self._learned)
        for number, stream in enumerate(command.streams):
            os.dup2(stream, number, inheritable=True)
            os.close(stream)
        os.chdir(cwd)
        os.environ.clear()
        for item in environ:
            key, _, value = item.partition(b"=")
            if key:
                os.environb[key] = value
        sys.argv = ["j"]
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for the life of the process
        sys.stdout = _text(1)
        sys.stderr = _text(2)


def _text(number: int) -> io.TextIOWrapper:
    """A text stream as the interpreter would have made it at its start."""
    lines = number == 2 or os.isatty(number)
    errors = "backslashreplace" if number == 2 else None
    return open(number, "w", buffering=1 if lines else -1, errors=errors, closefd=False)


def main() -> int:
    """``python -m jumpstarter_cli.zygote``. Says READY on stdout when it listens."""
    parser = argparse.ArgumentParser(prog="python -m jumpstarter_cli.zygote")
    parser.add_argument("--socket", required=True, help="unix socket to listen on, in a directory of mode 0700")
    parser.add_argument("--lifeline", type=int, default=0, metavar="FD", help="end of file here ends the process")
    options = parser.parse_args()
    try:
        listener = listen(options.socket)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("READY", flush=True)
    try:
        serve(listener, options.lifeline)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(options.socket)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
