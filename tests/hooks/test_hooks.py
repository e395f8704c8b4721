# SPDX-License-Identifier: Apache-2.0
"""Hooks end in a definite outcome, leave no process behind and see no more of the environment than they need."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from jumpstarter.config.exporter import HookInstanceConfigV1Alpha1
from jumpstarter.exporter.hooks import (
    LOGGER_NAME,
    HookAction,
    HookContext,
    HookOutcome,
    command_of,
    environment_of,
    run_hook,
)
from jumpstarter_testing import eventually

CONTEXT = HookContext(host="/run/x.sock", lease_name="lease-1", client_name="me", exporter_name="board")


def hook(script: str, **options: Any) -> HookInstanceConfigV1Alpha1:
    return HookInstanceConfigV1Alpha1.model_validate({"script": script, **options})


def run(script: str, moment: Any = "afterLease", **options: Any) -> HookOutcome:
    return asyncio.run(run_hook(hook(script, **options), moment, CONTEXT))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def assert_gone(pid: int) -> None:
    assert not alive(pid), f"process {pid} survived"


def out_of_time(script: str, begun: Path, lines: int) -> HookOutcome:
    """Run a hook whose time is over as soon as it has written so many lines to a file, and not before."""

    async def main() -> HookOutcome:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(run_hook(hook(script, timeout=1000), "afterLease", CONTEXT))
        time = loop.time

        def limited() -> bool:  # the process may be at work before the exporter waits for it
            return any(timer.when() > time() + 900 for timer in loop._scheduled)  # type: ignore[attr-defined]

        while not limited() or not begun.exists() or begun.read_text().count("\n") < lines:
            await asyncio.sleep(0.01)
        loop.time = lambda: time() + 1000  # type: ignore[method-assign]
        return await task

    return asyncio.run(main())


def test_no_hook_is_a_success() -> None:
    assert asyncio.run(run_hook(None, "beforeLease", CONTEXT)).ok


def test_output_is_logged_line_by_line_while_it_runs(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """stdout and stderr in order, each line at once: the second is only written when the first has been logged."""
    fifo = tmp_path / "go"
    os.mkfifo(fifo)

    async def main() -> HookOutcome:
        task = asyncio.ensure_future(
            run_hook(hook(f"echo one; cat {fifo}; echo two >&2; printf end"), "afterLease", CONTEXT)
        )
        while not any(record.getMessage() == "one" for record in caplog.records):
            await asyncio.sleep(0.01)
        fifo.write_text("go\n")
        return await task

    with caplog.at_level(logging.INFO, logger=LOGGER_NAME):
        assert asyncio.run(asyncio.wait_for(main(), 60)).ok
    lines = [record.getMessage() for record in caplog.records if record.name == LOGGER_NAME]
    assert lines == ["one", "go", "two", "end"]


@pytest.mark.parametrize(
    ("on_failure", "action"),
    [("warn", HookAction.WARN), ("endLease", HookAction.END_LEASE), ("exit", HookAction.EXIT)],
)
@pytest.mark.parametrize(
    ("script", "options", "text"),
    [
        ("exit 3", {}, "exit code 3"),
        ("kill -9 $$", {}, "killed by signal 9"),
        ("sleep 60", {"timeout": 0.2}, "timed out after 0.2 seconds"),
        ("true", {"exec": "/no/such/interpreter"}, "/no/such/interpreter"),
    ],
)
def test_every_failure_has_the_outcome_the_configuration_asks_for(
    on_failure: str, action: HookAction, script: str, options: dict[str, Any], text: str
) -> None:
    outcome = run(script, onFailure=on_failure, **options)
    assert outcome.action is action and not outcome.ok
    assert text in outcome.message and "\n" not in outcome.message
    assert outcome.status_message.startswith("[HOOK_WARNING] ") == (action is HookAction.WARN)


def test_the_unexpected_has_an_outcome_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr("jumpstarter.exporter.hooks.environment_of", broken)
    outcome = run("true", onFailure="endLease")
    assert outcome.action is HookAction.END_LEASE
    assert "nobody thought of this" in outcome.message


def test_out_of_time_ends_the_whole_process_group(tmp_path: Path) -> None:
    """Also grandchildren, and those that ignore SIGTERM."""
    pids = tmp_path / "pids"
    script = f"""
        sh -c 'trap "" TERM; echo $$ >> {pids}; while :; do sleep 0.1; done' &
        (sleep 600 & echo $! >> {pids}; wait) &
        echo $$ >> {pids}
        trap "" TERM
        wait
    """
    outcome = out_of_time(script, pids, 3)
    assert "timed out" in outcome.message
    found = [int(line) for line in pids.read_text().split()]
    assert len(found) == 3
    for pid in found:
        eventually(lambda pid=pid: assert_gone(pid))  # killed together, they end one after the other


def test_sigterm_comes_first_so_that_a_hook_can_clean_up(tmp_path: Path) -> None:
    done, begun = tmp_path / "done", tmp_path / "begun"
    out_of_time(f"trap 'echo cleaned > {done}; exit 0' TERM; sleep 600 & echo > {begun}; wait", begun, 1)
    assert done.read_text() == "cleaned\n"


def test_what_a_finished_hook_left_in_its_group_is_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pid"
    outcome = run(f"sleep 600 & echo $! > {pids}")
    assert outcome.ok
    eventually(lambda: assert_gone(int(pids.read_text())))


def test_a_cancelled_hook_leaves_nothing(tmp_path: Path) -> None:
    pids = tmp_path / "pid"

    async def main() -> None:
        task = asyncio.ensure_future(run_hook(hook(f"sleep 600 & echo $! > {pids}; wait"), "afterLease", CONTEXT))
        while not (pids.exists() and pids.read_text().endswith("\n")):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(main(), 60))
    eventually(lambda: assert_gone(int(pids.read_text())))


def test_a_hook_dies_with_its_exporter(tmp_path: Path) -> None:
    pids = tmp_path / "pid"
    code = f"""
import asyncio
from jumpstarter.config.exporter import HookInstanceConfigV1Alpha1 as H
from jumpstarter.exporter.hooks import HookContext, run_hook
asyncio.run(run_hook(H(script="echo $$ > {pids}; exec sleep 600"), "afterLease", HookContext(host="x")))
"""

    async def main() -> int:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
        while not (pids.exists() and pids.read_text().endswith("\n")):
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        return int(pids.read_text())

    pid = asyncio.run(asyncio.wait_for(main(), 60))
    eventually(lambda: assert_gone(pid))


def test_the_environment_is_small(tmp_path: Path) -> None:
    environ = {
        "PATH": "/bin",
        "HOME": "/home/me",
        "LC_ALL": "C",
        "AWS_SECRET_ACCESS_KEY": "s3cret",
        "JMP_GRPC_PASSPHRASE": "s3cret",
        "LAB_SITE": "roof",
        "LAB_ROW": "2",
        "PS1": "$",
    }
    found = environment_of(hook("true", passEnv=["LAB_*"]), CONTEXT, environ)
    assert "s3cret" not in found.values() and "PS1" not in found
    assert (found["HOME"], found["LC_ALL"], found["LAB_SITE"], found["LAB_ROW"]) == ("/home/me", "C", "roof", "2")
    expected = {
        "JUMPSTARTER_HOST": "/run/x.sock",
        "JMP_DRIVERS_ALLOW": "UNSAFE",
        "LEASE_NAME": "lease-1",
        "CLIENT_NAME": "me",
        "JMP_EXPORTER": "board",
        "TERM": "dumb",
        "DEBIAN_FRONTEND": "noninteractive",
        "GIT_TERMINAL_PROMPT": "0",
    }
    assert expected.items() <= found.items()
    assert found["PATH"].split(":")[0] == str(Path(sys.executable).parent)  # so that `j` is ours


def test_details_cannot_replace_what_a_hook_relies_on() -> None:
    context = HookContext(host="/run/x.sock", details={"LEASE_SELECTOR": "a=b", "JUMPSTARTER_HOST": "evil"})
    found = environment_of(hook("true"), context, {})
    assert found["LEASE_SELECTOR"] == "a=b" and found["JUMPSTARTER_HOST"] == "/run/x.sock"


def test_how_scripts_are_run(tmp_path: Path) -> None:
    python, shell = tmp_path / "a.py", tmp_path / "a.sh"
    python.write_text("")
    shell.write_text("")
    assert command_of(hook(str(python))) == [sys.executable, str(python)]
    assert command_of(hook(str(shell))) == ["/bin/sh", str(shell)]
    assert command_of(hook(f"{shell}\n", exec="/bin/bash")) == ["/bin/bash", str(shell)]
    assert command_of(hook("echo a\necho b", exec="/bin/bash")) == ["/bin/bash", "-c", "echo a\necho b"]
    assert command_of(hook(str(tmp_path / "gone.py"))) == ["/bin/sh", "-c", str(tmp_path / "gone.py")]


def test_a_python_file_runs(tmp_path: Path) -> None:
    script = tmp_path / "hook.py"
    script.write_text("import os, pathlib; pathlib.Path(os.environ['HOOK_OUT']).write_text('ran')")
    os.environ["HOOK_OUT"] = str(tmp_path / "out")
    try:
        assert run(str(script), passEnv=["HOOK_OUT"]).ok
    finally:
        del os.environ["HOOK_OUT"]
    assert (tmp_path / "out").read_text() == "ran"


@pytest.mark.parametrize(
    ("script", "motd"),
    [
        ("echo welcome > $JMP_MOTD_FILE", "welcome\n"),
        ("true", ""),
        ("rm $JMP_MOTD_FILE; ln -s /etc/hostname $JMP_MOTD_FILE", ""),
        ("rm $JMP_MOTD_FILE; mkfifo $JMP_MOTD_FILE", ""),
        ("head -c 100000 /dev/zero | tr '\\0' x > $JMP_MOTD_FILE", "x" * 65536),
        ("echo kept > $JMP_MOTD_FILE; exit 1", "kept\n"),  # onFailure: warn goes on
    ],
)
def test_motd(script: str, motd: str) -> None:
    assert run(script, "beforeLease").motd == motd


def test_only_before_lease_has_a_motd_file() -> None:
    assert run('test -z "$JMP_MOTD_FILE"', "afterLease").ok
    assert run('test -f "$JMP_MOTD_FILE"', "beforeLease").ok


def test_programs_see_a_terminal_and_no_input() -> None:
    assert run("test -t 1").ok
    assert run("! read -r line", timeout=10).ok
