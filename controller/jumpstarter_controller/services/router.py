# SPDX-License-Identifier: Apache-2.0
"""jumpstarter.lab.v1.RouterControlService: routers that run apart attach here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from jumpstarter_controller import routers
from jumpstarter_controller.errors import Refused, failed_precondition, invalid, permission_denied
from jumpstarter_controller.identity import IDENTITY_TOPIC, Caller, Identity, public_keys
from jumpstarter_controller.services.credentials import authenticate
from jumpstarter_controller.services.messages import time_message
from jumpstarter_controller.state.database import Database
from jumpstarter_controller.tunnels import TunnelOwner, lease_lost
from jumpstarter_protocol.jumpstarter.lab.v1 import controller_pb2

__all__ = ["RouterControlService"]

logger = logging.getLogger(__name__)


class RouterControlService:
    """The service."""

    def __init__(self, database: Database, identity: Identity) -> None:
        self._database = database
        self._identity = identity
        self._stopping = False

    def stop(self) -> None:
        """This controller ends: routers that lose their stream now are not gone, they will come back."""
        self._stopping = True

    async def attach(self, reports: AsyncIterator[controller_pb2.RouterReport], context: Any) -> None:
        """A router, from its Hello until the stream breaks."""
        caller = await authenticate(self._identity, context, "router")
        hello = await _hello(reports, caller)
        attachment = await self._database.write(
            routers.attach,
            caller,
            routers.Hello(hello.endpoint, hello.instance, dict(hello.labels), hello.weight, len(hello.tunnels)),
        )
        logger.info("%s attached: %s, %d tunnels", caller, hello.endpoint, len(hello.tunnels))
        session = _Session(self._database, caller, attachment, context)
        try:
            await session.run(hello, reports)
        finally:
            if not self._stopping and await self._database.patient_write(routers.detach, caller, attachment):
                logger.warning("%s is gone", caller)


async def _hello(reports: AsyncIterator[controller_pb2.RouterReport], caller: Caller) -> Any:
    first = await anext(reports, None)
    if first is None or first.WhichOneof("report") != "hello":
        raise invalid("the first report of a router must be its Hello")
    hello = first.hello
    if not hello.endpoint or not hello.instance:
        raise invalid("a router's Hello must name its endpoint and instance")
    if hello.name != caller.name:
        raise permission_denied(f'permission denied: the token of {caller} is shown by a router named "{hello.name}"')
    return hello


class _Session:
    """One attachment: reports in, commands out."""

    def __init__(self, database: Database, caller: Caller, attachment: str, context: Any) -> None:
        self._database = database
        self._caller = caller
        self._attachment = attachment
        self._context = context
        self._keys: dict[str, str] = {}
        self._commands: asyncio.Queue[controller_pb2.RouterCommand] = asyncio.Queue()
        self._tunnels: dict[str, asyncio.Task[None]] = {}

    async def run(self, hello: Any, reports: AsyncIterator[controller_pb2.RouterReport]) -> None:
        """Serve until the router ends the stream. Raises `Refused`."""
        with self._database.bus.subscribe(IDENTITY_TOPIC) as identities:
            await self._tell_keys()
            for tunnel in hello.tunnels:
                self._opened(tunnel)
            work = [
                asyncio.create_task(self._read(reports)),
                asyncio.create_task(self._write()),
                asyncio.create_task(self._watch(identities)),
            ]
            try:
                done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in (rest := [*work, *self._tunnels.values()]):
                    task.cancel()
                await asyncio.gather(*rest, return_exceptions=True)

    async def _read(self, reports: AsyncIterator[controller_pb2.RouterReport]) -> None:
        async for report in reports:
            match report.WhichOneof("report"):
                case "load":
                    await self._database.patient_write(
                        routers.seen, self._caller, self._attachment, report.load.tunnels
                    )
                    await self._tell_keys()
                case "opened":
                    self._opened(report.opened)
                case "closed":
                    if (task := self._tunnels.pop(report.closed.stream, None)) is not None:
                        task.cancel()
                case "hello":
                    raise failed_precondition("a router says Hello once, as its first report")
                case _:
                    pass  # of a later version

    async def _write(self) -> None:
        while True:
            await self._context.write(await self._commands.get())

    async def _watch(self, identities: Any) -> None:
        """Keys may have come or gone."""
        while True:
            await identities.changed()
            await self._tell_keys()

    async def _tell_keys(self) -> None:
        keys = await self._database.patient_read(public_keys)
        if keys != self._keys:
            self._keys = keys
            told = controller_pb2.RouterCommand.Keys(pem=keys, now=time_message(self._database.clock()))
            self._commands.put_nowait(controller_pb2.RouterCommand(keys=told))

    def _opened(self, tunnel: controller_pb2.Tunnel) -> None:
        if tunnel.stream not in self._tunnels:
            self._tunnels[tunnel.stream] = asyncio.create_task(self._guard(tunnel))

    async def _guard(self, tunnel: controller_pb2.Tunnel) -> None:
        refused: Refused = await lease_lost(
            self._database, TunnelOwner(tunnel.namespace, tunnel.lease, tunnel.client_id)
        )
        close = controller_pb2.RouterCommand.Close(
            streams=[tunnel.stream], code=refused.code.name, message=refused.message
        )
        self._commands.put_nowait(controller_pb2.RouterCommand(close=close))
