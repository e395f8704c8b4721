# SPDX-License-Identifier: Apache-2.0
"""An exporter in a network namespace of its own: the link is cut until both sides have noticed, and mended."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from controller_harness import LabFiles, run_cli
from exporter_harness import POWER, run, until

from jumpstarter.client.aio import connect
from jumpstarter.client.controller import LeaseWish, connect_controller
from jumpstarter.client.lease import hold_lease
from jumpstarter.common.exceptions import JumpstarterException
from jumpstarter.config.client import ClientConfigV1Alpha1

ECHO = "jumpstarter_driver_network.driver.EchoNetwork"


@dataclass
class Link:
    """A virtual cable. near: our address; namespace: where the other end is."""

    namespace: str
    interface: str
    near: str

    def set(self, state: str) -> None:
        """Cut it ("down") or mend it ("up")."""
        _ip("link", "set", self.interface, state)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


@pytest.fixture
def link() -> Iterator[Link]:
    """A network namespace and a cable to it; both are gone afterwards."""
    pid = os.getpid()
    # Addresses that no other worker of this run has.
    net = f"10.{200 + (pid >> 8) % 50}.{pid % 256}"
    made = Link(f"jl-{pid}", f"jl{pid}", f"{net}.1")
    _ip("netns", "add", made.namespace)
    try:
        _ip("link", "add", made.interface, "type", "veth", "peer", "name", "far", "netns", made.namespace)
        _ip("addr", "add", f"{net}.1/24", "dev", made.interface)
        _ip("link", "set", made.interface, "up")
        for words in (("addr", "add", f"{net}.2/24", "dev", "far"), ("link", "set", "far", "up")):
            _ip("-n", made.namespace, *words)
        yield made
    finally:
        _ip("netns", "del", made.namespace)


@contextmanager
def _exporter(lab: LabFiles, link: Link, config: Path) -> Iterator[None]:
    """`jmp run` at the other end of the link, available."""
    with (lab.folder / "exporter.log").open("w") as log:
        process = subprocess.Popen(
            ["ip", "netns", "exec", link.namespace, sys.executable, "-m", "jumpstarter_cli.jmp"]
            + ["run", "--exporter-config", str(config)],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        lab.wait_for_audit(lambda entry: entry["action"] == "exporter status" and entry["status"] == "AVAILABLE")
        yield
        process.terminate()
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_lease_survives_a_cut_between_exporter_and_controller(tmp_path: Path, link: Link) -> None:
    tls = {"certificate": "far.crt", "key": "far.key", "ca": "ca.crt"}
    lab = LabFiles.make(tmp_path / "lab", listen=f"{link.near}:0", tls=tls)
    run_cli("ca", "issue", "--dir", lab.folder, "--out", "far", link.near)
    trace = tmp_path / "trace"
    with lab.serving():
        drivers = {"power": {"type": POWER}, "echo": {"type": ECHO}}
        config = lab.exporter("far", "-l", "board=x", export=drivers)
        # Both sides find out in seconds; by default it takes half a minute.
        quick = {"grpc.keepalive_time_ms": 10_000, "grpc.keepalive_timeout_ms": 2_000}
        hooks = {"beforeLease": {"script": f"j power on; echo before >>{trace}"}}
        data = yaml.safe_load(config.read_text())
        config.write_text(yaml.safe_dump({**data, "hooks": hooks, "grpcOptions": quick}))
        alice = lab.client("alice")
        alice.write_text(yaml.safe_dump({**yaml.safe_load(alice.read_text()), "grpcOptions": quick}))
        with _exporter(lab, link, config):
            run(lambda: _body(ClientConfigV1Alpha1.from_file(alice), link, tmp_path), 180)
        audit = lab.audit(10_000)
    assert trace.read_text() == "before\n"
    assert sum(entry["action"] == "lease acquired" for entry in audit) == 1


async def _body(config: ClientConfigV1Alpha1, link: Link, folder: Path) -> None:
    async with connect_controller(config) as client, hold_lease(client, LeaseWish(selector="board=x")) as held:
        async with held.serve_unix(str(folder / "lease.sock")) as path:
            async with connect(path) as session:
                async with session.node("echo").stream() as stream:
                    await stream.send(b"before")
                    assert await stream.receive() == b"before"
                    link.set("down")
                    try:
                        with pytest.raises(Exception):  # noqa: B017 (whatever it is called: it ends)
                            await stream.send(b"into nowhere")
                            async with asyncio.timeout(90):
                                await stream.receive()
                    finally:
                        link.set("up")
            assert not held.lost.done()
            assert await until_reached(path) == "on"
            await until(lambda: not held.lost.done(), "the lease is still ours")


async def until_reached(path: str) -> str:
    """What the power is, as soon as a new connection gets through."""
    async with asyncio.timeout(60):
        while True:
            try:
                # A dial before the exporter is back goes astray: dial anew soon. Without a pool of its own, a new
                # channel would share the old one's attempt to connect, for 20 s.
                async with connect(path, timeout=5, grpc_options={"grpc.use_local_subchannel_pool": 1}) as session:
                    return str(await session.node("power").call("status"))
            except JumpstarterException:
                await asyncio.sleep(0.2)
