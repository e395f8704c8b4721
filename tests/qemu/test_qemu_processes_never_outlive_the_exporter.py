# SPDX-License-Identifier: Apache-2.0
"""jumpstarter.common.process: whatever ends, and however, no helper process is left and the reason is told."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
from conftest_qemu import wait_gone, wait_until

from jumpstarter.common.process import Process, spawn

PARENT = """
import sys, threading, time
from jumpstarter.common.process import spawn
ready = threading.Event()
def work():
    p = spawn(["sleep", "600"])
    print(p.pid, flush=True)
    ready.set()
thread = threading.Thread(target=work)
thread.start(); ready.wait(); thread.join()
{then}
"""


def start_parent(then: str) -> tuple[subprocess.Popen[str], int]:
    code = textwrap.dedent(PARENT).format(then=then)
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


def test_child_dies_when_the_exporter_is_killed_with_sigkill() -> None:
    parent, child = start_parent("time.sleep(600)")
    parent.kill()
    parent.wait()
    wait_gone(child)


def test_child_dies_when_the_exporter_just_ends() -> None:
    parent, child = start_parent("sys.stdin.readline()")
    parent.communicate("\n")
    wait_gone(child)


def test_child_survives_the_end_of_the_thread_that_asked_for_it() -> None:
    """PR_SET_PDEATHSIG fires at the end of the forking thread: a fork in the worker itself would kill the child."""
    spawned: list[Process] = []

    def round_trip(process: Process) -> bytes:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"still here\n")
        process.stdin.flush()
        return process.stdout.readline()

    def work() -> None:
        spawned.append(spawn(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert round_trip(spawned[0]) == b"still here\n"  # the signal is set up by now

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    process = spawned[0]
    try:
        wait_thread_gone(worker)
        assert round_trip(process) == b"still here\n" and process.running
    finally:
        process.stop(0)


def wait_thread_gone(thread: threading.Thread) -> None:
    """Wait until the kernel's thread is gone too: Python's join returns a moment before that."""
    wait_until(lambda: not os.path.exists(f"/proc/self/task/{thread.native_id}"), "end of the kernel's thread")


def test_child_started_while_the_parent_dies_does_not_run() -> None:
    """The launcher compares its parent with the one it was meant for: that closes the gap between fork and prctl."""
    from jumpstarter.common import process as module

    out = subprocess.run(
        [sys.executable, "-I", "-S", "-c", module._LAUNCHER, "1", "/bin/echo", "echo", "ran"],
        check=False,
        capture_output=True,
    )
    assert out.stdout == b"" and out.returncode == 1


def test_everything_in_the_group_ends_with_the_leader() -> None:
    process = spawn(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    grandchild = int(process.stdout.readline())
    process.stop(30)
    wait_gone(grandchild)


def test_what_a_leader_leaves_behind_ends_when_it_exits_by_itself() -> None:
    process = spawn(["sh", "-c", "sleep 600 & echo $!; exit 3"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    grandchild = int(process.stdout.readline())
    assert process.wait(60) == 3
    wait_gone(grandchild)


def test_stop_kills_a_process_that_ignores_sigterm_and_reaps_it() -> None:
    process = spawn(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 600; done"], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    assert process.stop(0.2) == -signal.SIGKILL
    assert not os.path.exists(f"/proc/{process.pid}"), "a zombie is left"
    assert "killed by SIGKILL" in process.describe()
    assert process.stop() == -signal.SIGKILL, "stopping twice is harmless"


def test_last_words_are_in_the_error_and_nothing_is_lost_at_the_end() -> None:
    lines: list[str] = []
    process = spawn(
        [
            "sh",
            "-c",
            "i=0; while [ $i -lt 3000 ]; do echo line $i >&2; i=$((i+1)); done; printf 'it broke' >&2; exit 7",
        ],
        name="thing",
        on_stderr=lines.append,
    )
    assert process.wait(60) == 7
    assert process.describe() == "thing ended (exit status 7): it broke"
    assert len(process.stderr_tail) <= 8192
    assert lines == [f"line {i}" for i in range(3000)] + ["it broke"]


def test_ctrl_c_in_the_terminal_does_not_reach_it() -> None:
    process = spawn(["sleep", "600"])
    try:
        assert os.getsid(process.pid) == process.pid == os.getpgid(process.pid)
    finally:
        process.stop(0)


def test_missing_program_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="program 'no-such-program-x' is not installed"):
        spawn(["no-such-program-x"])


def test_only_named_descriptors_are_inherited() -> None:
    read, write = os.pipe()
    other, other_write = os.pipe()
    os.set_inheritable(other, True)
    try:
        process = spawn(["sh", "-c", "ls /proc/$$/fd"], stdout=subprocess.PIPE, pass_fds=(write,))
        assert process.stdout is not None
        fds = {int(n) for n in process.stdout.read().split()}
        process.wait(60)
        assert write in fds and not {read, other, other_write} & fds
    finally:
        for fd in (read, write, other, other_write):
            os.close(fd)


def test_end_is_told_to_callbacks_and_to_asyncio() -> None:
    process = spawn(["sh", "-c", "read x; exit 5"], stdin=subprocess.PIPE)
    told = threading.Event()
    process.on_exit(lambda _: told.set())

    async def main() -> int:
        task = asyncio.create_task(process.wait_async())
        await asyncio.sleep(0)
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.close()
        return await asyncio.wait_for(task, 60)

    assert asyncio.run(main()) == 5
    assert told.wait(60)
    late = threading.Event()
    process.on_exit(lambda _: late.set())
    assert late.is_set(), "a callback for a process that has ended runs at once"


def test_no_descriptor_or_thread_is_left() -> None:
    spawn(["true"]).wait(60)  # starts the spawner thread
    for thread in [t for t in threading.enumerate() if t.name.startswith("watch-true")]:
        thread.join(60)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        spawn(["true"]).wait(60)
    for thread in [t for t in threading.enumerate() if t.name.startswith("watch-true")]:
        thread.join(60)
    # Other tests' connections may be closed meanwhile, and one that is left would be one for each of the twenty.
    wait_until(lambda: len(os.listdir("/proc/self/fd")) < before + 10, f"no more than the {before} descriptors before")
