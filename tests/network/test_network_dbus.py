# SPDX-License-Identifier: Apache-2.0
"""Protects the way to an exporter's message bus: real dbus-daemon, real busctl, nobody else can use it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from jumpstarter.common.exceptions import ConfigurationError, DriverError
from jumpstarter.common.utils import serve
from jumpstarter_driver_network.adapters import DbusAdapter
from jumpstarter_driver_network.dbus import DbusStream, parse_address
from jumpstarter_driver_network.driver import DbusNetwork

CONFIG = """<busconfig>
<type>session</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/>
<allow receive_type="method_return"/><allow receive_type="error"/>
<allow receive_type="signal"/><allow receive_type="method_call"/><allow own="*"/></policy>
</busconfig>"""


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Path]:
    """Socket of a message bus of our own, which lets in its own user and nobody else."""
    program = shutil.which("dbus-daemon")
    assert program, "dbus-daemon is needed for this test (apt install dbus)"
    path, config = tmp_path / "bus", tmp_path / "bus.conf"
    config.write_text(CONFIG.format(path=path))
    argv = [program, f"--config-file={config}", "--nofork", "--print-address"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as daemon:
        try:
            assert daemon.stdout is not None
            assert daemon.stdout.readline().startswith("unix:")  # it listens now
            yield path
        finally:
            daemon.kill()


@pytest.fixture(params=["session", "system"])
def driver(request: pytest.FixtureRequest, bus: Path, monkeypatch: pytest.MonkeyPatch) -> DbusNetwork:
    monkeypatch.setenv(f"DBUS_{request.param.upper()}_BUS_ADDRESS", f"unix:path={bus}")
    return DbusNetwork(kind=request.param)


def busctl(kind: str, *argv: str) -> str:
    argv = ("busctl", "--user" if kind == "session" else "--system", "--timeout=10", *argv)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_busctl_reaches_the_exporters_bus_and_then_its_own_again(driver: DbusNetwork, bus: Path) -> None:
    variable = f"DBUS_{driver.kind.upper()}_BUS_ADDRESS"
    ours = os.environ[variable]
    names = ("call", "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "ListNames")
    with serve(driver) as client:
        assert client.kind == driver.kind
        assert client.address() == f"unix://{bus}"
        with client:
            assert os.environ[variable] != ours
            assert "org.freedesktop.DBus" in busctl(client.kind, *names)
            with client:  # it may be entered again
                assert busctl(client.kind, *names).startswith("as ")
        assert os.environ[variable] == ours
        os.environ.pop(variable)
        with DbusAdapter(client=client) as address:
            path = address.removeprefix("unix:path=")
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600, "another user could act as the exporter's"
        assert variable not in os.environ


def test_a_client_of_another_user_id_is_let_in_as_the_exporter(driver: DbusNetwork) -> None:
    other = str(os.getuid() + 4321).encode().hex().encode()
    with serve(driver) as client, client.stream() as stream:
        stream.send(b"\0AUTH EXT")  # however it is cut into pieces
        stream.send(b"ERNAL " + other + b"\r\n")
        assert stream.receive().startswith(b"OK ")
        stream.send(b"NEGOTIATE_UNIX_FD\r\n")  # descriptors cannot come through: the bus must not promise to take them
        assert stream.receive().startswith(b"ERROR")
        stream.send(b"BEGIN\r\n")


def test_a_client_that_tells_its_user_only_when_asked_is_let_in_too(driver: DbusNetwork) -> None:
    other = str(os.getuid() + 4321).encode().hex().encode()
    with serve(driver) as client, client.stream() as stream:
        stream.send(b"\0AUTH EXTERNAL\r\n")
        assert stream.receive().startswith(b"DATA")
        stream.send(b"DATA " + other + b"\r\n")
        assert stream.receive().startswith(b"OK ")


def test_after_the_authentication_not_a_byte_is_changed() -> None:
    stream = DbusStream(None)  # type: ignore[arg-type]
    assert stream._adapt(b"\0AUTH EXTERNAL\r\nDATA\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\nl\1AUTH EXTERNAL 31\r\n") == (
        b"\0AUTH EXTERNAL\r\nDATA\r\nWITHOUT_UNIX_FD\r\nBEGIN\r\nl\1AUTH EXTERNAL 31\r\n"
    )
    assert stream._authenticated


def test_the_command_run_passes_output_and_exit_code_on(driver: DbusNetwork, capfd: pytest.CaptureFixture[str]) -> None:
    option = "--user" if driver.kind == "session" else "--system"
    with serve(driver) as client:
        run = client.cli().commands["run"]
        assert run.main(["busctl", option, "status", "org.freedesktop.DBus"], standalone_mode=False) == 0
        assert "PID=" in capfd.readouterr().out
        assert run.main(["sh", "-c", "exit 7"], standalone_mode=False) == 7
        result = CliRunner().invoke(client.cli(), ["run", "no-such-program"])
        assert result.exit_code == 1 and "no-such-program: no such file" in result.output


def test_a_bus_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={tmp_path}/none;tcp:host=127.0.0.1,port=1")
    with serve(DbusNetwork(kind="session")) as client:
        with pytest.raises(DriverError, match="session bus of the exporter: unix .*/none: no such file.*; tcp 127"):
            with client.stream():
                pass


@pytest.mark.parametrize("address", ["unixexec:path=ssh", "nonsense", "unix:dir=/tmp", "tcp:host=a", "unix:path"])
def test_addresses_that_cannot_be_forwarded_show_when_the_exporter_starts(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
    with pytest.raises(ConfigurationError, match="DBUS_SYSTEM_BUS_ADDRESS in the exporter's environment"):
        DbusNetwork(kind="system")
    with pytest.raises(ConfigurationError, match="must be system or session"):
        DbusNetwork(kind="user")  # type: ignore[arg-type]


def test_addresses_are_read_as_the_specification_says() -> None:
    assert parse_address("unix:path=/a%20b,guid=1;tcp:host=::1,port=2;unix:abstract=x") == [
        ("unix", {"path": "/a b", "guid": "1"}),
        ("tcp", {"host": "::1", "port": "2"}),
        ("unix", {"abstract": "x"}),
    ]


def test_without_an_address_the_usual_socket_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DBUS_SYSTEM_BUS_ADDRESS", raising=False)
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    with serve(DbusNetwork(kind="system")) as client:
        assert client.address() == "unix:///run/dbus/system_bus_socket"
    with serve(DbusNetwork(kind="session")) as client:
        assert client.address() == f"unix:///run/user/{os.getuid()}/bus"
