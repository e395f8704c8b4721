# SPDX-License-Identifier: Apache-2.0
"""A host, a device and an outside world in network namespaces.

The "host" is one too, so that the machine that runs the tests keeps its own rules.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jumpstarter.utils.env import env

MAC = "02:00:00:00:00:07"
_EXPORTER = """
import asyncio, json, sys
from jumpstarter.common.enums import ExporterStatus
from jumpstarter.exporter.server import UnixListener, serve_session
from jumpstarter.exporter.session import Session
from jumpstarter_driver_composite.driver import Composite
from jumpstarter_driver_dut_network.driver import DutNetwork

async def main():
    root = Composite(children={"net": DutNetwork(**json.loads(sys.argv[2]))})
    with Session(root_device=root, name="e") as session:
        session.update_status(ExporterStatus.LEASE_READY)
        async with serve_session(session, UnixListener(sys.argv[1])):
            print("READY", flush=True)
            await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


def run(*argv: str, check: bool = True) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


@dataclass
class Lab:
    """Namespaces host, dut and world; the host has the interfaces "dut0" and "up0"."""

    name: str
    folder: Path
    exporters: int = 0

    def inside(self, where: str, *argv: str, check: bool = True) -> str:
        return run("ip", "netns", "exec", f"{self.name}-{where}", *argv, check=check)

    def state(self) -> dict[str, Any]:
        """What a driver could have changed on the host."""
        return {
            "rules": self.inside("host", "nft", "list", "ruleset"),
            "addresses": [
                (link["ifname"], "UP" in link["flags"], [a["local"] for a in link["addr_info"]])
                for link in json.loads(self.inside("host", "ip", "-json", "-4", "address", "show"))
                or json.loads(self.inside("host", "ip", "-json", "link", "show"))
            ],
            "links": [link["flags"] for link in json.loads(self.inside("host", "ip", "-json", "link", "show"))],
            "forwarding": [
                self.inside("host", "cat", f"/proc/sys/net/ipv4/conf/{name}/forwarding") for name in ("dut0", "up0")
            ],
            "daemons": run("ip", "netns", "pids", f"{self.name}-host").split(),
        }

    def addresses(self, interface: str) -> list[str]:
        """IPv4 addresses of one of the host's interfaces."""
        [link] = json.loads(self.inside("host", "ip", "-json", "-4", "address", "show", "dev", interface))
        return [address["local"] for address in link["addr_info"]]

    @contextmanager
    def exporter(self, killed: bool = False, through: tuple[str, ...] = (), **config: Any) -> Iterator[Any]:
        """Context: the driver's client. killed: by SIGKILL at the end. through: what starts the exporter."""
        settings = {
            "interface": "dut0",
            "state_dir": str(self.folder / "state"),
            "dns_servers": [],
            # dnsmasq pings an address for 3 s before it gives it to a device that it does not know.
            "addresses": [{"ip": "192.168.100.50", "mac": MAC, "hostname": "board"}],
            **config,
        }
        self.exporters += 1
        socket = self.folder / f"e{self.exporters}.sock"
        argv = ["ip", "netns", "exec", f"{self.name}-host", *through, sys.executable, "-c", _EXPORTER, str(socket)]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        with (self.folder / "exporter.log").open("a") as log:
            process = subprocess.Popen(
                [*argv, json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
            with process:
                try:
                    assert process.stdout is not None and process.stdin is not None
                    assert process.stdout.readline() == "READY\n", (self.folder / "exporter.log").read_text()
                    os.environ["JUMPSTARTER_HOST"] = str(socket)
                    os.environ["JMP_DRIVERS_ALLOW"] = "UNSAFE"
                    with env() as client:
                        yield client.net
                    if not killed:
                        process.stdin.close()
                        assert process.wait(20) == 0, (self.folder / "exporter.log").read_text()
                finally:
                    process.kill()

    def lease(self) -> str:
        """Let the device ask for an address, and use it; the address."""
        script = self.folder / "udhcpc.sh"
        script.write_text(
            '#!/bin/sh\n[ "$1" = bound ] || exit 0\nip addr flush dev eth0\n'
            "ip addr add $ip/$mask dev eth0 && ip route replace default via $router\n"
            f'echo "$ip $router $dns $ntpsrv" >{self.folder}/lease\n'
        )
        script.chmod(0o755)
        self.inside(
            "dut", "busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "10", "-T", "1", "-s", str(script)
        )
        return (self.folder / "lease").read_text().strip()

    def ask(self, name: str) -> str:
        """What the device's resolver finds."""
        return self.inside("dut", "busybox", "nslookup", name, "192.168.100.1", check=False)

    def reached_from_world(self, port: int) -> bool:
        """Whether a server outside gets through to the device."""
        code = f"import socket; s = socket.create_server(('', {port})); print('READY', flush=True); s.accept()"
        argv = ["ip", "netns", "exec", f"{self.name}-dut", sys.executable, "-c", code]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
            try:
                assert server.stdout is not None and server.stdout.readline() == "READY\n"
                connect = f"import socket; socket.create_connection(('192.168.100.50', {port}), 0.7); print('there')"
                return bool(self.inside("world", sys.executable, "-c", connect, check=False))
            finally:
                server.kill()

    def peer_seen_by_world(self, port: int = 8000) -> str:
        """The address that the device comes from, as a server outside sees it; "" when it does not get there."""
        code = f"import socket; s = socket.create_server(('203.0.113.1', {port})); print('READY', flush=True)\n"
        code += "s.settimeout(3); c, a = s.accept(); print(a[0])"
        argv = ["ip", "netns", "exec", f"{self.name}-world", sys.executable, "-c", code]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
            try:
                assert server.stdout is not None and server.stdout.readline() == "READY\n"
                connect = f"import socket; socket.create_connection(('203.0.113.1', {port}), 1); print('there')"
                if not self.inside("dut", sys.executable, "-c", connect, check=False):
                    return ""
                return server.communicate(timeout=20)[0].strip()
            finally:
                server.kill()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
