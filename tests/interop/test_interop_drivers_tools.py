# SPDX-License-Identifier: Apache-2.0
"""shell, ssh and probe-rs of Jumpstarter 0.9 and ours: their client with our drivers, our client with theirs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from original_exporters import our_client, our_exporter, their_exporter

for area in ("ssh", "probe_rs"):
    sys.path.insert(0, str(Path(__file__).parents[1] / area))

from ssh_server import SshServer  # noqa: E402
from test_probe_rs_driver import Tool  # noqa: E402

from jumpstarter_driver_ssh.client import SSHCommandRunOptions  # noqa: E402


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    folder = tmp_path / "sshd"
    folder.mkdir()
    made = SshServer(folder)
    yield made
    made.close()


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    folder = tmp_path / "tool"
    folder.mkdir()
    return Tool(folder)


def drivers(server: SshServer, tool: Tool, **ssh: Any) -> dict[str, object]:
    """The `export:` section; without more options of ssh, 0.9 understands all of it."""
    tcp = {"type": "jumpstarter_driver_network.driver.TcpNetwork", "config": {"host": "127.0.0.1", "port": server.port}}
    methods = {
        "say": {"command": 'echo "$1 $WORD"; echo err >&2; exit 3', "description": "Say it", "timeout": 20},
        "lines": "seq 20000",
        "slow": {"command": "echo before; sleep 600", "timeout": 1},
    }
    return {
        "tools": {"type": "jumpstarter_driver_shell.driver.Shell", "config": {"methods": methods}},
        "ssh": {
            "type": "jumpstarter_driver_ssh.driver.SSHWrapper",
            "config": {"default_username": server.user, "ssh_identity_file": str(server.key), **ssh},
            "children": {"tcp": tcp},
        },
        "probe": {
            "type": "jumpstarter_driver_probe_rs.driver.ProbeRs",
            "config": {"probe_rs_path": str(tool.path), "chip": "STM32F401RE", "probe": "1366:1015"},
        },
    }


THEIR_CLIENT = """
import sys
from jumpstarter.utils.env import env
from jumpstarter_driver_ssh.client import SSHCommandRunOptions
with env() as client:
    print("rc", client.tools.say("hello", WORD="you"))
    print("slow", client.tools.slow())
    lines = client.tools.lines()
    done = client.ssh.run(SSHCommandRunOptions(direct=False), ["echo", "over ssh"])
    print("ssh", done.return_code, done.stdout.strip(), done.stderr)
    print("read", client.probe.read(32, 0x20000000, 2))
    print("download", client.probe.download_file(sys.argv[1]).strip())
"""


def test_client_of_the_original_uses_our_drivers(original: Path, server: SshServer, tool: Tool, tmp_path: Path) -> None:
    elf = tmp_path / "app.elf"
    elf.write_bytes(b"\x7fELF" + bytes(200))
    with our_exporter(original, tmp_path, drivers(server, tool, share_identity=True)) as theirs:
        lines = theirs.python(THEIR_CLIENT, elf).splitlines()
        assert lines[:4] == ["hello you", "rc 3.0", "before", "slow 199.0"], lines[:6]
        assert lines[4:20004] == [str(number) for number in range(1, 20001)]
        assert lines[20004:] == ["ssh 0 over ssh ", "read [50462976, 117835012]", "download Finished in 0.05s"]
        assert tool.flash.startswith(elf.read_bytes())
        # Their `j` exits with 0 whatever the status is: a number is a float on this wire.
        assert theirs.j("tools", "say", "-e", "WORD=there", "hi") == "hi there\n"


def test_our_client_uses_drivers_of_the_original(
    original: Path, server: SshServer, tool: Tool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    elf = tmp_path / "app.elf"
    elf.write_bytes(b"\x7fELF" + bytes(200))
    with their_exporter(original, tmp_path, drivers(server, tool)) as address, our_client(address) as client:
        assert client.tools.say("hello", WORD="you") == 3
        shown = capfd.readouterr()
        assert (shown.out, shown.err) == ("hello you\n", "err\n")
        done = client.ssh.run(SSHCommandRunOptions(), ["-F", "none", "-v", "echo", "over ssh"])
        assert (done.return_code, done.stdout) == (0, "over ssh\n"), done.stderr
        assert client.probe.read(32, 0x20000000, 2) == [50462976, 117835012]
        assert "Finished" in client.probe.download_file(elf)
