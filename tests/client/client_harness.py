# SPDX-License-Identifier: Apache-2.0
"""Boards of a lab, as exporters on the wire: real drivers and real tunnels, with every step in the test's hand."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from controller_harness import LabFiles
from peers import ExporterPeer, controller

from jumpstarter.client.controller import ControllerClient, connect_controller
from jumpstarter.common.enums import ExporterStatus
from jumpstarter.common.exceptions import ConnectionError
from jumpstarter.config.client import ClientConfigV1Alpha1
from jumpstarter.config.tls import TLSConfigV1Alpha1
from jumpstarter.exporter.server import UnixListener, serve_session
from jumpstarter.exporter.session import Session
from jumpstarter.streams.sockets import connect_unix
from jumpstarter.streams.tunnel import bridge_tunnel
from jumpstarter_controller.server import RunningController
from jumpstarter_driver_composite.driver import Composite
from jumpstarter_driver_network.driver import EchoNetwork
from jumpstarter_driver_power.driver import MockPower


class Board:
    """An exporter that serves its leases: one session for each, tunnels to it for whoever dials.

    hook: awaited, with the session, instead of saying that a lease's session is ready. linger: waited for after a
    lease, before it is available again.
    """

    def __init__(self, peer: ExporterPeer, folder: Path) -> None:
        self.peer = peer
        self.session: Session | None = None
        self.tunnels: set[asyncio.Task[None]] = set()
        self.hook: Any = None
        self.linger: asyncio.Event | None = None
        self._folder = folder
        self._tls = TLSConfigV1Alpha1(ca=b64encode(peer.lab.ca).decode())
        self._task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return str(self.peer.name)

    async def start(self, *, serve: bool = True) -> None:
        """Register, and serve unless the test does that."""
        await self.peer.start()
        if serve:
            self._task = asyncio.create_task(self._serve())

    async def _serve(self) -> None:
        while True:
            told = await self.peer.told.get()
            if told.leased:
                async with self._leased(told.lease_name):
                    while (await self.peer.told.get()).leased:
                        pass
                if self.linger is not None:
                    await self.linger.wait()
                await self.peer.status(ExporterStatus.AVAILABLE)

    @asynccontextmanager
    async def _leased(self, lease: str) -> AsyncIterator[None]:
        root = Composite(children={"power": MockPower(), "echo": EchoNetwork()})
        address = str(self._folder / f"{self.name}.sock")
        with Session(root_device=root, name=self.name) as session:
            async with serve_session(session, UnixListener(address), grace=0.05):
                self.session = session
                listening = asyncio.create_task(self._listen(lease, address))
                preparing = asyncio.create_task(self._prepare(session))
                try:
                    yield
                finally:
                    for task in (listening, preparing, *self.tunnels):
                        task.cancel()
                    await asyncio.gather(listening, preparing, *self.tunnels, return_exceptions=True)

    async def _prepare(self, session: Session) -> None:
        if self.hook is not None:
            await self.hook(session)
        else:
            await self.set_status(ExporterStatus.LEASE_READY)

    async def set_status(self, status: ExporterStatus, message: str = "") -> None:
        """Tell client and controller."""
        assert self.session is not None
        self.session.update_status(status, message)
        await self.peer.status(status, message=message)

    async def _listen(self, lease: str, address: str) -> None:
        while True:
            try:
                async for message in self.peer.listen(lease):
                    task = asyncio.create_task(self._tunnel(message, address))
                    self.tunnels.add(task)
                    task.add_done_callback(self.tunnels.discard)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    return
            await asyncio.sleep(0.05)

    async def _tunnel(self, message: Any, address: str) -> None:
        try:
            stream = await connect_unix(address)
            await bridge_tunnel(stream, message.router_endpoint, message.router_token, tls=self._tls)
        except ConnectionError:
            pass  # the client, the router or the lease has gone

    async def close(self) -> None:
        """End it without a word."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.peer.close()


class Room:
    """A lab with boards e0.. (labels board=x, n=0..) and clients c0.. ."""

    def __init__(self, lab: LabFiles, folder: Path, stack: AsyncExitStack) -> None:
        self.lab = lab
        self.running: RunningController | None = None
        self.boards: list[Board] = []
        self._folder = folder
        self._stack = stack

    async def add_board(self, *, serve: bool = True) -> Board:
        """One more board."""
        number = len(self.boards)
        config = self.lab.exporter(f"e{number}", "-l", "board=x", "-l", f"n={number}")
        board = Board(ExporterPeer(self.lab, config), self._folder)
        self.boards.append(board)
        self._stack.push_async_callback(board.close)
        await board.start(serve=serve)
        return board

    async def turn_clock(self, seconds: float) -> None:
        """Turn the controller's clock forward; whatever is due then happens."""
        assert self.running is not None
        clock = self.running.database.clock
        self.running.database.clock = lambda: clock() + seconds
        await self.running.lab.change(lambda tx: None)

    def config(self, name: str, *options: str) -> ClientConfigV1Alpha1:
        """The configuration of a client, which is made, with these options, when it is new."""
        path = self.lab.folder / f"client-{name}.yaml"
        return ClientConfigV1Alpha1.from_file(path if path.is_file() else self.lab.client(name, *options))

    async def client(self, name: str = "c0", config: ClientConfigV1Alpha1 | None = None) -> ControllerClient:
        """A (new) client, connected."""
        return await self._stack.enter_async_context(connect_controller(config or self.config(name)))


@asynccontextmanager
async def room(lab: LabFiles, tmp_path: Path, *, boards: int = 1, serve: bool = True) -> AsyncIterator[Room]:
    """A controller in this process (unless the test serves one itself), and boards."""
    async with AsyncExitStack() as stack:
        found = Room(lab, tmp_path, stack)
        if serve:
            found.running = await stack.enter_async_context(controller(lab))
        for _ in range(boards):
            await found.add_board()
        yield found


async def until(condition: Callable[[], Any]) -> None:
    """Wait for something that is true."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)
