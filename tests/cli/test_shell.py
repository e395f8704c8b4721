# SPDX-License-Identifier: Apache-2.0
"""`jmp shell` runs a command with an exporter at hand, hands its exit code on and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_harness import BIN, TIMEOUT, Cli, only_error

from jumpstarter_cli.launch import shell_command
from jumpstarter_testing import eventually


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def processes_of(directory: Path) -> list[str]:
    """Command lines of the processes that mention `directory`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(directory) in line:
                found.append(line)
    return found


def assert_nothing_left(cli: Cli) -> None:
    assert cli.leftovers() == []
    assert processes_of(cli.directory) == []


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 42"], 42),
        (["no-such-command-anywhere"], 127),
        (["/etc/hostname"], 126),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["j", "power", "on"], 0),
        (["j", "power", "nonsense"], 2),
    ],
)
def test_the_exit_code_is_the_commands(cli: Cli, command: list[str], code: int) -> None:
    result = cli.jmp("shell", "--exporter-config", cli.config(), "--", *command)
    assert result.returncode == code, result
    assert "Traceback" not in result.stderr
    assert_nothing_left(cli)


def test_the_environment_of_the_command(cli: Cli) -> None:
    outer = {"JMP_LEASE": "outer", "JMP_GRPC_INSECURE": "1", "JUMPSTARTER_HOST": "outer", "KEPT": "yes"}
    result = cli.jmp("shell", "--exporter-config", cli.config("demo"), "--", "env", env=outer)
    found = dict(line.partition("=")[::2] for line in result.stdout.splitlines())
    assert found["JMP_EXPORTER"] == "demo" and found["JMP_EXPORTER_LABELS"] == "jumpstarter.dev/name=demo"
    assert found["JMP_DRIVERS_ALLOW"] == "UNSAFE" and found["KEPT"] == "yes"
    assert found["JUMPSTARTER_HOST"].startswith(str(cli.runtime))
    assert "JMP_LEASE" not in found and "JMP_GRPC_INSECURE" not in found  # an outer shell's say nothing about this one


def test_direct_mode_trusts_the_installed_drivers_only(cli: Cli) -> None:
    with cli.exporter(
        "--exporter-config", cli.config(), "--tls-grpc-listener", "127.0.0.1:0", "--tls-grpc-insecure"
    ) as exporter:
        shell = ["shell", "--tls-grpc", exporter.address, "--tls-grpc-insecure", "--"]
        found = dict(line.partition("=")[::2] for line in cli.jmp(*shell, "env").stdout.splitlines())
        assert "jumpstarter_driver_power.*" in found["JMP_DRIVERS_ALLOW"].split(",")
        assert "UNSAFE" not in found["JMP_DRIVERS_ALLOW"]
        assert (found["JUMPSTARTER_HOST"], found["JMP_GRPC_INSECURE"]) == (exporter.address, "1")
        refused = cli.jmp(*shell, "env", "JMP_DRIVERS_ALLOW=jumpstarter_driver_composite.*", "j", "power", "on")
        assert refused.returncode == 2 and "No such command" in refused.stderr  # a driver nobody trusts is not offered


def test_python_and_pytest_inside(cli: Cli) -> None:
    test = cli.directory / "test_board.py"
    test.write_text(
        "from jumpstarter_testing.pytest import JumpstarterTest\n"
        "from jumpstarter.utils.env import env_with_metadata\n"
        "class TestBoard(JumpstarterTest):\n"
        "    def test_power(self, client):\n"
        "        client.power.on()\n"
        "        assert client.power.status() == 'on'\n"
        "    def test_one_connection_for_the_class(self, client):\n"
        "        assert client.power.status() == 'on'\n"
        "def test_metadata():\n"
        "    with env_with_metadata() as (client, metadata):\n"
        "        assert metadata.name == 'board' and metadata.lease is None\n"
    )
    pytest_command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(test)]
    result = cli.jmp("shell", "--exporter-config", cli.config(), "--", *pytest_command, cwd=cli.directory)
    assert result.returncode == 0 and "3 passed" in result.stdout, result
    alone = cli.run(*pytest_command, cwd=cli.directory)
    assert alone.returncode == 1 and "no exporter: JUMPSTARTER_HOST is not set" in alone.stdout


def test_errors_are_one_line(cli: Cli) -> None:
    broken = cli.directory / "broken.yaml"
    broken.write_text("export: {a: {type: jumpstarter_driver_power.driver.MockPower, config: {colour: red}}}\n")
    message = only_error(cli.jmp("shell", "--exporter-config", broken, "--", "true"))
    assert f"{broken}: driver a: config.colour" in message
    assert "gone.yaml" in only_error(cli.jmp("shell", "--exporter-config", cli.directory / "gone.yaml", "--", "true"))
    assert "nobody" in only_error(cli.jmp("shell", "--exporter", "nobody", "--", "true"))
    assert "alias" in only_error(cli.jmp("shell", "--exporter", "../../etc/passwd", "--", "true"))
    assert "no client configuration" in only_error(cli.jmp("shell", "--selector", "board=rpi4", "--", "true"))
    assert "JUMPSTARTER_HOST" in only_error(cli.run(BIN / "j", "power", "on"))
    unreachable = cli.jmp("shell", "--tls-grpc", "127.0.0.1:1", "--tls-grpc-insecure", "--", "true")
    assert "nothing listens" in only_error(unreachable)
    assert_nothing_left(cli)


def test_a_typo_in_the_configuration_is_shown(cli: Cli) -> None:
    result = cli.jmp("shell", "--exporter-config", cli.config(powerOfOnEnd=False), "--", "true")
    assert result.returncode == 0 and 'did you mean "powerOffOnEnd"?' in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["--exporter", "a", "--tls-grpc", "h:1"],
        ["--exporter", "a", "--selector", "x=y"],
        ["--exporter", "a", "--passphrase-file", "x"],
        ["--tls-grpc", "h:1", "--tls-grpc-insecure", "--tls-ca", "x"],
        ["--tls-grpc", "h:1", "--tls-cert", "x"],
    ],
)
def test_options_that_make_no_sense_together(cli: Cli, args: list[str]) -> None:
    assert cli.jmp("shell", *args, "--", "true").returncode == 2


def test_an_interactive_shell_reads_no_profile_and_shows_the_message(cli: Cli) -> None:
    (cli.directory / "home" / ".bashrc").write_text("echo PROFILE\n")
    result = cli.jmp("shell", "--exporter-config", cli.config(motd="Be gentle."), input="j power status\nexit 9\n")
    assert result.returncode == 9, result
    assert result.stdout.splitlines()[0] == "Be gentle."
    assert "off" in result.stdout and "PROFILE" not in result.stdout


@pytest.mark.parametrize(
    ("shell", "profiles", "command"),
    [
        ("/bin/bash", False, ["/bin/bash", "--norc", "--noprofile"]),
        ("/bin/bash", True, ["/bin/bash"]),
        ("/usr/bin/zsh", False, ["/usr/bin/zsh", "--no-rcs", "-o", "inc_append_history", "-o", "share_history"]),
        ("/bin/dash", False, ["/bin/dash"]),
    ],
)
def test_shells(shell: str, profiles: bool, command: list[str]) -> None:
    found, variables = shell_command(shell, "ctx", profiles)
    assert found == command and "ctx" in variables["PS1"]


def test_fish_gets_its_prompt_by_option() -> None:
    found, _ = shell_command("/usr/bin/fish", "ctx", False)
    assert found[:2] == ["/usr/bin/fish", "--init-command"] and "ctx" in found[2]


def test_the_device_is_given_back_at_the_end(cli: Cli) -> None:
    log = cli.directory / "log"
    with log.open("wb") as stream:
        subprocess.run(
            [BIN / "jmp", "shell", "--exporter-config", cli.config(), "--exporter-logs", "--", "j", "power", "on"],
            env=cli.environ,
            stderr=stream,
            timeout=TIMEOUT,
            check=True,
        )
    assert '"power" switched off' in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_whatever_ends_the_shell_nothing_is_left(cli: Cli, number: int) -> None:
    """SIGTERM and SIGHUP reach the command; after SIGKILL the exporter and the warm process end by themselves."""
    ready = cli.directory / "ready"
    command = ["sh", "-c", f"j power on; echo $$ > {ready}; exec sleep 600"]
    process = subprocess.Popen(
        [BIN / "jmp", "shell", "--exporter-config", str(cli.config()), "--", *command], env=cli.environ
    )
    try:
        eventually(lambda: ready.read_text().index("\n"), timeout=TIMEOUT)
        pid = int(ready.read_text())
        process.send_signal(number)
        code = process.wait(TIMEOUT)
    finally:
        process.kill()
        process.wait()
    if number == signal.SIGKILL:
        os.kill(pid, signal.SIGKILL)  # nobody can end the command for a jmp that was killed
        eventually(lambda: assert_processes_gone(cli), timeout=TIMEOUT)
    else:
        assert code == 128 + number
        assert not alive(pid)
        assert_nothing_left(cli)


def assert_processes_gone(cli: Cli) -> None:
    assert processes_of(cli.directory) == []


def test_an_exporter_that_dies_is_reported(cli: Cli) -> None:
    """The command goes on, but its success is not ours."""
    kill = "import os, pathlib, select, signal\n" + (
        "for p in pathlib.Path('/proc').glob('[0-9]*/cmdline'):\n"
        "    try: line = p.read_bytes()\n"
        "    except OSError: continue\n"
        "    if b'jumpstarter.exporter' in line and os.environ['JUMPSTARTER_HOST'].encode() in line:\n"
        "        pid = int(p.parent.name); end = os.pidfd_open(pid); os.kill(pid, signal.SIGKILL)\n"
        "        select.select([end], [], [])\n"
    )
    result = cli.jmp("shell", "--exporter-config", cli.config(), "--", sys.executable, "-c", kill)
    assert "the exporter failed while the command ran" in only_error(result)
