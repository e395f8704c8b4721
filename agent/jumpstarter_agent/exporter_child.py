# SPDX-License-Identifier: Apache-2.0
"""The exporter process of a local reach: started, watched and ended by the agent.

It holds the read end of a pipe whose write end is ours (the lifeline): when this process dies in whatever way, the
pipe reports end-of-file and the exporter ends its session, which switches the device off.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .errors import AgentError
from .procwatch import start_time, wait_gone

__all__ = ["ExporterChild", "StopBudget", "exporter_child"]

log = logging.getLogger(__name__)

START_SECONDS = 60.0
"""An exporter that is not ready by then has failed. Generous: drivers may open slow hardware."""

STOP_SECONDS = 10.0
"""Time an exporter has to switch its device off after it was told to end, outside of a total shutdown."""

_READY = b"READY"
_TAIL_BYTES = 64 * 1024


@dataclass
class StopBudget:
    """Time the end of a lease may take. The agent sets `deadline` (loop time) when it shuts down as a whole."""

    deadline: float | None = None

    def left(self, most: float) -> float:
        """Seconds one step may take: `most`, or less when the whole has to be over before."""
        if self.deadline is None:
            return most
        return max(0.0, min(most, self.deadline - asyncio.get_running_loop().time()))


class ExporterChild:
    """A running exporter. `ended` becomes a sentence ("exit status 3: ...") when the process is gone."""

    def __init__(self, config: str, socket: Path, process: subprocess.Popen[bytes], log_path: Path) -> None:
        self.config = config
        self.socket = socket
        self.pid = process.pid
        self.info: dict[str, Any] = {}
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._process = process
        self._log_path = log_path
        self._drain: asyncio.Task[None] | None = None
        self._watcher = asyncio.create_task(self._watch(), name=f"exporter {self.pid}")

    async def wait_ready(self) -> None:
        """Wait for the READY line; `AgentError` "exporter_failed" carries what the exporter said instead."""
        try:
            async with asyncio.timeout(START_SECONDS):
                stdout = await _read_pipe(self._process.stdout)
                while line := await stdout.readline():
                    if line.startswith(_READY):
                        self._keep_info(line.removeprefix(_READY))
                        self._drain = asyncio.create_task(_discard(stdout))
                        return
                await asyncio.shield(self.ended)
        except TimeoutError:
            raise AgentError(
                "exporter_failed",
                f"exporter {self.config} was not ready after {START_SECONDS:g} s; see {self._log_path}",
            ) from None
        said = self.last_line()
        status = self._process.returncode
        text = said or f"exporter {self.config} ended with status {status} before it was ready and said nothing"
        raise AgentError("exporter_failed", text, {"exporter": self.config, "status": status})

    async def stop(self, budget: StopBudget) -> None:
        """End the process: ask (SIGTERM, lifeline closed by the caller), then kill.

        In a total shutdown there is no time to wait for a slow power supply, and killing the exporter would leave the
        device on: then it is left to finish by itself. It ends itself, by force if it has to.
        """
        if not self.ended.done():
            self._signal(signal.SIGTERM)
            await asyncio.wait([self._watcher], timeout=budget.left(STOP_SECONDS))
        if not self.ended.done() and budget.deadline is not None:
            log.warning("exporter %s (pid %d) is still closing the device", self.config, self.pid)
        elif not self.ended.done():
            log.warning("exporter %s (pid %d) did not end within %g s: killed", self.config, self.pid, STOP_SECONDS)
            self._signal(signal.SIGKILL)
            await asyncio.wait([self._watcher], timeout=1.0)
        with contextlib.suppress(FileNotFoundError):
            self.socket.unlink()

    def last_line(self) -> str:
        """The last line the exporter wrote to stderr, without "error: " before it; "" when there is none."""
        try:
            with self._log_path.open("rb") as file:
                file.seek(max(0, self._log_path.stat().st_size - _TAIL_BYTES))
                tail = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        lines = [line.strip() for line in tail.splitlines() if line.strip()]
        return lines[-1].removeprefix("error: ") if lines else ""

    def _keep_info(self, text: bytes) -> None:
        try:
            value = json.loads(text)
        except ValueError:
            return
        if isinstance(value, dict):
            self.info = value

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def _watch(self) -> None:
        started = start_time(self.pid)
        if started is not None:
            await wait_gone(self.pid, started)
        self.ended.set_result(_describe_status(self._process.wait()))


@contextlib.asynccontextmanager
async def exporter_child(
    config: str, socket: Path, log_path: Path, *, keep_fds: tuple[int, ...] = (), budget: StopBudget
) -> AsyncIterator[ExporterChild]:
    """Run an exporter for the block; `budget` is read when the block ends."""
    lifeline_read, lifeline_write = os.pipe()
    try:
        process = _spawn(config, socket, log_path, lifeline_read, keep_fds)
    except OSError as error:
        os.close(lifeline_write)
        raise AgentError("exporter_failed", f"cannot start the exporter for {config}: {error.strerror}") from error
    finally:
        os.close(lifeline_read)
    child = ExporterChild(config, socket, process, log_path)
    try:
        await child.wait_ready()
        yield child
    finally:
        os.close(lifeline_write)
        # Shielded: a cancelled acquisition must not leave the process behind.
        await asyncio.shield(child.stop(budget))


def _spawn(
    config: str, socket: Path, log_path: Path, lifeline: int, keep_fds: tuple[int, ...]
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "jumpstarter.exporter", "--config", config, "--listen", f"unix:{socket}"]
    log_fd = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        # Not asyncio's subprocess: that one kills its child when the loop ends, and this child may have to finish
        # switching a device off.
        return subprocess.Popen(
            [*command, "--lifeline", str(lifeline)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log_fd,
            pass_fds=(lifeline, *keep_fds),
            start_new_session=True,
        )
    finally:
        os.close(log_fd)


async def _read_pipe(pipe: IO[bytes] | None) -> asyncio.StreamReader:
    assert pipe is not None
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return reader


async def _discard(stream: asyncio.StreamReader) -> None:
    # A driver that prints must not fill the pipe and block.
    while await stream.read(_TAIL_BYTES):
        pass


def _describe_status(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
