# SPDX-License-Identifier: Apache-2.0
"""The running ustreamer: started, watched, started again, ended."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import threading

from jumpstarter.common.process import Process, spawn

__all__ = ["UStreamerServer"]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_POLL = 0.02
#: It has nothing to save, and sleeps for a second between two looks for a device that is not there.
_STOP_SECONDS = 0.3


class UStreamerServer:
    """One ustreamer on a unix socket in a directory that only the exporter's user can enter.

    program, args: what to run. start_timeout: seconds until it has to answer.
    """

    def __init__(self, program: str, args: list[str], start_timeout: float, logger: logging.Logger) -> None:
        self.restarts = 0
        self.last_exit = ""
        #: The last thing it said about a device that gives no pictures.
        self.complaint = ""
        self._program = program
        self._args = args
        self._start_timeout = start_timeout
        self._logger = logger
        self._lock = threading.RLock()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: Process | None = None
        self._timer: threading.Timer | None = None
        self._pause = _FIRST_PAUSE
        self._wanted = False
        self._stopped = False

    def start(self) -> tuple[Process, bool]:
        """Run it, if it does not run; the process, and whether it is a new one. Does not wait until it answers.

        Raises OSError when it cannot be started.
        """
        with self._lock:
            self._stopped = False
            return self._run()

    def _run(self) -> tuple[Process, bool]:
        with self._lock:
            if self._stopped:  # a call that was under way when the session ended must not bring it back
                raise ConnectionError("ustreamer was ended with the session")
            self._wanted = True
            self._cancel_timer()
            previous = self._process
            if previous is not None and previous.running:
                return previous, False
            if previous is not None:
                self.last_exit = self._how(previous)
                self.restarts += 1
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="jumpstarter-ustreamer-")
            # It complains about its options on stdout, and about everything else on stderr.
            command = ["/bin/sh", "-c", 'exec "$0" "$@" >&2', self._program]
            command += ["--unix", self._socket, "--unix-rm", *self._args]
            process = spawn(command, name="ustreamer", on_stderr=self._said)
            self._process = process
        process.on_exit(self._ended)
        return process, True

    async def ready(self) -> str:
        """Path of its socket, once it answers there. Starts it when it does not run.

        Raises ConnectionError with the last thing it said when it ends instead, TimeoutError when it does not answer.
        """
        from anyio import to_thread

        process, new = await to_thread.run_sync(self._run)
        socket = self._socket
        try:
            async with asyncio.timeout(self._start_timeout):
                while not await _answers(socket):
                    if process.running:
                        await asyncio.sleep(_POLL)  # its socket appears without a word
                    elif new:
                        raise ConnectionError(self._how(process))
                    else:  # it was just ending
                        process, new = await to_thread.run_sync(self._run)
        except TimeoutError:
            raise TimeoutError(f"ustreamer does not answer {self._start_timeout:g} s after its start") from None
        self._pause = _FIRST_PAUSE
        return socket

    def stop(self) -> None:
        """End it, for good until the next `start`."""
        with self._lock:
            self._wanted, self._stopped = False, True
            self._cancel_timer()
            process, self._process = self._process, None
            folder, self._folder = self._folder, None
            self._pause = _FIRST_PAUSE
        if process is not None:
            process.stop(_STOP_SECONDS)
        if folder is not None:
            folder.cleanup()

    @property
    def _socket(self) -> str:
        folder = self._folder
        if folder is None:
            raise ConnectionError("ustreamer was ended with the session")
        return os.path.join(folder.name, "socket")

    def _ended(self, process: Process) -> None:
        """In the thread that watches it."""
        with self._lock:
            if not self._wanted or process is not self._process:
                return
            self.last_exit = self._how(process)
            self._logger.error("%s; starting it again in %g s", self.last_exit, self._pause)
            self._timer = threading.Timer(self._pause, self._start_again)
            self._timer.daemon = True
            self._timer.start()
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _start_again(self) -> None:
        with self._lock:
            if not self._wanted or (self._process is not None and self._process.running):
                return
            try:
                self._run()
            except OSError as error:
                self._logger.error("ustreamer cannot be started: %s", error)

    def _how(self, process: Process) -> str:
        said = _text(process.last_line)
        return process.describe().partition(": ")[0] + (f": {said}" if said else "")

    def _said(self, line: str) -> None:
        self._logger.debug("%s", line)
        if "-- ERROR" in line or "Waiting for" in line:
            self.complaint = _text(line)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def _answers(path: str) -> bool:
    from jumpstarter.streams.sockets import connect_unix

    try:
        await (await connect_unix(path)).aclose()
    except (ConnectionError, FileNotFoundError):
        return False
    return True


def _text(line: str) -> str:
    """A line of its log ("-- ERROR [1234.567 main] -- text") without what is before the text."""
    return line.rpartition("] -- ")[2].strip()
