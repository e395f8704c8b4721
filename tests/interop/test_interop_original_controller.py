# SPDX-License-Identifier: Apache-2.0
"""The real Jumpstarter 0.9 on both sides of our controller: its exporter, its command line, its Python client."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import yaml
from controller_harness import LabFiles
from original_peers import Original, original_exporter

DRIVERS = {
    "power": {"type": "jumpstarter_driver_power.driver.MockPower"},
    "echo": {"type": "jumpstarter_driver_network.driver.EchoNetwork"},
    "storage": {"type": "jumpstarter_driver_opendal.driver.MockFlasher"},
}


def test_the_original_leases_and_drives_its_exporter_through_our_controller(
    lab: LabFiles, original: Path, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    theirs = Original(original, tmp_path / "home")
    with lab.serving():
        config = lab.exporter("board-1", "-l", "board=mock", "-l", "rack=a", export=DRIVERS)
        alice, bob = lab.client("alice"), lab.client("bob")
        with original_exporter(theirs, lab, config):
            listed = yaml.safe_load(theirs.jmp("get", "exporters", "--client-config", alice, "-o", "yaml"))
            assert [(e["name"], e["labels"]["board"]) for e in listed["exporters"]] == [("board-1", "mock")]

            argv = ["create", "lease", "--client-config", alice, "-l", "board in (mock)", "--duration", "10m"]
            lease = yaml.safe_load(theirs.jmp(*argv, "--tag", "job=7", "-o", "yaml"))
            assert (lease["exporter"], lease["conditions"][0]["reason"]) == ("board-1", "Ready")
            mine = yaml.safe_load(theirs.jmp("get", "leases", "--client-config", alice, "-o", "yaml"))["leases"]
            assert [(each["name"], each["selector"]) for each in mine] == [(lease["name"], "board in (mock)")]

            # A second client waits in the queue, and gets the exporter as soon as the first gives it back.
            shell = ["shell", "--client-config", bob, "-l", "board=mock,rack!=b", "--"]
            with theirs.start(*shell, "j", "power", "on", stderr=subprocess.PIPE) as waiting:
                try:
                    lab.wait_for_audit(lambda e: e["action"] == "lease created" and e["actor"].endswith("/bob"))
                    assert waiting.poll() is None
                    assert "deleted" in theirs.jmp("delete", "leases", lease["name"], "--client-config", alice)
                    _, log = waiting.communicate(timeout=60)
                    assert waiting.returncode == 0, log
                finally:
                    waiting.kill()

            # An expired token has the words that their command line looks for.
            settings = yaml.safe_load(lab.config.read_text())
            lab.config.write_text(yaml.safe_dump({**settings, "tokens": {"lifetime": "0.001s"}}))
            late = ["get", "leases", "--client-config", lab.client("late")]
            with theirs.start(*late, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as expired:
                # Its Python client: calls, a stream and a resource through the router.
                program = f"""
import hashlib, os
from jumpstarter.config.client import ClientConfigV1Alpha1
image = os.urandom(3 << 20)
open({str(tmp_path / "image")!r}, "wb").write(image)
with ClientConfigV1Alpha1.from_file({str(alice)!r}).lease(selector="board=mock") as lease:
    with lease.connect() as client:
        client.power.on()
        print([(r.voltage, r.current) for r in client.power.read()])
        with client.echo.stream() as stream:
            stream.send(b"hello")
            print(stream.receive())
        client.storage.flash({str(tmp_path / "image")!r})
        client.storage.dump({str(tmp_path / "dump")!r})
"""
                done = theirs.python(program)
                assert done.returncode == 0, done.stderr
                assert done.stdout.splitlines() == ["[(0.0, 0.0), (5.0, 2.0)]", "b'hello'"]
                assert (tmp_path / "dump").read_bytes() == (tmp_path / "image").read_bytes()
                _, log = expired.communicate(timeout=60)
                assert expired.returncode == 1
                assert "token is expired" in log.lower(), log

        audit = lab.audit()
        assert audit[-1]["action"] == "exporter unregistered"
        assert sum(entry["action"] == "lease acquired" for entry in audit) == 3
        assert sum(entry["action"].startswith("lease ended") for entry in audit) == 3
        log = (lab.folder / "controller.log").read_text()
        for secret in (yaml.safe_load(path.read_text())["token"] for path in (alice, bob, config)):
            assert secret not in log
            assert secret not in json.dumps(audit)
        assert "Traceback" not in log
