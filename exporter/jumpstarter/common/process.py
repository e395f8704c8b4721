# SPDX-License-Identifier: Apache-2.0
"""Helper processes of drivers (QEMU, a demultiplexer, a streamer): nothing survives the exporter.

:func:`spawn` starts a program so that

* it dies with the exporter, however the exporter ends (``kill -9`` included): ``PR_SET_PDEATHSIG`` is set in the
  child before the program is executed, and the child then checks that its parent is still there, so there is no
  moment in which a dying exporter leaves it behind;
* it has a session and process group of its own: a Ctrl-C in the operator's terminal does not reach it, and
  stopping it stops everything it started;
* the end of what it wrote to stderr is kept for the error message (unless the caller takes stderr itself);
* it is reaped by one watcher thread, and signals are sent under the same lock, so that a recycled pid is never hit.

The kernel sends the parent-death signal when the *thread* that forked ends, not the process. Worker threads end
when they have been idle for a while, so every fork is done by one daemon thread that lives as long as the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import IO, Any

__all__ = ["Process", "spawn"]

_TAIL_BYTES = 8192
_KILL_GRACE = 10.0

# Runs in the child between fork and the program. It is a program of its own, not a preexec_fn: Python code in a
# forked child of a multi-threaded process can deadlock, and it makes gRPC run its fork handlers.
_LAUNCHER = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(1, int(signal.SIGKILL), 0, 0, 0):
    sys.exit("prctl(PR_SET_PDEATHSIG): " + os.strerror(ctypes.get_errno()))
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
try:
    os.execv(sys.argv[2], sys.argv[3:])
except OSError as error:
    sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""


class _Spawner:
    """The one thread that forks. Started at the first use, again in a forked child, never stopped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[tuple[Future[subprocess.Popen[bytes]], Callable[[], subprocess.Popen[bytes]]]]
        self._jobs = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._pid = 0

    def run(self, start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        """Call ``start`` in the spawner thread and return (or raise) what it returns (raises)."""
        with self._lock:
            if self._thread is None or self._pid != os.getpid() or not self._thread.is_alive():
                self._pid = os.getpid()
                self._jobs = queue.SimpleQueue()
                self._thread = threading.Thread(target=self._work, name="jumpstarter-spawner", daemon=True)
                self._thread.start()
            future: Future[subprocess.Popen[bytes]] = Future()
            self._jobs.put((future, start))
        return future.result()

    def _work(self) -> None:
        jobs = self._jobs
        while True:
            future, start = jobs.get()
            try:
                future.set_result(start())
            except BaseException as error:  # noqa: BLE001 - handed to the caller, who raises it
                future.set_exception(error)


_spawner = _Spawner()


class Process:
    """A running (or ended) helper process. Made by :func:`spawn`; every method may be called from any thread.

    ``kill_rest``: whether what it left running in its group ends with it. May be changed while it runs.
    """

    def __init__(
        self,
        name: str,
        popen: subprocess.Popen[bytes],
        on_stderr: Callable[[str], None] | None,
        kill_rest: bool = True,
    ) -> None:
        self.name = name
        self.kill_rest = kill_rest
        self.pid: int = popen.pid
        self._popen = popen
        self._on_stderr = on_stderr
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._returncode: int | None = None
        self._tail = bytearray()
        self._line = bytearray()
        self._callbacks: list[Callable[[Process], None]] = []
        self._pidfd = os.pidfd_open(self.pid)
        self._watcher = threading.Thread(target=self._watch, name=f"watch-{name}-{self.pid}", daemon=True)
        self._watcher.start()

    @property
    def stdin(self) -> IO[bytes] | None:
        """Pipe to the process, when it was spawned with ``stdin=subprocess.PIPE``."""
        return self._popen.stdin

    @property
    def stdout(self) -> IO[bytes] | None:
        """Pipe from the process, when it was spawned with ``stdout=subprocess.PIPE``."""
        return self._popen.stdout

    @property
    def running(self) -> bool:
        """True until the process has ended and was reaped."""
        return not self._done.is_set()

    @property
    def returncode(self) -> int | None:
        """Exit status, ``-N`` when signal N ended it, None while it runs."""
        return self._returncode

    @property
    def stderr_tail(self) -> str:
        """The last 8 KiB the process wrote to stderr."""
        return bytes(self._tail).decode(errors="replace")

    @property
    def last_line(self) -> str:
        """The last line on stderr that is not empty, or ``""``."""
        lines = [line.strip() for line in self.stderr_tail.splitlines() if line.strip()]
        return lines[-1] if lines else ""

    def describe(self) -> str:
        """One line for an error message: how it ended and the last thing it said."""
        code = self._returncode
        if code is None:
            return f"{self.name} is running (pid {self.pid})"
        how = f"exit status {code}" if code >= 0 else f"killed by {_signal_name(-code)}"
        said = self.last_line.removeprefix(f"{self.name}: ")
        return f"{self.name} ended ({how}){': ' + said if said else ''}"

    def on_exit(self, callback: Callable[[Process], None]) -> None:
        """Call ``callback(process)`` once when the process has ended; at once when it already has.

        It runs in the watcher thread (or in the caller's when already ended) and must not raise or block.
        """
        with self._lock:
            if not self._done.is_set():
                self._callbacks.append(callback)
                return
        callback(self)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit status; TimeoutError after ``timeout`` seconds."""
        if not self._done.wait(timeout):
            raise TimeoutError(f"{self.name} (pid {self.pid}) still runs after {timeout:g} s")
        assert self._returncode is not None
        return self._returncode

    async def wait_async(self) -> int:
        """Wait for the end without a thread: like :meth:`wait`, for asyncio code, cancellable."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def notify(_: Process) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(ended.set)

        self.on_exit(notify)
        await ended.wait()
        assert self._returncode is not None
        return self._returncode

    def send_signal(self, signum: int) -> None:
        """Send a signal to the process and everything in its group; nothing happens when it has ended."""
        with self._lock:
            if self._returncode is None:
                self._kill_group(signum)

    def stop(self, timeout: float = 5.0) -> int:
        """SIGTERM, then SIGKILL after ``timeout`` seconds (at once with 0). Returns the exit status, reaped."""
        if timeout > 0:
            self.send_signal(signal.SIGTERM)
            if self._done.wait(timeout):
                return self.wait(0)
        self.send_signal(signal.SIGKILL)
        # Only a process stuck in the kernel outlives SIGKILL: say so instead of hanging with it.
        return self.wait(_KILL_GRACE)

    def _kill_group(self, signum: int) -> None:
        # The leader is alive or a zombie here, so neither its pid nor its group id can belong to anyone else.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signum)

    def _watch(self) -> None:
        stderr = self._popen.stderr  # None when the caller takes it
        fd = stderr.fileno() if stderr is not None else -1
        poller = select.poll()
        if fd >= 0:
            os.set_blocking(fd, False)
            poller.register(fd, select.POLLIN)
        poller.register(self._pidfd, select.POLLIN)
        ended = False
        while not ended:
            ready = {number for number, _ in poller.poll()}
            ended = self._pidfd in ready
            if fd in ready and not self._read_stderr(fd):
                poller.unregister(fd)
        # It is a zombie now: end what it left behind before its group id becomes free, then read the last words.
        if self.kill_rest:
            self._kill_group(signal.SIGKILL)
        if fd >= 0:
            self._read_stderr(fd)
        if self._line:
            self._emit(bytes(self._line))
        with self._lock:
            self._returncode = self._popen.wait()
            callbacks, self._callbacks = self._callbacks, []
            self._done.set()
        if stderr is not None:
            stderr.close()
        os.close(self._pidfd)
        for callback in callbacks:
            callback(self)

    def _read_stderr(self, fd: int) -> bool:
        """Take everything there is; False at the end of the stream."""
        while True:
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._tail += data
            del self._tail[:-_TAIL_BYTES]
            *lines, rest = (bytes(self._line) + data).split(b"\n")
            self._line[:] = rest[-_TAIL_BYTES:]
            for line in lines:
                self._emit(line)

    def _emit(self, line: bytes) -> None:
        if self._on_stderr is not None and line.strip():
            self._on_stderr(line.decode(errors="replace").rstrip())


def spawn(
    argv: Sequence[str],
    *,
    name: str | None = None,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int | None = subprocess.DEVNULL,
    stdout: int | None = subprocess.DEVNULL,
    stderr: int | None = subprocess.PIPE,
    pass_fds: Sequence[int] = (),
    on_stderr: Callable[[str], None] | None = None,
    kill_rest: bool = True,
) -> Process:
    """Start ``argv`` so that it cannot outlive this process (see the module text).

    Args:
        argv: program and arguments; the program is looked up in PATH (of ``env``, when given).
        name: what error messages call it; the program's base name by default.
        cwd: working directory.
        env: complete environment; the exporter's own by default.
        stdin: file descriptor or ``subprocess`` constant; no input by default.
        stdout: file descriptor or ``subprocess`` constant; thrown away by default.
        stderr: file descriptor or ``subprocess`` constant; by default it is read here, see ``stderr_tail``.
        pass_fds: descriptors the program inherits under the same numbers; all others are closed.
        on_stderr: called with every line of stderr, in the watcher thread; must not raise.
        kill_rest: end what the program left running in its process group when it has ended itself.

    Raises:
        FileNotFoundError: the program is not installed.
        OSError: it cannot be started.
    """
    program = shutil.which(argv[0], path=None if env is None else env.get("PATH", os.defpath))
    if program is None:
        raise FileNotFoundError(f"program {argv[0]!r} is not installed on the exporter host (not found in PATH)")
    command: list[str] = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), program, *argv]
    options: dict[str, Any] = {"cwd": cwd, "env": None if env is None else dict(env)}

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
            **options,
        )

    return Process(name or os.path.basename(program), _spawner.run(start), on_stderr, kill_rest)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
