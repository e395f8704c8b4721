# SPDX-License-Identifier: Apache-2.0
"""Pieces every benchmark uses: workers, rounds, statistics.

A worker is a process that prints ``READY {json}`` and then answers one JSON request per line with one JSON reply per
line. All workers of a row are started first and then measured in lockstep, round by round (A B C A B C ...), so that a
drift of the machine hits all of them alike; ratios are formed within a round and their median is reported.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MIB = 1 << 20


class WorkerError(RuntimeError):
    """A worker died or reported an error; the text names it and its log."""


# In the worker ---------------------------------------------------------------------------------------------------


def worker_main(operations: dict[str, Callable[..., Any]], ready: dict[str, Any] | None = None) -> None:
    """Answer requests from stdin until it ends. Each reply has the wall seconds the operation took."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not get into the replies
    out.write("READY " + json.dumps(ready or {}) + "\n")
    for line in sys.stdin:
        request = json.loads(line)
        started = time.perf_counter()
        try:
            reply = operations[request.pop("op")](**request) or {}
        except Exception as error:  # noqa: BLE001 (the orchestrator decides what a failure means)
            import traceback

            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"[:400]}
        reply.setdefault("wall", time.perf_counter() - started)
        out.write(json.dumps(reply) + "\n")


def latencies(once: Callable[[], Any], n: int, warm: int = 30) -> dict[str, float]:
    """Seconds per call, p50 and p99."""
    for _ in range(warm):
        once()
    samples = []
    for _ in range(n):
        t0 = time.perf_counter()
        once()
        samples.append(time.perf_counter() - t0)
    samples.sort()
    return {"p50": samples[n // 2], "p99": samples[int(n * 0.99)]}


# In the orchestrator ---------------------------------------------------------------------------------------------


class Worker:
    """A worker process; killed with its whole process group at the end."""

    def __init__(self, name: str, argv: Iterable[object], *, env: dict[str, str] | None = None, timeout: float = 60):
        self.name = name
        logs = ROOT / "build" / "bench-logs"
        logs.mkdir(parents=True, exist_ok=True)
        self.log = (logs / f"{name.replace('/', '_').replace(' ', '_')}.log").open("w")
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TERM": "dumb", "PYTHONPATH": str(HERE), **(env or {})}
        started = time.perf_counter()
        self.process = subprocess.Popen(
            [str(a) for a in argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            bufsize=1, env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            self.info = self._ready(timeout)
        except BaseException:
            self.close()
            raise
        self.start_seconds = time.perf_counter() - started

    def _ready(self, timeout: float) -> dict[str, Any]:
        timer = threading.Timer(timeout, self._kill)
        timer.start()
        try:
            assert self.process.stdout is not None
            for line in self.process.stdout:
                if line.startswith("READY"):
                    info: dict[str, Any] = json.loads(line[5:].strip() or "{}")
                    return info
            raise WorkerError(f"{self.name} ended before it was ready, see {self.log.name}")
        finally:
            timer.cancel()

    def call(self, op: str, timeout: float = 300, **arguments: Any) -> dict[str, Any]:
        """One operation. Raises WorkerError."""
        timer = threading.Timer(timeout, self._kill)
        timer.start()
        try:
            assert self.process.stdin is not None and self.process.stdout is not None
            self.process.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise WorkerError(f"{self.name} died in {op}, see {self.log.name}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise WorkerError(f"{self.name} {op}: {reply['error']}")
        return reply

    def _kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def close(self) -> None:
        """End the process group."""
        try:
            if self.process.stdin is not None:
                self.process.stdin.close()
            self.process.wait(timeout=3)
        except (OSError, subprocess.TimeoutExpired):
            pass
        self._kill()
        self.process.wait()
        self.log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def memory_mib(pid: int) -> float:
    """Proportional set size of a process and its children, in MiB."""
    total, todo = 0.0, [pid]
    while todo:
        current = todo.pop()
        try:
            for task in os.listdir(f"/proc/{current}/task"):
                todo += [int(p) for p in Path(f"/proc/{current}/task/{task}/children").read_text().split()]
            for line in Path(f"/proc/{current}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) / 1024
        except OSError:
            continue  # ended meanwhile
    return total


def median(values: Iterable[float]) -> float:
    """Median, NaN of nothing."""
    values = list(values)
    return statistics.median(values) if values else float("nan")
