# SPDX-License-Identifier: Apache-2.0
"""Protects how programs are run for driver calls, where timing decides: late timers, and calls that are cancelled."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from jumpstarter.common import commands
from jumpstarter.common.process import Process


def test_a_slow_reader_does_not_make_a_finished_command_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is over while the last output waits to be taken; the command had ended before."""
    go = tmp_path / "go"
    os.mkfifo(go)

    async def main() -> Any:
        loop = asyncio.get_running_loop()
        due: list[Any] = []
        plain = loop.call_later

        def call_later(delay: float, callback: Any, *args: Any, **options: Any) -> asyncio.TimerHandle:
            if delay == 1234:
                due.append(callback)
            return plain(delay, callback, *args, **options)

        monkeypatch.setattr(loop, "call_later", call_later)
        running: set[Process] = set()
        command = ["sh", "-c", f"echo one; read x < {go}; echo two"]
        async with aclosing(commands.stream_command(command, timeout=1234, running=running)) as items:
            assert await anext(items) == (b"one\n", b"", None)
            (process,) = running
            await asyncio.to_thread(go.write_text, "x\n")
            await process.wait_async()
            due[0]()
            return [item async for item in items]

    assert asyncio.run(main())[-1] == (b"two\n", b"", 0)


def test_a_call_that_is_cancelled_twice_while_it_starts_leaves_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Process] = []
    spawning, go = threading.Event(), threading.Event()
    plain = commands.spawn

    def slow(*args: Any, **options: Any) -> Process:
        spawning.set()
        assert go.wait(30)
        started.append(plain(*args, **options))
        return started[0]

    monkeypatch.setattr(commands, "spawn", slow)

    async def main() -> None:
        call = asyncio.ensure_future(commands.run_command(["sleep", "600"], timeout=600))
        await asyncio.to_thread(spawning.wait, 30)
        for _ in range(2):
            call.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not call.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not started[0].running

    asyncio.run(main())


def test_a_reader_that_leaves_ends_a_command_without_a_trace() -> None:
    """`j tools log | head`: click ends the program itself at EPIPE."""
    script = """
import click, sys
from jumpstarter_cli.errors import run

@click.command()
def chat():
    while True:
        click.echo("a line")

assert run(chat.main, []) == 1
sys.exit(7)
"""
    near, far = os.pipe()
    os.close(near)
    try:
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=far, stderr=subprocess.PIPE, timeout=60, check=False
        )
    finally:
        os.close(far)
    assert (done.returncode, done.stderr) == (7, b"")
