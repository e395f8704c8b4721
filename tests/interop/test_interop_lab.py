# SPDX-License-Identifier: Apache-2.0
"""The real Jumpstarter 0.9 on one side of our controller and router, ours on the other, as processes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from controller_harness import LabFiles
from lab_stage import running_file
from original_peers import Original, original_exporter
from playing import Stage, remove_runtime

MOCKS: dict[str, Any] = {
    "power": {"type": "jumpstarter_driver_power.driver.MockPower"},
    "echo": {"type": "jumpstarter_driver_network.driver.EchoNetwork"},
    "console": {"type": "jumpstarter_driver_pyserial.driver.PySerial", "config": {"url": "loop://"}},
}

#: Runs with the client library of either side. argv: client configuration, image, where to dump it.
PROGRAM = """
import sys
from jumpstarter.config.client import ClientConfigV1Alpha1
with ClientConfigV1Alpha1.from_file(sys.argv[1]).lease(selector="board=mock") as lease:
    with lease.connect() as client:
        client.power.on()
        print([(r.voltage, r.current) for r in client.power.read()])
        with client.echo.stream() as stream:
            stream.send(b"hello")
            print(stream.receive())
        with client.console.pexpect() as serial:
            serial.send("boot\\n")
            serial.expect("boot", timeout=20)
            print("serial")
        client.storage.flash(sys.argv[2])
        client.storage.dump(sys.argv[3])
        client.power.off()
"""
SAID = ["[(0.0, 0.0), (5.0, 2.0)]", "b'hello'", "serial"]


def _image(tmp_path: Path) -> Path:
    path = tmp_path / "image.bin"
    path.write_bytes(os.urandom(3 << 20) + bytes(1 << 20) + os.urandom(12345))
    return path


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_originals_shell_and_client_lease_and_drive_our_exporter(
    lab: LabFiles, original: Path, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    theirs = Original(original, tmp_path / "home")
    disk = tmp_path / "disk.img"
    flasher = {
        "type": "jumpstarter_driver_storage.driver.FileFlasher",
        "config": {"path": str(disk), "state_dir": str(tmp_path / "state")},
    }
    image, dump = _image(tmp_path), tmp_path / "dump.bin"
    with lab.serving():
        config = lab.exporter("ours", "-l", "board=mock", export={**MOCKS, "storage": flasher})
        data = yaml.safe_load(config.read_text())
        hooks = {
            "beforeLease": {"script": "echo prepared for $CLIENT_NAME; j power on"},
            "afterLease": {"script": "echo cleaned up"},
        }
        config.write_text(yaml.safe_dump({**data, "hooks": hooks}))
        alice = lab.client("alice")
        with running_file(lab, "ours", config):
            shell = ["shell", "--client-config", str(alice), "-l", "board=mock", "--exporter-logs", "--"]
            done = subprocess.run(
                [theirs.bin / "jmp", *shell, "sh", "-c", "j power on && j power off; exit 7"],
                env=theirs.env,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 7, done.stdout + done.stderr
            assert "prepared for alice" in done.stdout + done.stderr

            arguments = [str(alice), str(image), str(dump)]
            done = theirs.python(f"import sys; sys.argv[1:] = {arguments!r}\n{PROGRAM}")
            assert done.returncode == 0, done.stderr
            assert done.stdout.splitlines() == SAID
            assert _sha256(disk) == _sha256(dump) == _sha256(image)
            leases = yaml.safe_load(theirs.jmp("get", "leases", "-a", "--client-config", alice, "-o", "yaml"))["leases"]
            assert [lease["exporter"] for lease in leases] == ["ours", "ours"]
        assert lab.audit()[-1]["action"] == "exporter unregistered"


def test_our_shell_client_and_play_lease_and_drive_an_exporter_of_the_original(
    lab: LabFiles, original: Path, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    theirs = Original(original, tmp_path / "home")
    image, dump = _image(tmp_path), tmp_path / "dump.bin"
    with lab.serving():
        storage = {"storage": {"type": "jumpstarter_driver_opendal.driver.MockFlasher"}}
        config = lab.exporter("theirs", "-l", "board=mock", export={**MOCKS, **storage})
        alice = lab.client("alice")
        with original_exporter(theirs, lab, config):
            jmp = [sys.executable, "-m", "jumpstarter_cli.jmp"]
            listed = subprocess.run(
                [*jmp, "get", "exporters", "--client-config", alice, "-o", "json"],
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
            assert [exporter["name"] for exporter in json.loads(listed.stdout)["exporters"]] == ["theirs"]
            shell = [*jmp, "shell", "--client-config", alice, "-l", "board=mock", "--"]
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            done = subprocess.run(
                [*shell, "sh", "-c", "j power on && j power off; exit 7"],
                env={**os.environ, "PATH": path},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 7, done.stdout + done.stderr

            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, alice, image, dump],
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.splitlines() == SAID
            assert _sha256(dump) == _sha256(image)
            _play(tmp_path, alice, image)


def _play(tmp_path: Path, client: Path, image: Path) -> None:
    """Power, serial, flash and storage of the leased exporter from a play."""
    folder = tmp_path / "stage"
    folder.mkdir()
    dump = tmp_path / "played.bin"
    host = {"jumpstarter_selector": "board=mock", "jumpstarter_client_config": str(client)}
    stage = Stage(folder, {"any-mock": host})
    try:
        played = stage.run(
            [
                {"name": "Lease", "jumpstarter.lab.lease": {"duration": "10m"}},
                {"name": "On", "jumpstarter.lab.power": {"state": "on"}},
                {"name": "Read", "jumpstarter.lab.call": {"driver": "power", "method": "read"}},
                {"name": "Send", "jumpstarter.lab.console": {"send": "hello\n", "pattern": "hello", "timeout": "20s"}},
                {"name": "Flash", "jumpstarter.lab.flash": {"src": str(image)}},
                {"name": "Dump", "jumpstarter.lab.storage": {"dump": {"path": str(dump)}}},
                {"name": "Off", "jumpstarter.lab.power": {"state": "off"}},
            ]
        )
    finally:
        remove_runtime(stage.runtime)
    assert played.rc == 0, played.output
    assert played.result("any-mock", 0)["lease"]["exporter"] == "theirs"
    assert _sha256(dump) == _sha256(image)
