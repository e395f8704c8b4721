# SPDX-License-Identifier: Apache-2.0
"""`jmp shell` leases an exporter, has its command use it, and gives it back, whatever happens in between."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_harness import TIMEOUT, Cli, only_error
from shell_lab import ShellLab, alive, gone, processes_of, shell_lab, variables

#: Says its process id, and goes on until it is ended.
ENDLESS = ["sh", "-c", 'echo "pid $$"; exec sleep 600']


@pytest.fixture
def lab(cli: Cli) -> Iterator[ShellLab]:
    with shell_lab(cli) as found:
        yield found


def nothing_left(lab: ShellLab) -> None:
    """The leases are given back, and the shell's processes and directories are gone."""
    gone(lab.leases)
    gone(lab.cli.leftovers)
    gone(lambda: [line for line in processes_of(lab.cli.runtime) if "exporter_process" not in line])


def test_a_command_runs_on_a_leased_exporter(lab: ShellLab) -> None:
    lab.exporter()
    result = lab.shell("-l", "board=x", "--", "sh", "-c", "j power on && j power status; env; exit 42")
    assert result.returncode == 42, result
    found = variables(result.stdout)
    assert result.stdout.startswith("on\n")
    assert found["JMP_EXPORTER"] == "board" and found["JMP_DRIVERS_ALLOW"] == "UNSAFE"
    assert "board=x" in found["JMP_EXPORTER_LABELS"].split(",")
    lease = next(lease for lease in lab.leases(active=False) if lease.name == found["JMP_LEASE"])
    assert lease.state == "ended" and lease.client == "alice" and lease.exporter == "board"
    nothing_left(lab)


def test_programs_in_the_shell_know_their_lease(lab: ShellLab) -> None:
    lab.exporter()
    program = (
        "from jumpstarter.utils.env import env_with_metadata\n"
        "with env_with_metadata() as (client, about):\n"
        "    client.power.on()\n"
        "    print(about.name, about.labels['board'], about.lease, client.power.status())\n"
    )
    result = lab.shell("-n", "board", "--", "python", "-c", program)
    assert result.returncode == 0, result
    name, label, lease, power = result.stdout.split()
    assert (name, label, power) == ("board", "x", "on")
    assert [found.name for found in lab.leases(active=False)] == [lease]


def test_the_only_lease_is_used_and_kept(lab: ShellLab) -> None:
    lab.exporter("board")
    lab.exporter("board2")
    none = lab.shell("--", "true")
    assert none.returncode == 2 and "--selector" in none.stderr
    alice = lab.config()
    first = alice.create_lease("board=x", 600)
    again = lab.shell("--", "sh", "-c", "echo $JMP_LEASE; j power on")
    assert (again.returncode, again.stdout) == (0, f"{first.name}\n"), again
    second = alice.create_lease("board=x", 600)
    several = lab.shell("--", "true")
    assert several.returncode == 2 and first.name in several.stderr and second.name in several.stderr
    for choice in (["--lease", second.name], []):
        env = {} if choice else {"JMP_LEASE": second.name}
        result = lab.shell(*choice, "--", "sh", "-c", "echo $JMP_LEASE", env=env)
        assert (result.returncode, result.stdout) == (0, f"{second.name}\n"), result
    assert {lease.name for lease in lab.leases()} == {first.name, second.name}
    assert lab.shell("--lease", "x", "-l", "board=x", "--", "true").returncode == 2


def test_errors_are_one_line(lab: ShellLab) -> None:
    lab.exporter()
    assert 'no exporter for "board=y"' in only_error(lab.shell("-l", "board=y", "--", "true"))
    assert "nosuch" in only_error(lab.shell("--lease", "nosuch", "--", "true"))
    assert lab.shell("-l", "board = = x", "--", "true").returncode == 2
    nobody = lab.cli.jmp("shell", "-l", "board=x", "--", "true")
    assert "jmp login" in only_error(nobody)
    broken = lab.cli.directory / "broken.yaml"
    broken.write_text(lab.client().read_text().replace(f"token: {lab.config().token}", "token: nonsense"))
    refused = only_error(lab.cli.jmp("shell", "--client-config", broken, "-l", "board=x", "--", "true"))
    assert "token" in refused and "jmp login" in refused
    lab.controller.kill()
    away = only_error(lab.shell("-l", "board=x", "--", "true"))
    assert f"controller {lab.place.lab.endpoint}: it does not answer" in away
    lab.controller.start()
    nothing_left(lab)


def test_waiting_shows_the_queue_and_ends_in_time_or_by_ctrl_c(lab: ShellLab) -> None:
    lab.exporter()
    with lab.started("-l", "board=x", "--", *ENDLESS) as first:
        first.wait_for("^pid ")
        with lab.started("-l", "board=x", "--", "true", client="bob") as second:
            second.wait_for("place 1 of 1 in the queue: .*board")
            assert len(lab.leases()) == 2
            second.process.send_signal(signal.SIGINT)
            assert second.wait() == 2 and second.lines[-1] == "Cancelled."
            assert len(lab.leases()) == 1
        for seconds in (5, 40):  # the place may come too late on a machine that has much to do
            timeout = lab.shell("-l", "board=x", "--acquisition-timeout", str(seconds), "--", "true", client="bob")
            assert timeout.returncode == 1
            if "place" in timeout.stderr:
                break
        assert f"within {seconds} s: place 1 of 1 in the queue" in timeout.stderr
        with lab.started("-l", "board=x", "--", "sh", "-c", "echo mine", client="carol") as third:
            third.wait_for("place 1 of 1 in the queue")
            first.process.send_signal(signal.SIGTERM)
            assert first.wait() == 128 + signal.SIGTERM
            third.wait_for("^mine$")
            assert third.wait() == 0
    nothing_left(lab)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_whatever_ends_the_shell_the_lease_is_given_back(lab: ShellLab, number: int) -> None:
    lab.exporter()
    with lab.started("-l", "board=x", "--", *ENDLESS) as shell:
        pid = int(shell.wait_for("^pid ").split()[1])
        shell.process.send_signal(number)
        code = shell.process.wait(TIMEOUT)
        if number == signal.SIGKILL:
            os.kill(pid, signal.SIGKILL)  # nobody can end the command for a jmp that was killed
        else:
            assert code == 128 + number
        gone(lambda: alive(pid))
    gone(lab.leases)
    if number != signal.SIGKILL:
        nothing_left(lab)


@pytest.mark.parametrize("how", ["released", "expired", "transferred"])
def test_a_lost_lease_ends_the_command(lab: ShellLab, how: str) -> None:
    lab.exporter()
    lab.client("bob")
    with lab.started("-l", "board=x", "--duration", "1h", "--", *ENDLESS) as shell:
        pid = int(shell.wait_for("^pid ").split()[1])
        lease = lab.leases()[0]
        if how == "released":
            lab.config().delete_lease(lease.name)
        elif how == "transferred":
            lab.config().update_lease(lease.name, client="bob")
        else:
            lab.config().update_lease(lease.name, duration=lease.elapsed + 10)
            shell.wait_for(f"Warning: lease {lease.name} ends in ")
        shell.wait_for(f"Error: lease {lease.name} (has ended|was transferred to client bob)")
        assert shell.wait() == 75
        assert not alive(pid)
    if how == "transferred":
        lab.config("bob").delete_lease(lease.name)
    nothing_left(lab)


def test_the_hooks_are_shown_as_they_run(lab: ShellLab, tmp_path: Path) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    hooks = {
        "beforeLease": {"script": f"echo preparing; cat {go}; echo prepared"},
        "afterLease": {"script": "echo cleaning up"},
    }
    lab.exporter(hooks=hooks)
    with lab.started("-l", "board=x", "--", "echo", "the command") as shell:
        shell.wait_for("^preparing$")
        go.write_text("")
        assert shell.wait() == 0
        order = [line for line in shell.lines if line in ("preparing", "prepared", "the command", "cleaning up")]
        assert order == ["preparing", "prepared", "the command", "cleaning up"]
    nothing_left(lab)


def test_a_hook_that_fails_is_the_error(lab: ShellLab, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    os.mkfifo(seen)
    script = f"echo no power; cat {seen}; exit 3"
    lab.exporter(hooks={"beforeLease": {"script": script, "onFailure": "endLease"}})
    with lab.started("-l", "board=x", "--", "echo", "the command") as shell:
        shell.wait_for("^no power$")
        seen.write_text("")
        assert shell.wait() == 1
        assert "the command" not in shell.lines
        assert "Error: exporter board: its beforeLease hook failed: " in shell.lines[-1]
    nothing_left(lab)


def test_the_command_goes_on_while_the_controller_is_away(lab: ShellLab) -> None:
    lab.exporter()
    gate = lab.cli.directory / "gate"
    os.mkfifo(gate)
    command = f"j power on; echo before; cat {gate}; j power status; exit 7"
    with lab.started("-l", "board=x", "--", "sh", "-c", command) as shell:
        shell.wait_for("^before$")
        lab.controller.kill()
        lab.controller.start()
        gate.write_text("")
        assert shell.wait() == 7
        assert "on" in shell.lines
    nothing_left(lab)


def test_an_exporter_that_does_not_answer_is_leased_again(lab: ShellLab) -> None:
    """A board whose process is gone is still online for a while; it is given back and another one is taken."""
    dead = lab.exporter("a-board")
    dead.process.kill()
    lab.exporter("b-board")
    result = lab.shell("-l", "board=x", "--dial-timeout", "5", "--", "sh", "-c", "echo $JMP_EXPORTER")
    assert (result.returncode, result.stdout) == (0, "b-board\n"), result
