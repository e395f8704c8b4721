# SPDX-License-Identifier: Apache-2.0
"""A controller as a process, exporters in this process or as `jmp run`, and clients made of the wire's stubs."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import yaml
from controller_harness import LabFiles, reserved_port
from peers import Peer, short

from jumpstarter.client.aio import connect
from jumpstarter.common.enums import ExporterStatus
from jumpstarter.config.exporter import ExporterConfigV1Alpha1
from jumpstarter.config.tls import TLSConfigV1Alpha1
from jumpstarter.exporter.exporter import Exporter
from jumpstarter.streams.sockets import SocketStream
from jumpstarter.streams.tunnel import Routers, bridge_tunnel

BIN = Path(sys.executable).parent
POWER = "jumpstarter_driver_power.driver.MockPower"
PATIENCE = 30.0
_NUMBERS = itertools.count()


def run(body: Callable[[], Coroutine[Any, Any, None]], seconds: float = 120) -> None:
    """Run an asynchronous test."""

    async def limited() -> None:
        async with asyncio.timeout(seconds):
            await body()

    asyncio.run(limited())


async def until(condition: Callable[[], Any], what: str = "") -> Any:
    """Wait for something that is true."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"it did not come: {what or condition}"
        await asyncio.sleep(0.02)
    return value


@dataclass
class Place:
    """A directory with a lab in it. `controller` runs its controller, always at the same address."""

    directory: Path
    lab: LabFiles

    @classmethod
    def make(cls, directory: Path) -> Place:
        port = reserved_port()
        lab = LabFiles.make(directory / "lab", listen=f"127.0.0.1:{port}")
        lab.endpoint = f"127.0.0.1:{port}"
        return cls(directory, lab)

    def exporter(self, name: str = "board", export: dict[str, Any] | None = None, **settings: Any) -> Path:
        """Make an exporter with a power driver; its configuration file."""
        path = self.lab.exporter(name, "-l", "board=x", export=export or {"power": {"type": POWER}})
        data = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump({**data, **settings}))
        return path

    @contextmanager
    def controller(self, **env: str) -> Iterator[Controller]:
        """The controller as a process."""
        controller = Controller(self.lab, env)
        try:
            controller.start()
            yield controller
        finally:
            controller.kill()

    @asynccontextmanager
    async def client(self, name: str = "alice") -> AsyncIterator[Peer]:
        """A client, made when there is none of that name."""
        path = self.lab.folder / f"client-{name}.yaml"
        peer = Peer(self.lab, path if path.exists() else self.lab.client(name), "Client")
        try:
            yield peer
        finally:
            await peer.close()

    @asynccontextmanager
    async def serving(self, config: Path, **options: Any) -> AsyncIterator[tuple[Exporter, asyncio.Task[int]]]:
        """An exporter in this process, stopped at the end."""
        exporter = Exporter(ExporterConfigV1Alpha1.load_path(config), **options)
        task = asyncio.create_task(exporter.serve())
        try:
            yield exporter, task
            exporter.stop()
            async with asyncio.timeout(PATIENCE):
                await asyncio.wait([task])
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class Controller:
    """`jumpstarter-controller serve`, which a test may kill and start again."""

    def __init__(self, lab: LabFiles, env: dict[str, str]) -> None:
        self._lab = lab
        self._env = {**os.environ, **env}
        self._argv = [sys.executable, "-m", "jumpstarter_controller", "serve", "--config", str(lab.config)]
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it; returns when it is ready."""
        with (self._lab.folder / "controller.log").open("a") as log:
            self._process = subprocess.Popen(self._argv, stdout=subprocess.PIPE, stderr=log, text=True, env=self._env)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("READY "), (self._lab.folder / "controller.log").read_text()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


class Wire:
    """A TCP relay in front of the controller, which a test may cut and mend."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._server: asyncio.Server | None = None
        self._pairs: set[asyncio.Task[None]] = set()
        self.endpoint = ""

    async def mend(self) -> None:
        """Carry connections, at the same address as before."""
        port = int(self.endpoint.rpartition(":")[2]) if self.endpoint else 0
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", port)
        self.endpoint = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def cut(self) -> None:
        """Break every connection, and take no new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for pair in self._pairs:
            pair.cancel()
        await asyncio.gather(*self._pairs, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pairs.add(task)
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            try:
                ways = [_copy(reader, far_writer), _copy(far_reader, writer)]
                copying = [asyncio.create_task(way) for way in ways]
                try:
                    await asyncio.wait(copying, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for each in copying:
                        each.cancel()
                    await asyncio.gather(*copying, return_exceptions=True)
            finally:
                far_writer.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass  # that is what this is for
        finally:
            writer.transport.abort()
            self._pairs.discard(task)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def wire(place: Place, config: Path) -> AsyncIterator[Wire]:
    """Put a relay between an exporter and its controller."""
    relay = Wire(place.lab.endpoint)
    await relay.mend()
    data = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({**data, "endpoint": relay.endpoint}))
    try:
        yield relay
    finally:
        await relay.cut()


async def leased(peer: Peer, selector: str = "board=x", **fields: Any) -> str:
    """Make a lease; its name, as soon as it has an exporter."""
    name = short((await peer.lease(selector, **fields)).name)
    deadline = time.monotonic() + PATIENCE
    while not (await lease(peer, name)).exporter:
        assert time.monotonic() < deadline, await lease(peer, name)
        await asyncio.sleep(0.05)
    return name


async def lease(peer: Peer, name: str) -> Any:
    """The lease as the controller knows it."""
    return await peer.ask("GetLease", name=f"namespaces/default/leases/{name}")


async def released(peer: Peer, name: str) -> None:
    """Give a lease back."""
    await peer.ask("DeleteLease", name=f"namespaces/default/leases/{name}")


@asynccontextmanager
async def reached(peer: Peer, name: str, directory: Path) -> AsyncIterator[Any]:
    """A connection to the exporter of a lease, through the controller's router. Each connection dials anew."""
    path = directory / f"dial-{next(_NUMBERS)}.sock"
    tunnels: set[asyncio.Task[None]] = set()

    async def tunnel(near: socket.socket, routers: Routers) -> None:
        stream = SocketStream(near)
        try:
            dial = await peer.call("Dial", lease_name=name)
            await bridge_tunnel(stream, dial.router_endpoint, dial.router_token, routers=routers)
        except Exception as error:  # noqa: BLE001 (the connection ends, which the test sees)
            print("tunnel:", error)
            await stream.aclose()

    async def accept(listener: socket.socket, routers: Routers) -> None:
        while True:
            near, _ = await asyncio.get_running_loop().sock_accept(listener)
            task = asyncio.create_task(tunnel(near, routers))
            tunnels.add(task)
            task.add_done_callback(tunnels.discard)

    tls = TLSConfigV1Alpha1(ca=base64.b64encode(peer.lab.ca).decode())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.setblocking(False)
        listener.bind(str(path))
        listener.listen()
        async with Routers(tls) as routers:
            accepting = asyncio.create_task(accept(listener, routers))
            try:
                async with connect(str(path)) as session:
                    yield session
            finally:
                path.unlink()
                accepting.cancel()
                for task in tunnels:
                    task.cancel()
                await asyncio.gather(accepting, *tunnels, return_exceptions=True)


async def ready(session: Any) -> None:
    """Wait until driver calls are taken."""
    deadline = time.monotonic() + PATIENCE
    while (status := (await session.status())[0]) is not ExporterStatus.LEASE_READY:
        assert time.monotonic() < deadline, status
        await asyncio.sleep(0.02)


async def status_of(peer: Peer, name: str = "board") -> tuple[ExporterStatus, str]:
    """An exporter's status, as the controller knows it."""
    exporter = await peer.ask("GetExporter", name=f"namespaces/default/exporters/{name}")
    return ExporterStatus.from_proto(exporter.status), exporter.status_message


async def known_as(peer: Peer, wanted: ExporterStatus, name: str = "board") -> str:
    """Wait until the controller knows this status; its message. Outages of the controller are lived through."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            status, message = await status_of(peer, name)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error
            status, message = None, error.details()
        if status is wanted:
            return message
        assert time.monotonic() < deadline, (status, message)
        await asyncio.sleep(0.05)


class JmpRun:
    """`jmp run` as a process, and what it logs."""

    def __init__(self, *args: str | Path, **env: str) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()
        if "PYTHONPATH" in env:
            env["PYTHONPATH"] = os.pathsep.join([env["PYTHONPATH"], os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [BIN / "jmp", "--log-format", "text", "run", *args],
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()

    def wait_for(self, pattern: str, times: int = 1) -> re.Match[str]:
        """The line that matches, when it is there so many times."""
        deadline = time.monotonic() + PATIENCE
        with self._changed:
            while True:
                found = [match for line in self.lines if (match := re.search(pattern, line))]
                if len(found) >= times:
                    return found[times - 1]
                left = deadline - time.monotonic()
                assert left > 0, f"no {pattern!r} in:\n" + "\n".join(self.lines)
                self._changed.wait(left)

    def worker(self) -> int:
        """Process id of the exporter process below."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        assert len(children) == 1, children
        return int(children[0])

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """The exit code, when it has ended."""
        code = self.process.wait(PATIENCE)
        self._reader.join(5)
        return code


@contextmanager
def jmp_run(*args: str | Path, **env: str) -> Iterator[JmpRun]:
    """`jmp run` with these options, which the test may end; killed, with its child, when the test fails."""
    running = JmpRun(*args, **env)
    try:
        yield running
        if running.process.poll() is None:
            running.end()
    finally:
        if running.process.poll() is None:
            children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text().split()
            running.process.kill()
            for child in children:
                os.kill(int(child), signal.SIGKILL)
            running.process.wait()
        running._reader.join(5)
        print("\n".join(running.lines))  # shown by pytest when the test fails
        if running.process.stderr is not None:
            running.process.stderr.close()
