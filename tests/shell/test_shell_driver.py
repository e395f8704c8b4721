# SPDX-License-Identifier: Apache-2.0
"""Protects the shell driver, with the real bash: output, exit status, environment, time, and what is left running."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jumpstarter.common.exceptions import ConfigurationError, DriverError, DriverInvalidArgument
from jumpstarter.common.process import Process
from jumpstarter.common.utils import serve
from jumpstarter.driver import export
from jumpstarter_driver_shell.client import ShellClient
from jumpstarter_driver_shell.driver import TIMED_OUT, Shell
from jumpstarter_testing import eventually


def items(client: ShellClient, *args: Any, how: str = "call_method") -> tuple[Any, Any, int | None, int]:
    """stdout, stderr, exit status and number of items of one call."""
    out: list[Any] = []
    err: list[Any] = []
    code = None
    count = 0
    for stdout, stderr, rc in client.streamingcall(how, *args):
        count += 1
        out.append(stdout)
        err.append(stderr)
        code = rc if rc is not None else code
    joined: list[Any] = []
    for parts in (out, err):
        if any(isinstance(part, bytes) for part in parts):
            joined.append(b"".join(part if isinstance(part, bytes) else part.encode() for part in parts))
        else:
            joined.append("".join(parts))
    return joined[0], joined[1], code, count


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> Callable[[], None]:
    def check() -> None:
        assert not alive(pid)

    return check


# --- what goes in and comes out -----------------------------------------------------------------------------------


def test_arguments_variables_output_and_status_arrive_as_they_were() -> None:
    method = 'printf "%s|" "$0" "$@" "$COLOUR"; echo oops >&2; exit 7'
    with serve(Shell(methods={"show": method})) as client:
        assert client.get_methods() == ["show"]
        out, err, code, _ = items(client, "show", {"COLOUR": "a 'b' $c"}, "one two", "$HOME", "é;rm", "")
        assert (out, err, code) == ("show|one two|$HOME|é;rm||a 'b' $c|", "oops\n", 7)


def test_methods_are_attributes_that_show_their_output_and_return_the_status(capfd: pytest.CaptureFixture[str]) -> None:
    with serve(Shell(methods={"run": "echo out $1 $V; echo err >&2; exit 3", "get-x": "true"})) as client:
        assert client.run("a", V="b") == 3
        assert client.call_method("get-x") == 0
        with pytest.raises(AttributeError, match=r"no method 'walk'; it has run, get-x"):
            client.walk()
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("out a b\n", "err\n")


def test_whole_results_are_for_plays() -> None:
    with serve(
        Shell(methods={"say": "echo $1 $V; exit 4", "much": "head -c 600000 /dev/zero | tr '\\0' x; echo end"})
    ) as client:
        said = client.call("run_method", "say", ["hello"], {"V": "you"})
        assert said == {"rc": 4, "stdout": "hello you\n", "stderr": "", "truncated": False}
        much = client.call("run_method", "much")
        assert much["truncated"] is True
        assert much["stdout"].endswith("xend\n")


def test_binary_output_survives_and_characters_are_never_cut(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    raw = r"printf '\377\0\376ok\n'"
    text = "yes 'äöü€😀' | tr -d '\\n' | head -c 2600000"
    with serve(Shell(methods={"raw": raw, "text": text})) as client:
        assert items(client, "raw", {})[0] == "�\0�ok\n"
        assert items(client, "raw", {}, how="call_method_raw")[0] == b"\xff\0\xfeok\n"
        wanted = "äöü€😀" * 200_000
        assert items(client, "text", {})[0] == wanted
        assert items(client, "text", {}, how="call_method_raw")[0] == wanted
        assert client.raw() == 0
    assert capfdbinary.readouterr().out == b"\xff\0\xfeok\n"


def test_status_of_a_signal_is_negative_on_the_wire_and_the_shells_on_the_command_line() -> None:
    with serve(Shell(methods={"die": "kill -9 $$"})) as client:
        assert items(client, "die", {})[2] == -9
        assert CliRunner().invoke(client.cli(), ["die"]).exit_code == 137


def test_no_input_is_waited_for() -> None:
    with serve(Shell(methods={"read": "cat; echo done"}, timeout=20)) as client:
        assert items(client, "read", {})[0] == "done\n"


# --- commands -----------------------------------------------------------------------------------------------------


def test_commands_pass_options_and_exit_status_on(capfd: pytest.CaptureFixture[str]) -> None:
    methods = {
        "ls": {"command": 'echo "$@" $V; exit $1', "description": "List things"},
        "_secret": "echo hidden",
    }
    with serve(Shell(methods=methods, description="Board tools", methods_description={"ls": "Ours wins"})) as client:
        runner = CliRunner()
        usage = runner.invoke(client.cli(), ["--help"]).output
        assert "Board tools" in usage and "Ours wins" in usage and "secret" not in usage
        assert runner.invoke(client.cli(), ["ls", "-e", "V=1=2", "5", "--long", "-e", "x"]).exit_code == 5
        assert runner.invoke(client.cli(), ["ls", "0"]).exit_code == 0
        bad = runner.invoke(client.cli(), ["ls", "-e", "hunter2"])
        assert bad.exit_code == 2 and "KEY=VALUE" in bad.output and "hunter2" not in bad.output
        assert client.call_method("_secret") == 0, "hidden from menus, not forbidden"
        assert client.get_methods() == ["ls"]
        with pytest.raises(AttributeError):
            client._secret  # noqa: B018


def test_methods_descriptions_come_from_the_methods() -> None:
    driver = Shell(methods={"ls": {"command": "ls", "description": "List things"}})
    assert driver.methods_description == {"ls": "List things"}


# --- environment --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "LD_PRELOAD",
        "BASH_FUNC_x%%",
        "BASH_FUNC_ls",
        "PATH",
        "PYTHONPATH",
        "BASH_ENV",
        "KUBECONFIG",
        "HOME",
        "BASH_LOADABLES_PATH",
        "GLIBC_TUNABLES",
        "JAVA_TOOL_OPTIONS",
        "1X",
        "A-B",
    ],
)
def test_clients_cannot_set_what_decides_which_program_runs(name: str) -> None:
    with serve(Shell(methods={"env": "env"})) as client:
        with pytest.raises(DriverInvalidArgument, match="environment variable") as caught:
            items(client, "env", {name: "hunter2"})
        assert "hunter2" not in str(caught.value)


def test_clients_set_only_what_the_allow_rule_names() -> None:
    with serve(Shell(methods={"env": "env"}, allow_env=["BOARD_*"])) as client:
        assert "BOARD_A=1" in items(client, "env", {"BOARD_A": "1"})[0]
        with pytest.raises(DriverInvalidArgument, match="OTHER: is not in allow_env"):
            items(client, "env", {"OTHER": "1"})


def test_commands_do_not_see_the_exporters_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JMP_TOKEN", "JUMPSTARTER_HOST", "CORELLIUM_API_TOKEN", "AWS_SECRET_ACCESS_KEY", "KUBECONFIG"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("LAB_RACK", "7")
    with serve(Shell(methods={"env": "env"}, pass_env=["LAB_*"], env={"FIXED": "yes"})) as client:
        seen = items(client, "env", {"MINE": "1"})[0]
    assert "hunter2" not in seen
    for line in ("LAB_RACK=7", "FIXED=yes", "MINE=1", f"PATH={os.environ['PATH']}"):
        assert line in seen.splitlines()


def test_values_of_variables_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serve(Shell(methods={"true": "true"}, env={"A": "hunter3"}, log_level="DEBUG")) as client:
        items(client, "true", {"TOKEN": "hunter2"})
    assert "TOKEN" in caplog.text, "names are logged"
    assert "hunter" not in caplog.text
    assert "hunter" not in repr(Shell(methods={}, env={"A": "hunter3"}))


# --- time, and what is left running -------------------------------------------------------------------------------


def test_timeout_ends_the_whole_group_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jumpstarter_driver_shell.driver._GRACE", 120)
    pids = tmp_path / "pids"
    command = f"sleep 600 & echo $! >> {pids}; (trap '' TERM; echo $BASHPID >> {pids}; sleep 600) & echo before; wait"
    with serve(Shell(methods={"hang": {"command": command, "timeout": 1}})) as client:
        started = time.monotonic()
        out, err, code, _ = items(client, "hang", {})
        assert (out, code) == ("before\n", TIMED_OUT)
        assert "hang: timeout, ended after 1 s" in err
        assert time.monotonic() - started < 60, "the leader ends at SIGTERM, and what ignores it goes with it"
        for pid in pids.read_text().split():
            eventually(gone(int(pid)))


def test_a_command_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("jumpstarter_driver_shell.driver._GRACE", 0.5)
    pid = tmp_path / "pid"
    command = f"trap 'echo no' TERM; echo $$ > {pid}; while :; do sleep 0.05; done"
    with serve(Shell(methods={"stay": {"command": command, "timeout": 0.5}})) as client:
        started = time.monotonic()
        out, _, code, _ = items(client, "stay", {})
        assert code == TIMED_OUT and "no\n" in out, "what it says while it is being ended still comes"
        assert 1 <= time.monotonic() - started < 60
    assert not alive(int(pid.read_text()))


def test_a_cancelled_call_ends_the_group(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    command = f"sleep 600 & echo $! $$ > {pids}; echo started; wait"
    with serve(Shell(methods={"hang": command})) as client:
        call = client.streamingcall("call_method", "hang", {})
        assert next(call)[0] == "started\n"
        call.close()
        for pid in pids.read_text().split():
            eventually(gone(int(pid)))


def test_end_of_the_session_ends_what_runs(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with serve(Shell(methods={"hang": f"echo $$ > {pid}; echo started; sleep 600"})) as client:
        call = client.streamingcall("call_method", "hang", {})
        next(call)
    eventually(gone(int(pid.read_text())))


def test_end_of_the_session_takes_no_second_for_each_command(monkeypatch: pytest.MonkeyPatch) -> None:
    granted: list[float] = []
    stop = Process.stop

    def stopping(process: Process, timeout: float = 5.0) -> int:
        granted.append(timeout)
        return stop(process, timeout)

    monkeypatch.setattr(Process, "stop", stopping)
    made = Shell(methods={"stay": "trap '' TERM; echo up; while :; do sleep 0.05; done"})
    with serve(made) as client:
        calls = [client.streamingcall("call_method", "stay", {}) for _ in range(6)]
        for call in calls:
            assert next(call)[0] == "up\n"
        made.close()
        # One second for all of them: each ignores its signal, so the first takes what there is.
        assert len(granted) == 6 and sum(granted) < 1.5


def test_background_children_neither_hang_the_call_nor_die_with_it(tmp_path: Path) -> None:
    command = "sleep 600 & echo $!; exit 5"
    with serve(Shell(methods={"start": command}, timeout=30)) as client:
        started = time.monotonic()
        out, _, code, _ = items(client, "start", {})
        took = time.monotonic() - started
        pid = int(out)
        try:
            assert code == 5 and took < 60
            assert alive(pid), "a service that a method starts goes on"
        finally:
            os.kill(pid, 9)


def test_output_after_the_last_command_is_not_lost() -> None:
    with serve(Shell(methods={"tee": "exec > >(sleep 0.1; sed s/a/b/); echo aaa"})) as client:
        assert items(client, "tee", {})[0] == "baa\n"


def test_calls_run_beside_one_another() -> None:
    with serve(Shell(methods={"wait": "echo up; sleep 600", "quick": "echo hi"})) as client:
        call = client.streamingcall("call_method", "wait", {})
        assert next(call)[0] == "up\n"
        assert items(client, "quick", {})[0] == "hi\n"
        call.close()


def test_no_descriptors_are_left_open() -> None:
    with serve(Shell(methods={"x": "echo hi"})) as client:
        items(client, "x", {})
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            items(client, "x", {})
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) <= before + 2


# --- speed --------------------------------------------------------------------------------------------------------


def test_output_is_as_fast_as_a_plain_pipe_allows() -> None:
    """0.9 delivered 9 kB/s, so that a chatty command was killed by its timeout. Megabytes per second, and the ratio."""
    size = 32 << 20
    command = f"yes 'a line of output, as build tools write them by the thousand' | head -c {size}"
    started = time.monotonic()
    plain = len(subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE, check=True).stdout)
    by_pipe = time.monotonic() - started
    with serve(Shell(methods={"chat": command})) as client:
        started = time.monotonic()
        got = count = 0
        for stdout, _, _ in client.streamingcall("call_method_raw", "chat", {}):
            got += len(stdout)
            count += 1
        ours = time.monotonic() - started
    print(f"pipe {size / by_pipe / 1e6:.0f} MB/s, call {size / ours / 1e6:.1f} MB/s in {count} items")
    assert got == plain == size
    assert size / ours > 5e6, f"{size / ours / 1e6:.1f} MB/s"
    assert ours < 100 * by_pipe + 2


def test_many_small_writes_travel_together() -> None:
    with serve(Shell(methods={"lines": "for i in $(seq 20000); do echo line $i; done"})) as client:
        out, _, _, count = items(client, "lines", {})
    assert out.count("\n") == 20000
    assert count < 2000


def test_a_line_arrives_when_it_is_written(tmp_path: Path) -> None:
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    with serve(Shell(methods={"talk": f"echo one; read x < {fifo}; echo two"})) as client:
        call = client.streamingcall("call_method", "talk", {})
        assert next(call)[0] == "one\n"
        fifo.write_text("x\n")
        assert "".join(out for out, _, _ in call) == "two\n"


# --- what is wrong ------------------------------------------------------------------------------------------------


def test_wrong_calls_are_named() -> None:
    with serve(Shell(methods={"ls": "ls", "_x": "true"})) as client:
        with pytest.raises(DriverInvalidArgument, match='no method "dir"; there are ls'):
            items(client, "dir", {})
        with pytest.raises(DriverInvalidArgument, match="argument 2 must be a text, not float"):
            items(client, "ls", {}, "a", 1.5)
        with pytest.raises(DriverInvalidArgument, match="argument 1 holds a NUL byte"):
            items(client, "ls", {}, "a\0b")
        with pytest.raises(DriverInvalidArgument, match="variable X: must be a text, not int"):
            items(client, "ls", {"X": 1})
        with pytest.raises(DriverInvalidArgument, match="ls: its arguments and variables are longer than a program"):
            client.call("run_method", "ls", ["x" * 200_000])


@dataclass(kw_only=True)
class BrokenOff(Shell):
    """An exporter whose stream ends before the command does."""

    @export
    async def call_method_raw(self, method: str, env: Any = None, *args: Any) -> AsyncGenerator[Any, None]:
        yield "half", "", None


def test_no_status_is_no_success() -> None:
    with serve(BrokenOff(methods={"ls": "ls"})) as client, pytest.raises(DriverError, match="no exit status"):
        client.ls()


def test_missing_directory_and_missing_shell_are_named(tmp_path: Path) -> None:
    with serve(Shell(methods={"ls": "ls"}, cwd=str(tmp_path / "gone"))) as client:
        with pytest.raises(DriverInvalidArgument, match="cwd: .*gone is not a directory"):
            items(client, "ls", {})
    with serve(Shell(methods={"ls": "ls"}, shell=["no-such-shell", "-c"])) as client:
        with pytest.raises(DriverError, match="no-such-shell.*not installed"):
            items(client, "ls", {})
    with serve(Shell(methods={"pwd": "pwd"}, cwd=str(tmp_path))) as client:
        assert items(client, "pwd", {})[0] == f"{tmp_path}\n"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"methods": {"x": ""}}, "methods.x.command"),
        ({"methods": {"x": {"description": "no command"}}}, "methods.x.command"),
        ({"methods": {"x": {"command": "ls", "comand": "x"}}}, "methods.x.comand"),
        ({"methods": {"x": {"command": "ls", "timeout": 0}}}, "methods.x.timeout"),
        ({"methods": {"x": {"command": "ls", "timeout": "soon"}}}, "methods.x.timeout"),
        ({"methods": {"": "ls"}}, "methods."),
        ({"methods": {"x": "ls"}, "timeout": -1}, "timeout"),
        ({"methods": {"x": "ls"}, "shell": []}, "shell"),
    ],
)
def test_wrong_configuration_is_found_at_construction(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Shell(**config)
