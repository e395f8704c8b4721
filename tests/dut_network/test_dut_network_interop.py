# SPDX-License-Identifier: Apache-2.0
"""The device's network of the real Jumpstarter 0.9 and ours: their client with our driver, our client with theirs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dut_lab import MAC, Lab

INTEROP = Path(__file__).parents[1] / "interop"
sys.path.insert(0, str(INTEROP))

from original_exporters import TheirClient, original_commands, their_exporter  # noqa: E402

#: What both clients do, when the device has its first address.
_STEPS = """
    net = client.net
    out["before"] = [net.get_dut_ip(sys.argv[1]), net.get_dut_ip("02:00:00:00:00:99")]
    out["leases"] = [[lease["mac"], lease["hostname"]] for lease in net.get_leases()]
    status = net.status()
    out["status"] = [status["interface"], status["upstream"], status["interface_status"]["addresses"]]
    out["rules"], out["ntp"] = net.get_nat_rules(), net.ntp_status()
    net.add_dns_entry("update.example.org", "203.0.113.9")
    net.add_dns_entry("gone.example.org", "203.0.113.8")
    net.remove_dns_entry("gone.example.org")
    out["names"] = net.get_dns_entries()
    net.remove_address("192.168.100.50")
    net.add_address("192.168.100.51", mac=sys.argv[1], hostname="second")
    try:
        out["tcpdump"] = list(net.tcpdump(["-c", "1"]))
    except Exception as error:
        while getattr(error, "exceptions", None):
            error = error.exceptions[0]
        out["tcpdump"] = str(error)
print(json.dumps(out))
"""
THEIR_CLIENT = f"""
import json, sys
from jumpstarter.utils.env import env
out = {{}}
with env() as client:{_STEPS}"""
OUR_CLIENT = f"""
import json, sys
from original_exporters import our_client
out = {{}}
with our_client(sys.argv[2]) as client:{_STEPS}"""


@pytest.fixture(scope="module")
def original() -> Path:
    """Folder of the original's commands, in a virtual environment of its own."""
    return original_commands()


def test_a_client_of_the_original_uses_our_network(original: Path, lab: Lab) -> None:
    with lab.exporter():
        lab.lease()
        theirs = TheirClient(original, Path(os.environ["JUMPSTARTER_HOST"]))
        out = json.loads(theirs.python(THEIR_CLIENT, MAC).splitlines()[-1])
        _check(lab, out)
        assert "enable_tcpdump" in out["tcpdump"]


def test_our_client_uses_a_network_of_the_original(original: Path, lab: Lab, tmp_path: Path) -> None:
    """Both run on the lab's host, which is a namespace: the exporter listens on its loop-back interface.

    Its dnsmasq reads its files as nobody, who may not look into this test's folder: they lie on a mount of its own.
    """
    config = {
        "interface": "dut0",
        "state_dir": "/srv/net",
        "dns_servers": [],
        "addresses": [{"ip": "192.168.100.50", "mac": MAC, "hostname": "board"}],
    }
    drivers = {"net": {"type": "jumpstarter_driver_dut_network.driver.DutNetwork", "config": config}}
    on_host = ("ip", "netns", "exec", f"{lab.name}-host")
    through = (*on_host, "sh", "-c", 'mount -t tmpfs -o mode=755 none /srv && exec "$@"', "sh")
    with their_exporter(original, tmp_path, drivers, through) as address:
        lab.lease()
        done = subprocess.run(
            [*on_host, sys.executable, "-c", OUR_CLIENT, MAC, address],
            env={**os.environ, "PYTHONPATH": str(INTEROP)},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        out = json.loads(done.stdout)
        _check(lab, out)
        assert "enable_tcpdump: true" in out["tcpdump"]


def _check(lab: Lab, out: dict[str, Any]) -> None:
    assert out["before"] == ["192.168.100.50", None]
    assert out["leases"] == [[MAC, "board"]]
    assert out["status"] == ["dut0", "up0", ["192.168.100.1/24"]]
    assert "masquerade" in out["rules"] and out["ntp"] == {"enabled": False, "running": False}
    assert out["names"] == [{"hostname": "update.example.org", "ip": "203.0.113.9"}]
    assert "203.0.113.9" in lab.ask("update.example.org") and "203.0.113.8" not in lab.ask("gone.example.org")
    assert lab.peer_seen_by_world() == "203.0.113.2"
    assert lab.lease().startswith("192.168.100.51 ")
