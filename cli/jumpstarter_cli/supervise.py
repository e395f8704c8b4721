# SPDX-License-Identifier: Apache-2.0
"""`jmp run` for a controller: a process that keeps the exporter process running.

Drivers are native code and hardware libraries as well, so the exporter is a child that may crash; this process is small
and starts it again. It gives up when that happens too often (`failureDetection` of the configuration). How the child
ends by its own decision is how `jmp run` ends. The child notices when this process dies (its stdin ends), and then
gives the device back by itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Sequence

from jumpstarter_cli.notify import notify, watchdog_seconds

__all__ = ["FINAL_CODES", "supervise"]

logger = logging.getLogger("jumpstarter.exporter")

#: Exit codes by which the child says that it meant to end: stopped, error, interrupted.
FINAL_CODES = frozenset({0, 1, 130})

#: Seconds between the crash of a child and the next, for each crash in the window.
_PAUSE = 0.5

_FORWARDED = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGINT: signal.SIGTERM,
    signal.SIGQUIT: signal.SIGTERM,
    signal.SIGHUP: signal.SIGHUP,
}


def supervise(argv: Sequence[str], max_failures: int, window: float) -> int:
    """Run the exporter process `argv` until it means to end, or crashed `max_failures` times within `window` seconds.

    Two arguments are added to `argv`: a descriptor for its states, and the seconds of systemd's watchdog. Returns the
    exit code; 128 + N when the child was stopped and signal N ended it.
    """
    return asyncio.run(_Supervisor(list(argv), max_failures, window).run())


class _Supervisor:
    def __init__(self, argv: list[str], max_failures: int, window: float) -> None:
        self._argv = argv
        self._max_failures = max_failures
        self._window = window
        self._failures: deque[float] = deque()
        self._child: subprocess.Popen[bytes] | None = None
        self._ended = asyncio.Event()
        self._stop = asyncio.Event()
        self._code = 0

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in _FORWARDED:
            loop.add_signal_handler(number, self._signalled, number)
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        while True:
            code = await self._once(loop)
            if self._stop.is_set() or code in FINAL_CODES:
                return code if code >= 0 else 128 - code
            how = f"by {_signal_name(-code)}" if code < 0 else f"with exit code {code}"
            now = loop.time()
            self._failures.append(now)
            while self._failures[0] < now - self._window:
                self._failures.popleft()
            count = len(self._failures)
            if count >= self._max_failures:
                logger.error(
                    "the exporter process ended %s, %d times within %g s (failureDetection): giving up",
                    *(how, count, self._window),
                )
                return 1
            pause = _PAUSE * count
            logger.error("the exporter process ended %s: starting it again in %g s", how, pause)
            notify(f"STATUS=the exporter process ended {how}, starting it again")
            try:
                async with asyncio.timeout(pause):
                    await self._stop.wait()
                return 0
            except TimeoutError:
                pass

    async def _once(self, loop: asyncio.AbstractEventLoop) -> int:
        """One life of the child; returns its exit code, -N for signal N."""
        states, states_child = os.pipe()
        extra = ["--state-fd", str(states_child), "--watchdog", f"{watchdog_seconds():g}"]
        self._ended.clear()
        try:
            # A session of its own: a Ctrl-C goes to this process, which passes it on. stdin is the lifeline.
            child = self._child = subprocess.Popen(
                [*self._argv, *extra], stdin=subprocess.PIPE, pass_fds=(states_child,), start_new_session=True
            )
        finally:
            os.close(states_child)
        relay = _Relay(loop, states)
        try:
            if self._stop.is_set():  # told to stop while the child was being started
                child.send_signal(signal.SIGTERM)
            await self._ended.wait()
            return self._code
        finally:
            self._child = None
            relay.close()
            assert child.stdin is not None
            child.stdin.close()

    def _signalled(self, number: signal.Signals) -> None:
        self._stop.set()
        notify("STOPPING=1" if number is not signal.SIGHUP else "STATUS=stopping after the lease")
        if self._child is not None:
            self._child.send_signal(_FORWARDED[number])

    def _reap(self) -> None:
        """Every process that ended: as PID 1 of a container this one inherits those that nobody waits for."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._child
            if child is not None and pid == child.pid:
                self._code = child.returncode = os.waitstatus_to_exitcode(status)
                self._ended.set()


class _Relay:
    """Passes the child's states on to systemd, which listens to this process only."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int) -> None:
        self._loop = loop
        self._fd = fd
        self._rest = b""
        self._open = True
        os.set_blocking(fd, False)
        loop.add_reader(fd, self._readable)

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._fd)
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            notify(line.decode(errors="replace"))

    def close(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._fd)
            os.close(self._fd)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def child_argv(config: Sequence[str], log_level: str, log_format: str, exit_on_lease_end: bool) -> list[str]:
    """The command line of the exporter process. config: the option and value that name the configuration."""
    argv = [sys.executable, "-m", "jumpstarter_cli.exporter_process", *config]
    argv += ["--log-level", log_level, "--log-format", log_format]
    return [*argv, "--exit-on-lease-end"] if exit_on_lease_end else argv
