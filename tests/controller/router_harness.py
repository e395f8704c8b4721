# SPDX-License-Identifier: Apache-2.0
"""Routers as processes, and peers for a controller that is a process too."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from controller_harness import LabFiles, reserved_port, run_cli
from grpc.aio import EOF, AioRpcError
from peers import ExporterPeer, Peer, short

from jumpstarter.common.enums import ExporterStatus


@dataclass
class RouterProcess:
    """A router that runs. log: what it says."""

    process: subprocess.Popen[str]
    endpoint: str
    config: Path
    log: Path

    def kill(self) -> None:
        """As a crash would."""
        self.process.kill()
        self.process.wait()

    def memory(self) -> int:
        """Resident bytes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("the router has gone")


def router_config(lab: LabFiles, name: str, /, **settings: Any) -> Path:
    """The files of a router that may attach."""
    token = lab.folder / f"{name}.token"
    run_cli("admin", "create", "router", name, "--config", lab.config, "--save", token)
    data = {
        "apiVersion": "jumpstarter.lab/v1alpha1",
        "kind": "RouterConfig",
        "name": name,
        "listen": "127.0.0.1:0",
        "controllers": [lab.endpoint],
        "token": token.name,
        "tls": {"certificate": "server.crt", "key": "server.key", "ca": "ca.crt"},
        **settings,
    }
    path = lab.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@contextmanager
def running(config: Path) -> Iterator[RouterProcess]:
    """Context: a router as a process."""
    argv = [sys.executable, "-m", "jumpstarter_controller", "serve", "--role", "router", "--config", config]
    path = config.with_suffix(".log")
    with path.open("a") as log, subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("READY "), path.read_text()
            yield RouterProcess(process, json.loads(line.removeprefix("READY "))["endpoint"], config, path)
        finally:
            process.kill()


@contextmanager
def attached(lab: LabFiles, name: str, **settings: Any) -> Iterator[RouterProcess]:
    """Context: a router that has attached to the running controller."""
    seen = attachments(lab, name)
    with running(router_config(lab, name, **settings)) as router:
        wait_for_attachment(lab, name, seen)
        yield router


def attachments(lab: LabFiles, name: str) -> int:
    """How often a router has attached."""
    return sum(is_attachment(entry, name) for entry in lab.audit())


def is_attachment(entry: dict[str, Any], name: str) -> bool:
    return bool(entry["action"] == "router attached" and entry["actor"] == f"router default/{name}")


def wait_for_attachment(lab: LabFiles, name: str, seen: int) -> None:
    """Return when the router has attached more often than ``seen``."""
    lab.wait_for_audit(lambda _: attachments(lab, name) > seen)


def wait_for_detachment(lab: LabFiles, name: str) -> None:
    """Return when the controller knows that the router is gone."""
    lab.wait_for_audit(lambda e: e["action"] == "router detached" and e["actor"] == f"router default/{name}")


def pin(lab: LabFiles) -> None:
    """Let the controller, which has not started yet, serve on the same port whenever it does."""
    data = yaml.safe_load(lab.config.read_text())
    lab.config.write_text(yaml.safe_dump({**data, "listen": f"127.0.0.1:{reserved_port()}"}))


@asynccontextmanager
async def people(lab: LabFiles, *, clients: int = 1, labels: str = "board=x") -> AsyncIterator[Any]:
    """An exporter e0 and clients c0.. of the controller that runs: (exporter, clients)."""
    options = [word for label in labels.split(",") for word in ("-l", label)]
    exporter = ExporterPeer(lab, lab.exporter("e0", *options))
    others = [Peer(lab, lab.client(f"c{i}"), "Client") for i in range(clients)]
    try:
        await exporter.start()
        yield exporter, others
    finally:
        for peer in [exporter, *others]:
            await peer.close()


async def leased(exporter: ExporterPeer, client: Peer) -> tuple[str, Any]:
    """A lease that is ready to be dialed, and the exporter's Listen call."""
    name = short((await client.lease()).name)
    assert (await exporter.next()).lease_name == name
    listen = exporter.listen(name)
    await exporter.status(ExporterStatus.LEASE_READY)
    return name, listen


async def dial(client: Peer, name: str, listen: Any) -> tuple[str, str, str]:
    """A new tunnel: (endpoint, the client's token, the exporter's)."""
    near = await client.call("Dial", lease_name=name)
    async with asyncio.timeout(60):
        far = await listen.read()
    assert near.router_endpoint == far.router_endpoint
    return near.router_endpoint, near.router_token, far.router_token


@asynccontextmanager
async def tunnel(exporter: ExporterPeer, client: Peer, name: str, listen: Any) -> AsyncIterator[tuple[str, Any, Any]]:
    """A tunnel through which a byte has gone each way: (endpoint, the client's call, the exporter's)."""
    endpoint, mine, theirs = await dial(client, name, listen)
    async with client.tunnel(mine, endpoint) as near, exporter.tunnel(theirs, endpoint) as far:
        await echo(near, far)
        yield endpoint, near, far


async def echo(near: Any, far: Any) -> None:
    """A byte each way."""
    for a, b in ((near, far), (far, near)):
        await a.write(b"\x0a\x01x")
        async with asyncio.timeout(60):
            assert await b.read() == b"\x0a\x01x"


async def ended(call: Any) -> tuple[str, str]:
    """Code and text that a tunnel ends with."""
    try:
        async with asyncio.timeout(60):
            while await call.read() is not EOF:
                pass
    except AioRpcError as error:
        return error.code().name, error.details() or ""
    return (await call.code()).name, await call.details()
