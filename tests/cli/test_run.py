# SPDX-License-Identifier: Apache-2.0
"""`jmp run` serves a device over TLS, lets in whom it should, and ends with a true exit code."""

from __future__ import annotations

import signal
import socket
import stat
from pathlib import Path

import pytest
from cli_harness import TIMEOUT, Authority, Cli, only_error, secret_file

LOCAL = ["--tls-grpc-listener", "127.0.0.1:0"]
INSECURE = [*LOCAL, "--tls-grpc-insecure"]


def client(address: str, authority: Authority, *more: str | Path) -> list[str | Path]:
    return ["shell", "--tls-grpc", address, "--tls-ca", authority.ca, *more, "--", "j", "power", "status"]


def test_tls_with_our_own_authority_and_a_passphrase(cli: Cli, authority: Authority) -> None:
    cert, key = authority.issue("server")
    right = secret_file(cli.directory / "right", "open sesame")
    wrong = secret_file(cli.directory / "wrong", "open barley")
    args = ["--exporter-config", cli.config(), *LOCAL, "--tls-cert", cert, "--tls-key", key]
    with cli.exporter(*args, "--passphrase-file", right) as exporter:
        address = exporter.address
        result = cli.jmp(*client(address, authority, "--passphrase-file", right))
        assert (result.returncode, result.stdout) == (0, "off\n"), result
        result = cli.jmp(*client(address, authority), env={"JMP_GRPC_PASSPHRASE": "open sesame"})
        assert (result.returncode, result.stdout) == (0, "off\n"), result
        result = cli.jmp(*client(address, authority), env={"JMP_GRPC_PASSPHRASE_FILE": str(right)})
        assert result.returncode == 0, result

        assert "passphrase" in only_error(cli.jmp(*client(address, authority, "--passphrase-file", wrong)))
        assert "passphrase" in only_error(cli.jmp(*client(address, authority)))
        foreign = cli.jmp("shell", "--tls-grpc", address, "--passphrase-file", right, "--", "j", "power", "status")
        assert "--tls-ca" in only_error(foreign)
        plain = cli.jmp("shell", "--tls-grpc", address, "--tls-grpc-insecure", "--", "true")
        assert address in only_error(plain) and "TLS" in plain.stderr
        assert exporter.stop() == 0
        assert not any("open sesame" in line for line in exporter.lines)


def test_a_client_certificate_can_be_required(cli: Cli, authority: Authority) -> None:
    cert, key = authority.issue("server")
    mine, my_key = authority.issue("me")
    args = ["--tls-cert", cert, "--tls-key", key, "--tls-client-ca", authority.ca]
    with cli.exporter("--exporter-config", cli.config(), *LOCAL, *args) as exporter:
        known = cli.jmp(*client(exporter.address, authority, "--tls-cert", mine, "--tls-key", my_key))
        assert (known.returncode, known.stdout) == (0, "off\n"), known
        assert "--tls-cert" in only_error(cli.jmp(*client(exporter.address, authority)))


def test_insecure_only_by_its_flag(cli: Cli) -> None:
    config = cli.config()
    result = cli.jmp("run", "--exporter-config", config, *LOCAL)
    assert result.returncode == 2 and "--tls-grpc-insecure" in result.stderr
    with cli.exporter("--exporter-config", config, *INSECURE) as exporter:
        address = exporter.address
        assert "does not speak TLS" in only_error(cli.jmp("shell", "--tls-grpc", address, "--", "true"))
        result = cli.jmp("shell", "--tls-grpc", address, "--tls-grpc-insecure", "--", "j", "power", "status")
        assert (result.returncode, result.stdout) == (0, "off\n"), result


@pytest.mark.parametrize(
    ("args", "part"),
    [
        ([], "--exporter"),
        (["--exporter", "a", "--exporter-config", "b"], "--exporter"),
        (["--exporter", "a", "--passphrase-file", "x"], "--passphrase-file goes with"),
        (["--exporter", "a", *LOCAL, "--tls-cert", "x"], "--tls-key"),
        (["--exporter", "a", *INSECURE, "--tls-cert", "x", "--tls-key", "y"], "excludes"),
        (["--exporter", "a", *INSECURE, "--passphrase", "x", "--passphrase-file", "y"], "exclude"),
        (["--exporter", "a", "--tls-grpc-insecure", "--tls-grpc-listener", "host:70000"], "70000"),
        (["--exporter", "a", "--tls-grpc-insecure", "--tls-grpc-listener", "::1"], "brackets"),
    ],
)
def test_options_that_make_no_sense_together(cli: Cli, args: list[str], part: str) -> None:
    result = cli.jmp("run", *args)
    assert result.returncode == 2 and part in result.stderr, result


def test_what_cannot_be_used_is_one_line_and_exit_code_1(cli: Cli, authority: Authority) -> None:
    cert, key = authority.issue("server")
    config = cli.config()
    run = ["run", "--exporter-config", config, *LOCAL]
    assert "no-such" in only_error(cli.jmp("run", "--exporter", "no-such", *INSECURE))
    assert "gone.pem" in only_error(cli.jmp(*run, "--tls-cert", cli.directory / "gone.pem", "--tls-key", key))
    other = authority.issue("other")[1]
    assert "belong together" in only_error(cli.jmp(*run, "--tls-cert", cert, "--tls-key", other))
    assert "PEM" in only_error(cli.jmp(*run, "--tls-cert", config, "--tls-key", key))
    key.chmod(0o644)
    message = only_error(cli.jmp(*run, "--tls-cert", cert, "--tls-key", key))
    assert str(key) in message and "chmod 600" in message
    loose = secret_file(cli.directory / "loose", "x")
    loose.chmod(0o604)
    message = only_error(cli.jmp(*run, "--tls-grpc-insecure", "--passphrase-file", loose))
    assert str(loose) in message and "0604" in message


def test_a_port_in_use_is_said_and_drivers_are_closed(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = cli.jmp(
            "run", "--exporter-config", cli.config(), "--tls-grpc-insecure", "--tls-grpc-listener", f"127.0.0.1:{port}"
        )
    assert result.returncode == 1
    assert f"Error: cannot listen on 127.0.0.1:{port}" in result.stderr and "Traceback" not in result.stderr
    assert cli.leftovers() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_stop_it_cleanly(cli: Cli, number: int) -> None:
    with cli.exporter("--exporter-config", cli.config(), *INSECURE) as exporter:
        result = cli.jmp("shell", "--tls-grpc", exporter.address, "--tls-grpc-insecure", "--", "j", "power", "on")
        assert result.returncode == 0, result
        assert exporter.stop(number) == 0
        assert any('"power" switched off' in line for line in exporter.lines)  # the device is given back
    assert cli.leftovers() == []


def hook(script: str, **more: object) -> dict[str, object]:
    return {"script": script, **more}


def test_hooks_run_in_direct_mode_and_can_use_the_drivers(cli: Cli) -> None:
    """With a passphrase, too: the hook's `j` comes by the socket."""
    config = cli.config(
        hooks={
            "beforeLease": hook("j power on; echo state $(j power status); echo hello from hook > $JMP_MOTD_FILE"),
            "afterLease": hook("echo after $(j power status) $LEASE_NAME $JMP_EXPORTER"),
        }
    )
    secret = secret_file(cli.directory / "pw", "x")
    with cli.exporter("--exporter-config", config, *INSECURE, "--passphrase-file", secret) as exporter:
        exporter.wait_for("state on$")
        assert exporter.stop() == 0
        exporter.wait_for("after on standalone board$")


@pytest.mark.parametrize(
    ("hooks", "code"),
    [
        ({"beforeLease": hook("exit 1", onFailure="warn")}, 0),
        ({"beforeLease": hook("exit 1", onFailure="endLease")}, 1),
        ({"beforeLease": hook("exit 1", onFailure="exit")}, 1),
        ({"afterLease": hook("exit 1", onFailure="warn")}, 0),
        ({"afterLease": hook("exit 1", onFailure="endLease")}, 0),
        ({"afterLease": hook("exit 1", onFailure="exit")}, 1),
    ],
)
def test_failing_hooks_decide_the_exit_code(cli: Cli, hooks: dict[str, object], code: int) -> None:
    with cli.exporter("--exporter-config", cli.config(hooks=hooks), *INSECURE) as exporter:
        if code and "beforeLease" in hooks:
            assert exporter.wait() == 1
        else:
            assert exporter.stop() == code


def test_a_warning_of_a_hook_is_in_the_status(cli: Cli) -> None:
    config = cli.config(hooks={"beforeLease": hook("exit 7")})
    ask = (
        "import os, asyncio\nfrom jumpstarter.client.aio import connect\n"
        "async def main():\n"
        "    async with connect(os.environ['JUMPSTARTER_HOST'], insecure=True) as session:\n"
        "        print(await session.status())\n"
        "asyncio.run(main())"
    )
    with cli.exporter("--exporter-config", config, *INSECURE) as exporter:
        exporter.wait_for("beforeLease hook failed")
        result = cli.jmp("shell", "--tls-grpc", exporter.address, "--tls-grpc-insecure", "--", "python", "-c", ask)
    assert "LEASE_READY" in result.stdout and "[HOOK_WARNING] beforeLease hook failed (exit code 7)" in result.stdout


END_SESSION = "from jumpstarter.utils.env import env\nwith env() as client:\n    print('ended', client.end_session())"


def test_ending_the_session_runs_the_hooks_and_starts_the_next(cli: Cli) -> None:
    config = cli.config(hooks={"beforeLease": hook("echo before"), "afterLease": hook("echo after")})
    with cli.exporter("--exporter-config", config, *INSECURE) as exporter:
        result = cli.jmp(
            "shell", "--tls-grpc", exporter.address, "--tls-grpc-insecure", "--", "python", "-c", END_SESSION
        )
        assert "ended True" in result.stdout, result
        exporter.wait_for(r"\] after$")
        assert exporter.stop() == 0
        assert len([line for line in exporter.lines if line.endswith("] before")]) == 2


@pytest.mark.parametrize("by_option", [True, False])
def test_exit_on_lease_end(cli: Cli, by_option: bool) -> None:
    config = cli.config(**({} if by_option else {"exitOnLeaseEnd": True}))
    option = ["--exit-on-lease-end"] if by_option else []
    with cli.exporter("--exporter-config", config, *INSECURE, *option) as exporter:
        cli.jmp("shell", "--tls-grpc", exporter.address, "--tls-grpc-insecure", "--", "python", "-c", END_SESSION)
        assert exporter.wait() == 0


def test_an_alias_is_found_and_its_socket_is_private(cli: Cli) -> None:
    path = cli.directory / "xdg" / "jumpstarter" / "exporters" / "board.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(cli.config().read_text())
    with cli.exporter("--exporter", "board", *INSECURE):
        (name,) = cli.leftovers()
        assert stat.S_IMODE((cli.runtime / name).stat().st_mode) == 0o700
    assert cli.leftovers() == []


def test_a_secret_in_argv_and_clear_text_are_warned_about(cli: Cli) -> None:
    args = ["--exporter-config", cli.config(), "--tls-grpc-listener", "0", "--tls-grpc-insecure"]
    with cli.exporter(*args, "--passphrase", "s3cret") as exporter:
        exporter.wait_for("--passphrase on the command line")
        exporter.wait_for("clear text, and the passphrase with it")
        assert not any("s3cret" in line for line in exporter.lines)


def test_systemd_is_told(cli: Cli, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(TIMEOUT)
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with cli.exporter("--exporter-config", cli.config(), *INSECURE, env=env):
            assert receiver.recv(1000).startswith(b"READY=1\n")


def test_logs_are_json_when_nobody_reads_them(cli: Cli) -> None:
    import json
    import subprocess

    from cli_harness import BIN

    process = subprocess.Popen(
        [str(BIN / "jmp"), "run", "--exporter-config", str(cli.config()), *INSECURE],
        env=cli.environ,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    with process:
        entry = json.loads(process.stderr.readline())
        process.terminate()
    assert (entry["level"], entry["component"], entry["logger"]) == ("info", "exporter", "jumpstarter.exporter")
    assert process.returncode == 0
