# SPDX-License-Identifier: Apache-2.0
"""A PDU for tests: Debian's snmpd with the fake PDU of snmp_pdu_agent.py behind it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

AGENT = Path(__file__).with_name("snmp_pdu_agent.py")
RARITAN = "1.3.6.1.4.1.13742.6.4.1.2.1"

#: Raritan PDU2-MIB: outletSwitchingOperation takes off(0), on(1); outletSwitchingState tells on(7), off(8).
RARITAN_PDU: dict[str, Any] = {
    "outlets": {str(n): "off" for n in range(1, 9)},
    "sets": {f"{RARITAN}.2.1": {"0": "off", "1": "on"}},
    "reads": {f"{RARITAN}.2.1": {"off": 0, "on": 1}, f"{RARITAN}.3.1": {"off": 8, "on": 7}},
}
USERS = """
createUser plain
createUser sha1 SHA "auth-pass-123" AES "priv-pass-123"
createUser md5 MD5 "auth-pass-123" DES "priv-pass-123"
createUser sha2 SHA-256 "auth-pass-123" AES "priv-pass-123"
createUser sha5 SHA-512 "auth-pass-123" AES-256 "priv-pass-123"
createUser sha1long SHA "auth-pass-123" AES-256 "priv-pass-123"
createUser reader SHA "auth-pass-123" AES "priv-pass-123"
rwuser plain noauth
rwuser sha1 priv
rwuser md5 priv
rwuser sha1long priv
rwuser sha2 priv
rwuser sha5 priv
rouser reader priv
"""


@dataclass
class SnmpPdu:
    """A running PDU. set `faults` through `break_it`; `sets` are the SETs that came, as (OID, number)."""

    folder: Path
    port: int
    host: str
    process: subprocess.Popen[bytes]
    secrets: dict[str, str] = field(default_factory=dict)

    def break_it(self, **faults: Any) -> None:
        """Make it misbehave, or (without arguments) behave again."""
        path = self.folder / "faults.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps(faults))
        new.replace(path)

    @property
    def sets(self) -> list[tuple[str, int]]:
        path = self.folder / "sets.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(line.split()[0].lstrip("."), int(line.split()[-1])) for line in lines]

    def forget(self) -> None:
        """Behave again, with an empty list of SETs."""
        self.break_it()
        (self.folder / "sets.log").unlink(missing_ok=True)

    @property
    def sha5(self) -> dict[str, Any]:
        """Configuration of the driver for the user with the strongest protocols."""
        return {
            "host": self.host,
            "port": self.port,
            "user": "sha5",
            "auth_protocol": "SHA512",
            "auth_key": "auth-pass-123",
            "priv_protocol": "AES256",
            "priv_key": "priv-pass-123",
        }


def free_udp_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@contextmanager
def snmp_pdu(folder: Path, spec: dict[str, Any], host: str = "127.0.0.1", users: str = USERS) -> Iterator[SnmpPdu]:
    """Run snmpd with this PDU until it answers; it ends with the context."""
    snmpd = shutil.which("snmpd", path=os.environ.get("PATH", "") + ":/usr/sbin")
    assert snmpd, "Debian's snmpd is not installed (make debian-test)"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pdu.json").write_text(json.dumps(spec))
    state = folder / "state"  # snmpd writes a snmpd.conf of its own there
    state.mkdir()
    roots = sorted({_root(column) for column in (*spec["sets"], *spec["reads"], *spec.get("locked", []))})
    for _ in range(5):  # another process may take the port before snmpd does
        port = free_udp_port(host)
        address = f"udp6:[{host}]:{port}" if ":" in host else f"udp:{host}:{port}"
        lines = [f"agentAddress {address}"]
        lines += [f"rwcommunity{kind} writer-secret\nrocommunity{kind} public" for kind in ("", "6")]
        lines += [f"pass_persist .{root} {sys.executable} {AGENT} {folder / 'pdu.json'}" for root in roots]
        (folder / "snmpd.conf").write_text("\n".join(lines) + "\n" + users)
        process = subprocess.Popen(
            [snmpd, "-f", "-Lf", folder / "snmpd.log", "-C", "-c", folder / "snmpd.conf", "-I", "-smux"],
            env={**os.environ, "SNMP_PERSISTENT_DIR": str(state), "MIBS": ""},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            if _answers(process, host, port):
                yield SnmpPdu(folder, port, host, process)
                return
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:  # it waits for a mute agent
                process.kill()
                process.wait()
    raise AssertionError(f"snmpd did not start: {(folder / 'snmpd.log').read_text()}")


def _root(column: str) -> str:
    """What snmpd passes on: the vendor's branch, or the table outside of the vendors' branches."""
    enterprises = "1.3.6.1.4.1."
    if column.startswith(enterprises):
        return enterprises + column[len(enterprises) :].split(".")[0]
    return column.rpartition(".")[0]


#: GET sysUpTime.0, version 2c, community "public".
_HELLO = bytes.fromhex("302602010104067075626c6963a019020101020100020100300e300c06082b060102010103000500")


def _answers(process: subprocess.Popen[bytes], host: str, port: int) -> bool:
    deadline = time.monotonic() + 10
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.settimeout(0.05)
        probe.connect((host, port))
        while process.poll() is None and time.monotonic() < deadline:
            try:
                probe.send(_HELLO)
                return bool(probe.recv(1500))
            except ConnectionRefusedError:
                time.sleep(0.02)
            except TimeoutError:
                continue
    return False
