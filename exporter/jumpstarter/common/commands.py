# SPDX-License-Identifier: Apache-2.0
"""Run a program for a driver call: its output while it comes, an end to its time, and nothing left when it is over.

Output is read when there is some, and passed on in batches: what comes within a few milliseconds travels together.
Reading pauses while nobody takes the output, so a program cannot fill the exporter's memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
import threading
from collections.abc import AsyncGenerator, Mapping, MutableSet, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from jumpstarter.common.process import Process, spawn

__all__ = ["BASE_ENVIRONMENT", "Completed", "base_environment", "run_command", "stream_command"]

_PIPE: Final = 1 << 20
"""Bytes the kernel may hold for us, so that a chatty program rarely waits."""
_READ: Final = 1 << 18
_PAUSE: Final = 1 << 19
"""Bytes that wait for the consumer before reading pauses."""
_BATCH: Final = 1 << 16
_BATCH_SECONDS: Final = 0.004
_LAST_WORDS: Final = 1.0
"""Seconds for the end of the output after the program has ended; something in the background may hold it open."""

#: Variables of the exporter that a program started for a client sees. Not among them: tokens, endpoints, settings.
BASE_ENVIRONMENT: Final = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "LC_*",
    "TZ",
    "TERM",
    "TMPDIR",
)


def base_environment(names: Sequence[str] = ()) -> dict[str, str]:
    """The part of the exporter's environment that programs may see: `BASE_ENVIRONMENT` and ``names`` (globs)."""
    from fnmatch import fnmatchcase

    allowed = (*BASE_ENVIRONMENT, *names)
    return {key: value for key, value in os.environ.items() if any(fnmatchcase(key, name) for name in allowed)}


@dataclass(frozen=True)
class Completed:
    """A program that ended. ``returncode``: ``-N`` when signal N ended it. ``truncated``: only the end was kept."""

    returncode: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False

    @property
    def last_line(self) -> str:
        """The last line on stderr (or else stdout) that is not empty."""
        for data in (self.stderr, self.stdout):
            lines = [line.strip() for line in data.decode(errors="replace").splitlines() if line.strip()]
            if lines:
                return lines[-1]
        return ""

    def describe(self) -> str:
        """How it ended and the last thing it said."""
        code = self.returncode
        how = f"exit status {code}" if code >= 0 else f"killed by signal {-code}"
        return f"{how}: {self.last_line}" if self.last_line else how


async def run_command(argv: Sequence[str], *, limit: int = 16 << 20, **options: Any) -> Completed:
    """Run a program to its end; ``options`` are those of `stream_command`, which see.

    limit: bytes of each stream that are kept, the last ones.
    """
    kept = (bytearray(), bytearray())
    code, truncated = 0, False
    async with aclosing(stream_command(argv, **options)) as items:
        async for *streams, ended in items:
            for buffer, data in zip(kept, streams, strict=True):
                buffer += data
                if len(buffer) > limit:
                    del buffer[:-limit]
                    truncated = True
            if ended is not None:
                code = ended
    return Completed(code, bytes(kept[0]), bytes(kept[1]), truncated)


async def stream_command(
    argv: Sequence[str],
    *,
    timeout: float,
    name: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    grace: float = 5.0,
    running: MutableSet[Process] | None = None,
    kill_rest: bool = True,
) -> AsyncGenerator[tuple[bytes, bytes, int | None], None]:
    """Run a program and yield what it writes: ``(stdout, stderr, None)``, and at the end the rest with its exit status.

    timeout: seconds it may run. name: what messages call it. env: complete environment. grace: seconds between SIGTERM
    and SIGKILL, which the whole process group gets when the time is over or the generator is closed early. running:
    holds the process as long as it lives. kill_rest: whether what it leaves in the background ends with it.

    Raises TimeoutError after the group was ended and all output was yielded; FileNotFoundError for a program that is
    not installed.
    """
    pipes = _Pipes()
    process: Process | None = None
    timers: list[asyncio.TimerHandle] = []
    loop = asyncio.get_running_loop()
    expired = False
    try:
        process = await _spawn(pipes, argv, name, env, cwd, kill_rest)
        pipes.close_far_ends()
        if running is not None:
            running.add(process)
            process.on_exit(running.discard)
        process.on_exit(pipes.program_ended)

        def expire() -> None:
            nonlocal expired
            if process is None or not process.running:
                return  # it ended in time, only its output is still being taken
            expired = True
            _end_group(process, signal.SIGTERM)
            timers.append(loop.call_later(grace, _end_group, process, signal.SIGKILL))

        timers.append(loop.call_later(timeout, expire))
        while not await pipes.wait():
            stdout, stderr = pipes.take()
            if stdout or stderr:
                yield stdout, stderr, None
        code = process.wait(1)
        if not expired:
            yield *pipes.take(), code
            return
        stdout, stderr = pipes.take()
        if stdout or stderr:
            yield stdout, stderr, None
        raise TimeoutError(f"{process.name} was ended after {timeout:g} s")
    finally:
        for timer in timers:
            timer.cancel()
        pipes.close()
        if process is not None and process.running:
            # Nobody waits for it: the grace must not hold up whoever cancelled.
            process.kill_rest = True
            threading.Thread(target=process.stop, args=(grace,), name=f"stop-{process.name}", daemon=True).start()


def _end_group(process: Process | None, number: signal.Signals) -> None:
    if process is not None:
        process.kill_rest = True  # what ignores the signal goes with the leader
        process.send_signal(number)


async def _spawn(
    pipes: _Pipes,
    argv: Sequence[str],
    name: str | None,
    env: Mapping[str, str] | None,
    cwd: str | None,
    kill_rest: bool,
) -> Process:
    """Start it in a thread. A call that is cancelled meanwhile still ends what was started."""

    def start() -> Process:
        return spawn(
            argv, name=name, env=env, cwd=cwd, stdout=pipes.far[0], stderr=pipes.far[1], kill_rest=kill_rest
        )  # fmt: skip

    starting = asyncio.ensure_future(asyncio.to_thread(start))
    cancelled: asyncio.CancelledError | None = None
    while not starting.done():
        try:
            await asyncio.wait({starting})
        except asyncio.CancelledError as error:  # may come more than once, and the thread uses our pipes until it ends
            cancelled = error
    if cancelled is not None:
        if not starting.cancelled() and starting.exception() is None:
            starting.result().stop(0)
        raise cancelled
    try:
        return starting.result()
    except OSError as error:
        if error.errno != errno.E2BIG:
            raise
        raise ValueError(f"{name or argv[0]}: its arguments and variables are longer than a program can take") from None


class _Pipes:
    """The two output streams of a program, read by the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._near: list[int] = []
        self.far: list[int] = []
        for _ in range(2):
            near, far = os.pipe2(os.O_CLOEXEC)
            self._near.append(near)
            self.far.append(far)
            os.set_blocking(near, False)
            with contextlib.suppress(OSError):  # more than this user may have: the usual 64 KiB do as well
                fcntl.fcntl(near, fcntl.F_SETPIPE_SZ, _PIPE)
        self._buffers = [bytearray(), bytearray()]
        self._open = set(self._near)
        self._reading: set[int] = set()
        self._changed = asyncio.Event()
        self._ended = False
        self._last_words: float | None = None
        self._taken = 0.0
        self._resume()

    def close_far_ends(self) -> None:
        """The program has them now."""
        while self.far:
            os.close(self.far.pop())

    def program_ended(self, _: Process) -> None:
        """The program has ended (called from any thread)."""

        def note() -> None:
            self._ended = True
            self._changed.set()

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(note)

    async def wait(self) -> bool:
        """Wait for something to take. True at the end of it all: the program has ended, and its output too."""
        while True:
            until: float | None = None
            size, now = self._size(), self._loop.time()
            if self._ended:
                if not self._open:
                    return True
                if self._last_words is None:
                    self._last_words = now + _LAST_WORDS
                if now >= self._last_words:
                    self._drain()
                    return True
                if size >= _BATCH:
                    return False
                until = self._last_words
            elif size:
                until = self._taken + _BATCH_SECONDS
                if size >= _BATCH or now >= until:
                    return False
            self._changed.clear()
            try:
                async with asyncio.timeout_at(until):
                    await self._changed.wait()
            except TimeoutError:
                pass  # the batch is old enough, or the last words are over

    def take(self) -> tuple[bytes, bytes]:
        """What was read since the last time."""
        result = bytes(self._buffers[0]), bytes(self._buffers[1])
        for buffer in self._buffers:
            buffer.clear()
        self._taken = self._loop.time()
        self._resume()
        return result

    def close(self) -> None:
        """Stop reading and close everything."""
        for fd in self._reading:
            self._loop.remove_reader(fd)
        self._reading.clear()
        for fd in (*self._near, *self.far):
            os.close(fd)
        self._near, self.far = [], []

    def _size(self) -> int:
        return len(self._buffers[0]) + len(self._buffers[1])

    def _resume(self) -> None:
        for fd in self._open - self._reading:
            self._loop.add_reader(fd, self._readable, fd)
            self._reading.add(fd)

    def _pause(self, fd: int) -> None:
        if fd in self._reading:
            self._reading.discard(fd)
            self._loop.remove_reader(fd)

    def _readable(self, fd: int) -> None:
        if self._read(fd) and self._size() >= _PAUSE:
            for one in tuple(self._reading):
                self._pause(one)
        self._changed.set()

    def _read(self, fd: int) -> bool:
        """Read once; False when there is nothing (more)."""
        try:
            data = os.read(fd, _READ)
        except (BlockingIOError, InterruptedError):
            return False
        if not data:
            self._open.discard(fd)
            self._pause(fd)
            return False
        self._buffers[self._near.index(fd)] += data
        return True

    def _drain(self) -> None:
        """What is in the pipes now, for the last time; a background process may go on writing."""
        for fd in tuple(self._open):
            for _ in range(_PIPE // _READ):
                if not self._read(fd):
                    break
