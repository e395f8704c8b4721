# SPDX-License-Identifier: Apache-2.0
"""Protects ssh through the exporter, with the real ssh, scp, sftp, ssh-agent and sshd."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anyio import BrokenResourceError
from click.testing import CliRunner
from ssh_server import SshServer

from jumpstarter.client.adapters import UnixPortforwardAdapter
from jumpstarter.common.exceptions import ConfigurationError, DriverError, DriverMethodNotImplemented
from jumpstarter.common.utils import serve
from jumpstarter_driver_network.driver import TcpNetwork, UnixNetwork
from jumpstarter_driver_ssh.agent import KeyAgent
from jumpstarter_driver_ssh.arguments import option_set, split_arguments
from jumpstarter_driver_ssh.client import SSHCommandRunOptions, SSHWrapperClient
from jumpstarter_driver_ssh.driver import SSHWrapper
from jumpstarter_testing import eventually

Run = Callable[..., Any]


def driver(server: SshServer, **config: Any) -> SSHWrapper:
    settings = {"default_username": server.user, "ssh_identity_file": str(server.key), **config}
    return SSHWrapper(children={"tcp": TcpNetwork(host="127.0.0.1", port=server.port)}, **settings)


def run(client: SSHWrapperClient, *args: str, direct: bool = False, **options: Any) -> tuple[int, str, str]:
    done = client.run(SSHCommandRunOptions(direct=direct), ["-F", "none", *args], **options)
    assert isinstance(done.stdout, str) and isinstance(done.stderr, str)
    return done.return_code, done.stdout, done.stderr


# --- running --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direct", [False, True])
def test_command_output_and_status_come_back(server: SshServer, direct: bool) -> None:
    with serve(driver(server)) as client:
        rc, out, err = run(client, "echo out; echo err >&2; exit 7", direct=direct)
        assert (rc, out, err.strip()) == (7, "out\n", "err")


def test_output_can_be_bytes_and_arguments_are_not_options(server: SshServer) -> None:
    with serve(driver(server)) as client:
        options = SSHCommandRunOptions(capture_as_text=False)
        assert client.run(options, ["-Fnone", "--", "printf", r"'\377\0'"]).stdout == b"\xff\0"
        assert run(client, "-T", "echo", "-l", "-v", "--", "x")[1] == "-l -v -- x\n"
        rc, _, err = run(client, "--", "-v")
        # The device's shell has it, and takes it for an option of its own; ssh would print its version, or its usage.
        assert rc != 255 and "OpenSSH" not in err and "usage: ssh" not in err


def test_own_options_win_over_the_drivers(server: SshServer) -> None:
    with serve(driver(server, default_username="nobody-here")) as client:
        assert run(client, "-o", "BatchMode=yes", "true")[0] == 255
        for own in (
            ["-l", server.user],
            [f"-l{server.user}"],
            ["-o", f"User={server.user}"],
            [f"-oUser {server.user}"],
        ):
            assert run(client, *own, "true")[0] == 0, own


def test_connections_are_not_shared_between_devices(server: SshServer, tmp_path: Path) -> None:
    """ControlMaster in ~/.ssh/config: all devices have one name, and a master would lead to the one before."""
    sockets, config = tmp_path / "cm", tmp_path / "config"
    sockets.mkdir()
    config.write_text(f"Host *\n ControlMaster auto\n ControlPath {sockets}/%r@%h:%p\n")
    with serve(driver(server)) as client:
        assert run(client, "ls", str(sockets))[:2] == (0, "")  # -F none: nothing to share
        done = client.run(SSHCommandRunOptions(), ["-F", str(config), "ls", str(sockets)])
        assert (done.return_code, done.stdout) == (0, "")
        own = ["-F", str(config), "-S", f"{sockets}/own", "ls", str(sockets)]
        assert "own" in client.run(SSHCommandRunOptions(), own).stdout


def test_own_options_win_for_copies_too(server: SshServer, tmp_path: Path) -> None:
    (tmp_path / "here").write_text("x")
    there = tmp_path / "there"
    with serve(driver(server, default_username="nobody-here")) as client:
        args = ["-F", "none", "-o", f"User={server.user}", "-l", "100000", str(tmp_path / "here"), f"dut:{there}"]
        assert client.run(SSHCommandRunOptions(), args, tool="scp").return_code == 0
    assert there.read_text() == "x"


def test_commands_of_j_pass_arguments_and_status_on(server: SshServer, capfd: pytest.CaptureFixture[str]) -> None:
    with serve(driver(server)) as client:
        runner = CliRunner()
        assert runner.invoke(client.cli(), ["-F", "none", "echo", "hello;", "exit", "5"]).exit_code == 5
        assert runner.invoke(client.cli(), ["--direct", "-Fnone", "true"]).exit_code == 0
        assert capfd.readouterr().out == "hello\n"
        bad = runner.invoke(client.cli(), ["-p"])
        assert bad.exit_code == 2 and "ssh option -p needs an argument" in bad.output


def test_files_are_copied_both_ways(server: SshServer, tmp_path: Path) -> None:
    there, here, back = (tmp_path / name for name in ("there file", "here", "back"))
    here.write_bytes(os.urandom(200_000))
    with serve(driver(server)) as client:
        plain = SSHCommandRunOptions()
        assert client.run(plain, ["-F", "none", str(here), f"dut:{there}"], tool="scp").return_code == 0
        assert there.read_bytes() == here.read_bytes()
        batch = tmp_path / "batch"
        batch.write_text(f'get "{there}" {back}\n')
        done = client.run(plain, ["-F", "none", "-b", str(batch), "dut"], tool="sftp")
        assert done.return_code == 0, done.stderr
        assert back.read_bytes() == here.read_bytes()


def test_missing_ssh_is_127(server: SshServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with serve(driver(server, known_hosts=server.host_key)) as client:
        monkeypatch.setenv("PATH", str(tmp_path))
        rc, out, err = run(client, "true")
        assert (rc, out) == (127, "") and "ssh is not installed" in err
        result = CliRunner().invoke(client.cli(), ["true"])
        assert result.exit_code == 127


def test_streams_lead_to_sshd_for_other_adapters(server: SshServer) -> None:
    with serve(driver(server)) as client, UnixPortforwardAdapter(client=client) as path:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            assert connection.recv(8) == b"SSH-2.0-"


# --- the key stays --------------------------------------------------------------------------------------------------


def agent_requests(client: SSHWrapperClient, *messages: bytes) -> list[bytes]:
    with UnixPortforwardAdapter(client=client, method="agent") as path:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(path)
            stream = connection.makefile("rwb")
            answers = []
            for message in messages:
                stream.write(len(message).to_bytes(4, "big") + message)
                stream.flush()
                answers.append(stream.read(int.from_bytes(stream.read(4), "big")))
            return answers


def test_the_private_key_does_not_leave_the_exporter(server: SshServer) -> None:
    with serve(driver(server, ssh_identity_file=None, ssh_identity=server.key.read_text().strip())) as client:
        assert run(client, "true")[0] == 0
        with pytest.raises(DriverError, match="share_identity: true"):
            client.call("get_ssh_identity")
        assert "PRIVATE" not in str(client.call("ssh_settings"))
    with serve(driver(server, share_identity=True)) as client:
        assert client.identity == server.key.read_text()
    assert "PRIVATE" not in repr(driver(server, ssh_identity_file=None, ssh_identity=server.key.read_text()))


def test_the_agent_lists_and_signs_and_does_nothing_else(server: SshServer) -> None:
    with serve(driver(server)) as client:
        text = b"\0\0\0\x01x"
        listed, add, remove_all, smartcard, lock, extension, again = agent_requests(
            client, b"\x0b", b"\x11" + text, b"\x13", b"\x1a" + text + text, b"\x16" + text, b"\x1b" + text, b"\x0b"
        )
        assert listed[:5] == b"\x0c\0\0\0\x01" and listed == again, "SSH_AGENT_IDENTITIES_ANSWER with one key"
        assert {add, remove_all, smartcard, lock, extension} == {b"\x05"}, "SSH_AGENT_FAILURE"


def test_a_client_that_only_asks_the_agent_is_made_to_wait(server: SshServer) -> None:
    """Answers nobody takes must not fill the exporter's memory."""

    async def main() -> None:
        agent = KeyAgent()
        try:
            async with agent.connect(server.key.read_text()) as stream:
                sending = asyncio.ensure_future(stream.send(b"\0\0\0\1\x11" * 1000))
                for _ in range(1000):
                    await asyncio.sleep(0)
                assert not sending.done()
                for _ in range(1000):
                    assert await stream.receive() == b"\0\0\0\1\x05"
                await sending
                sending = asyncio.ensure_future(stream.send(b"\0\0\0\1\x11" * 1000))
                await asyncio.sleep(0)
            with pytest.raises(BrokenResourceError):  # closing ends it
                await sending
        finally:
            agent.stop()

    asyncio.run(main())


def test_the_agent_ends_with_the_session(server: SshServer) -> None:
    made = driver(server)
    with serve(made) as client:
        assert run(client, "true")[0] == 0
        process, folder = made._agent._process, made._agent._folder
        assert process is not None and process.running
        # Nobody but this user gets at it on the exporter either.
        assert folder is not None and stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert not process.running
    assert not os.path.exists(folder)


def test_keys_that_cannot_be_used_are_named_without_their_text(server: SshServer, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", locked], check=True)
    made = driver(server, ssh_identity_file=None, ssh_identity="hunter2")
    with pytest.raises(ValueError, match="ssh identity: ssh-add does not take it") as caught:
        made._agent.start("hunter2")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ValueError, match="passphrase"):
        made._agent.start(locked.read_text())
    with serve(driver(server, ssh_identity_file=str(tmp_path / "none"))) as client:
        assert run(client, "-oBatchMode=yes", "true")[0] == 255
    with serve(driver(server, ssh_identity_file=None)) as client:
        with pytest.raises(DriverMethodNotImplemented, match="no ssh_identity"), client.stream("agent") as stream:
            stream.receive()


# --- host keys ------------------------------------------------------------------------------------------------------


def test_another_device_is_refused(server: SshServer, tmp_path: Path) -> None:
    known = server.host_key
    server.new_host_key()
    for config in ({"known_hosts": f"192.0.2.1,other {known}"}, {"known_hosts_file": str(tmp_path / "known")}):
        (tmp_path / "known").write_text(f"# comment\n{known} root@board\n")
        with serve(driver(server, **config)) as client:
            rc, _, err = run(client, "true")
            assert rc == 255 and "HOST IDENTIFICATION HAS CHANGED" in err
            with pytest.raises(DriverError, match="configuration"):
                client.forget_host_keys()
    with serve(driver(server, known_hosts=server.host_key)) as client:
        assert run(client, "true")[0] == 0


def test_keys_that_are_seen_first_hold_for_the_lease(server: SshServer) -> None:
    made = driver(server)
    with serve(made) as client:
        assert run(client, "true")[0] == 0
        server.new_host_key()
        assert run(client, "true")[0] == 255, "within a lease nobody may take the device's place"
        result = CliRunner().invoke(client.cli(), ["--forget-host-keys", "-F", "none", "true"])
        assert result.exit_code == 0
    server.new_host_key()
    with serve(made) as client:
        assert run(client, "true")[0] == 0, "a lease begins with an open mind"


def test_keys_can_be_kept_over_leases(server: SshServer, tmp_path: Path) -> None:
    config = {"trust": "exporter", "state_dir": str(tmp_path / "keys")}
    with serve(driver(server, **config)) as client:
        assert run(client, "true")[0] == 0
    server.new_host_key()
    with serve(driver(server, **config)) as client:
        assert run(client, "true")[0] == 255
        client.forget_host_keys()
        assert run(client, "true")[0] == 0
    (record,) = (tmp_path / "keys").iterdir()
    assert stat.S_IMODE(record.stat().st_mode) == 0o600


def test_an_explicit_choice_about_host_keys_is_respected(server: SshServer) -> None:
    command = "ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    with serve(driver(server, ssh_command=command)) as client:
        assert client.command == command
        assert run(client, "true")[0] == 0
        server.new_host_key()
        assert run(client, "true")[0] == 0


def test_clients_of_09_get_a_command_that_knows_the_host_key(server: SshServer) -> None:
    """They run the command they are told, with the key in a file, against a local port."""
    import shlex

    with serve(driver(server, share_identity=True)) as client:
        command = [*shlex.split(client.command), "-F", "none", "-i", str(server.key), "-l", client.username]
        command += ["-o", "BatchMode=yes", "-p", str(server.port), "127.0.0.1", "echo hello"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
        server.new_host_key()
        assert subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 255


def test_a_device_without_sshd_is_an_error_that_names_it(server: SshServer) -> None:
    with socket.socket() as closed:  # bound, so that it is nobody else's, and not listening
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        made = SSHWrapper(children={"tcp": TcpNetwork(host="127.0.0.1", port=port)})
        with serve(made) as client, pytest.raises(DriverError, match=f"no host key from 127.0.0.1 port {port}"):
            run(client, "true")


# --- arguments and configuration ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "options", "command"),
    [
        (["uname", "-a"], [], ["uname", "-a"]),
        (["-tt", "-v", "top", "-b"], ["-tt", "-v"], ["top", "-b"]),
        (["-vp22", "-o", "X=Y", "ls"], ["-vp22", "-o", "X=Y"], ["ls"]),
        (["-L", "1:h:2", "-NfL1:h:2"], ["-L", "1:h:2", "-NfL1:h:2"], []),
        (["-v", "--", "-x"], ["-v"], ["-x"]),
        (["-", "x"], [], ["-", "x"]),
    ],
)
def test_arguments_are_split_as_ssh_does(args: list[str], options: list[str], command: list[str]) -> None:
    assert split_arguments(args) == (options, command)


def test_options_are_found_however_they_are_written() -> None:
    assert option_set(["-v", "-lroot"], "l", "User")
    assert option_set(["-vo", "user=root"], "l", "User")
    assert not option_set(["-o", "SendEnv=l", "-p", "-l"], "l", "User")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"children": {}}, "child tcp is missing"),
        ({"ssh_identity": "a", "ssh_identity_file": "b"}, "one is enough"),
        ({"known_hosts": "nonsense"}, "line 1 is no host key"),
        ({"known_hosts": "# nothing\n"}, "holds no key"),
        ({"ssh_command": "ssh 'x"}, "quotation"),
        ({"ssh_command": ""}, "empty"),
        ({"trust": "me"}, "lease or exporter"),
        ({"default_username": "-oProxyCommand=x"}, "dash"),
    ],
)
def test_wrong_configuration_is_found_at_construction(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        SSHWrapper(**{"children": {"tcp": TcpNetwork(host="h", port=22)}, **config})


def test_device_behind_another_kind_of_child_needs_known_hosts(server: SshServer) -> None:
    with serve(SSHWrapper(children={"tcp": UnixNetwork(path="/run/none")})) as client:
        with pytest.raises(DriverError, match="set known_hosts"):
            run(client, "true")


def test_session_leaves_nothing_behind(server: SshServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with serve(driver(server)) as client:
        assert run(client, "true")[0] == 0
    eventually(lambda: os.rmdir(folder))


def test_an_agent_that_is_asked_for_as_the_session_ends_is_not_started() -> None:
    """A call is still on its way to its thread: nobody would end what it starts."""
    driver = SSHWrapper(children={"tcp": TcpNetwork(host="127.0.0.1", port=1)}, ssh_identity="hunter2")
    driver.reset()
    driver.close()
    with pytest.raises(ConnectionError, match="ended with the session"):
        driver._agent.start("hunter2")
    driver.reset()
    with pytest.raises(ValueError, match="ssh-add does not take it"):
        driver._agent.start("hunter2")
