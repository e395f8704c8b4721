# SPDX-License-Identifier: Apache-2.0
"""`j` through the warm process behaves as if it had done the work itself, only sooner."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_harness import BIN, TIMEOUT, Cli

from jumpstarter_cli.zygote import listen
from jumpstarter_testing import eventually

DRIVER = """
import time
from dataclasses import dataclass
import click
from jumpstarter.client import DriverClient
from jumpstarter.driver import Driver, export


class Odd(Driver):
    @classmethod
    def client(cls):
        return "odd_driver.OddClient"

    @export
    def ping(self):
        return "pong"


@dataclass(kw_only=True)
class OddClient(DriverClient):
    def cli(self):
        import os, sys

        group = click.Group("odd")

        def add(function):
            group.add_command(click.command(function.__name__)(function))

        def truth(): return True
        def three(): return 3
        def text(): return "text"
        def fail(): raise click.ClickException("no luck")
        def crash(): raise RuntimeError("deep trouble")
        def ping(): click.echo(self.call("ping"))
        def stdin(): click.echo(sys.stdin.read().upper(), nl=False)
        def where(): click.echo(os.getcwd()); click.echo(os.environ.get("MARK", "-")); click.echo(str(os.getpid()))
        def both(): click.echo("out"); click.echo("err", err=True)
        def tty(): click.echo(f"{sys.stdin.isatty()} {os.getpgrp() == os.tcgetpgrp(0)} {bool(open('/dev/tty'))}")
        def wait():
            try:
                click.echo("waiting")
                sys.stdout.flush()
                time.sleep(600)
            finally:
                click.echo("cleaned")

        for function in (truth, three, text, fail, crash, ping, stdin, where, both, tty, wait):
            add(function)
        return group
"""


@pytest.fixture
def odd(cli: Cli) -> Path:
    """An exporter file with a driver whose commands end in every way."""
    (cli.directory / "modules").mkdir()
    (cli.directory / "modules" / "odd_driver.py").write_text(DRIVER)
    cli.environ["PYTHONPATH"] = str(cli.directory / "modules")
    return cli.config(
        export={"odd": {"type": "odd_driver.Odd"}, "power": {"type": "jumpstarter_driver_power.driver.MockPower"}}
    )


def in_shell(cli: Cli, config: Path, script: str, **options: object) -> subprocess.CompletedProcess[str]:
    return cli.jmp("shell", "--exporter-config", config, "--", "sh", "-c", script, **options)


@pytest.mark.parametrize("direct", ["", "JMP_J_DIRECT=1 "])
def test_results_and_exit_codes(cli: Cli, odd: Path, direct: str) -> None:
    """True is no failure; errors are 1, wrong usage is 2; with and without the warm process."""
    names = ["truth", "three", "text", "fail", "crash", "ping", "nonsense"]
    script = "; ".join(f"{direct}j odd {name}; echo {name} $?" for name in names)
    result = in_shell(cli, odd, script)
    codes = dict(line.split() for line in result.stdout.splitlines() if " " in line)
    assert codes == {"truth": "0", "three": "3", "text": "0", "fail": "1", "crash": "1", "ping": "0", "nonsense": "2"}
    assert "pong" in result.stdout.splitlines()
    assert "Error: no luck" in result.stderr and "deep trouble" in result.stderr
    assert "Traceback" not in result.stderr


def test_it_sees_what_its_caller_sees(cli: Cli, odd: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    script = (
        f"cd '{elsewhere}' && MARK='a b' j odd where; printf 'input\\n' | j odd stdin; "
        f"j odd both 2> {tmp_path}/err > {tmp_path}/out; j odd both >&-; j odd stdin <&-"
    )
    result = in_shell(cli, odd, script)
    lines = result.stdout.splitlines()
    assert lines[:2] == [str(elsewhere), "a b"] and lines[3] == "INPUT"
    assert (tmp_path / "out").read_text() == "out\n" and (tmp_path / "err").read_text() == "err\n"
    assert "Traceback" not in result.stderr


def test_commands_run_in_forks_of_the_warm_process(cli: Cli, odd: Path) -> None:
    """Otherwise all of this would only test `j` alone."""
    ask = "import os, click; click.echo(str(os.getppid()))"
    module = cli.directory / "modules" / "odd_driver.py"
    module.write_text(module.read_text().replace("def truth(): return True", f"def truth(): {ask}"))
    result = in_shell(cli, odd, "echo $$; j odd truth & echo $!; wait; JMP_J_DIRECT=1 j odd truth; echo $PPID")
    shell, _, warm, alone, jmp = map(int, result.stdout.split())
    assert alone == shell  # by itself, `j` is a child of the shell
    assert warm not in (shell, jmp)  # here it is a child of the warm process


def test_many_at_once(cli: Cli, odd: Path) -> None:
    script = "for i in 1 2 3 4 5 6 7 8; do (echo $i | j odd stdin) & done; wait"
    assert sorted(in_shell(cli, odd, script).stdout.split()) == list("12345678")


@contextmanager
def waiting(cli: Cli, odd: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A `jmp shell` with `j odd wait` in it; yields the shell and the pid of the `j`."""
    script = "j odd wait > out 2>&1 & echo $! > pid; wait $!; echo $? > code"
    process = subprocess.Popen(
        [BIN / "jmp", "shell", "--exporter-config", str(odd), "--", "sh", "-c", script],
        env=cli.environ,
        cwd=cli.directory,
        text=True,
    )
    try:
        eventually(lambda: assert_in("waiting", cli.directory / "out"), timeout=TIMEOUT)
        yield process, int((cli.directory / "pid").read_text())
    finally:
        process.terminate()
        process.wait(TIMEOUT)


def assert_in(text: str, path: Path) -> None:
    assert text in path.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_are_passed_on_and_the_command_cleans_up(cli: Cli, odd: Path, number: int) -> None:
    with waiting(cli, odd) as (process, pid):
        os.kill(pid, number)
        assert process.wait(TIMEOUT) == 0
    assert (cli.directory / "code").read_text() == "2\n"  # cancelled
    assert_in("cleaned", cli.directory / "out")


def test_a_killed_j_takes_its_command_along(cli: Cli, odd: Path) -> None:
    with waiting(cli, odd) as (_, pid):
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: assert_in("cleaned", cli.directory / "out"), timeout=TIMEOUT)


def test_a_lost_warm_process_is_said(cli: Cli, odd: Path) -> None:
    with waiting(cli, odd) as (process, pid):
        jmp = process.pid
        children = Path(f"/proc/{jmp}/task/{jmp}/children").read_text().split()
        warm = next(child for child in children if b"jmp\0shell\0" in cmdline(child))  # a fork of `jmp shell`
        os.kill(int(warm), signal.SIGKILL)
        assert process.wait(TIMEOUT) == 0
        assert (cli.directory / "code").read_text() == "1\n"
        assert_in("is gone", cli.directory / "out")
        eventually(lambda: assert_in("cleaned", cli.directory / "out"), timeout=TIMEOUT)  # the command ends as well
        del pid


def cmdline(pid: str) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_without_the_warm_process_it_works_itself(cli: Cli, odd: Path) -> None:
    result = in_shell(cli, odd, "JMP_J_SOCKET=/nowhere/j.sock j odd ping; unset JMP_J_SOCKET; j odd ping")
    assert result.stdout == "pong\npong\n"


def test_job_control_works_as_for_any_command(cli: Cli, odd: Path) -> None:
    """On a terminal, the command is in the foreground group and has /dev/tty; Ctrl-C cancels it, once."""
    pid, master = pty.fork()
    if pid == 0:
        script = "set -m; trap : INT; j odd tty; j odd wait; echo code $?"  # a process group for each command
        os.execve(BIN / "jmp", ["jmp", "shell", "--exporter-config", str(odd), "--", "bash", "-c", script], cli.environ)
    seen = b""
    try:
        sent = False
        while b"code " not in seen:
            seen += os.read(master, 4096)
            if b"waiting" in seen and not sent:
                os.write(master, b"\x03")
                sent = True
    finally:
        os.close(master)
        os.waitpid(pid, 0)
    assert b"True True True" in seen
    assert seen.count(b"cleaned") == 1 and seen.count(b"Cancelled.") == 1


# --- the socket -------------------------------------------------------------------------------------------------


@contextmanager
def zygote(cli: Cli, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "jumpstarter_cli.zygote", "--socket", str(directory / "j.sock")],
        env=cli.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout and process.stdin and process.stderr
    try:
        process.stdout.readline()  # READY, or the end of a process that refused
        yield process
    finally:
        process.stdin.close()
        process.wait(TIMEOUT)
        process.stdout.close()
        process.stderr.close()


def test_the_socket_is_private_and_goes_with_the_lifeline(cli: Cli) -> None:
    directory = cli.runtime
    with zygote(cli, directory):
        assert stat.S_IMODE((directory / "j.sock").stat().st_mode) == 0o600
    assert cli.leftovers() == []


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701])
def test_a_directory_that_others_may_enter_is_refused(cli: Cli, mode: int) -> None:
    directory = cli.runtime
    directory.chmod(mode)
    with zygote(cli, directory) as process:
        assert process.wait(TIMEOUT) == 1
        assert process.stderr is not None and b"0700" in process.stderr.read()
    with pytest.raises(PermissionError, match="0700"):
        listen(str(directory / "other.sock"))


def test_another_user_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the modes of socket and directory were opened: the kernel says who is at the other end."""
    from jumpstarter_cli import zygote as module

    with tempfile.TemporaryDirectory() as name:
        with listen(f"{name}/j.sock") as listener, socket.socket(socket.AF_UNIX) as peer:
            reading, writing = os.pipe()
            server = module._Server(listener, reading)
            monkeypatch.setattr(os, "getuid", lambda: 12345)  # who we are is not who connects
            peer.settimeout(TIMEOUT)
            peer.connect(f"{name}/j.sock")
            server._accept()
            assert peer.recv(1) == b"" and not server._commands
            os.close(reading)
            os.close(writing)


def test_garbage_does_not_disturb_the_next(cli: Cli) -> None:
    directory = cli.runtime
    with zygote(cli, directory):
        for data in (b"", b"\xff\xff\xff\xff", b"\0\0\0\x05abcde", b"\0\0\0\x20short"):
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(str(directory / "j.sock"))
                peer.sendall(data)
        result = cli.run(BIN / "j", "--help", env={"JMP_J_SOCKET": str(directory / "j.sock")})
        assert result.returncode == 1 and "JUMPSTARTER_HOST is not set" in result.stderr


# --- speed ------------------------------------------------------------------------------------------------------


def test_speed_is_measured(cli: Cli, odd: Path, record_property: pytest.RecordProperty) -> None:
    """Through the warm process is quicker than alone; how much is recorded, the bench has the target."""
    code = (
        "import json, os, statistics, subprocess, time\n"
        "def median(**env):\n"
        "    times = []\n"
        "    for _ in range(5):\n"
        "        start = time.perf_counter()\n"
        "        subprocess.run(['j', 'power', 'on'], check=True, env={**os.environ, **env})\n"
        "        times.append(time.perf_counter() - start)\n"
        "    return statistics.median(times)\n"
        "print(json.dumps([median(), median(JMP_J_DIRECT='1')]))\n"
    )
    result = cli.jmp("shell", "--exporter-config", odd, "--", sys.executable, "-c", code)
    warm, alone = json.loads(result.stdout)
    thin = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-S", "-c", "import socket; socket.socketpair()"], check=True)
        thin.append(time.perf_counter() - start)
    record_property("j_over_thin", warm / statistics.median(thin))
    record_property("alone_over_thin", alone / statistics.median(thin))
    assert warm < alone
