# SPDX-License-Identifier: Apache-2.0
"""What ties a router that runs apart to a controller: keys come, tunnels are reported, and closed when told.

While no controller answers, the router goes on with the keys and the tunnels that it has.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import grpc

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.common.grpc import channel_options
from jumpstarter_controller.errors import Refused
from jumpstarter_controller.identity.dial import Ticket
from jumpstarter_controller.router_config import RouterConfig
from jumpstarter_protocol.jumpstarter.lab.v1 import controller_pb2, controller_pb2_grpc

__all__ = ["RouterLink"]

logger = logging.getLogger(__name__)

#: Seconds between two reports of the load.
_REPORT = 10.0
#: Seconds that a token with an unknown key waits for the controller to send that key.
_KEY_WAIT = 5.0
#: Seconds between two questions for keys at least.
_ASK = 0.5
_NOT_TRUSTED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
#: Seconds before the next controller is tried, the first time and at most.
_RETRY, _MAX_RETRY = 0.1, 5.0


@dataclass
class _Tunnel:
    message: controller_pb2.Tunnel
    closed: asyncio.Future[Refused] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class RouterLink:
    """Attaches to one of the controllers, again and again. `key` and `guard` are what the router asks."""

    def __init__(self, config: RouterConfig, endpoint: str) -> None:
        self._config = config
        self._endpoint = endpoint
        self._keys: dict[str, str] = {}
        self._got_keys = asyncio.Condition()
        #: What time it was for the controller, and for this machine's monotonic clock, when it last said so.
        self._synchronized: tuple[float, float] | None = None
        #: When it asked for keys (time of the event loop).
        self._asked = float("-inf")
        self._tunnels: dict[str, _Tunnel] = {}
        #: Reports for the controller that it is attached to; None while it is to none.
        self._outbox: asyncio.Queue[controller_pb2.RouterReport] | None = None

    # --- for the router -----------------------------------------------------------------------------------------

    async def key(self, kid: str) -> str | None:
        """The public key with this id. One that is not known yet is asked for."""
        if kid not in self._keys:
            self._ask()
            try:
                async with asyncio.timeout(_KEY_WAIT), self._got_keys:
                    await self._got_keys.wait_for(lambda: kid in self._keys)
            except TimeoutError:
                return None
        return self._keys.get(kid)

    def clock(self) -> float:
        """Seconds since 1970 by the controller's clock: this machine's own may be minutes off."""
        if self._synchronized is None:
            return time.time()
        then, at = self._synchronized
        return then + time.monotonic() - at

    def _ask(self) -> None:
        """Let the controller look whether there are new keys. Callers with made-up tokens must not keep it busy."""
        now = asyncio.get_running_loop().time()
        if now - self._asked >= _ASK:
            self._asked = now
            self._report(self._load())

    async def guard(self, ticket: Ticket) -> Refused:
        """Report a tunnel; return when the controller wants it closed."""
        tunnel = _Tunnel(
            controller_pb2.Tunnel(
                stream=ticket.stream, namespace=ticket.namespace, lease=ticket.lease, client_id=ticket.client_id
            )
        )
        self._tunnels[ticket.stream] = tunnel
        self._report(controller_pb2.RouterReport(opened=tunnel.message))
        try:
            return await tunnel.closed
        finally:
            del self._tunnels[ticket.stream]
            self._report(controller_pb2.RouterReport(closed=tunnel.message))

    def _report(self, report: controller_pb2.RouterReport) -> None:
        if self._outbox is not None:
            self._outbox.put_nowait(report)

    def _load(self) -> controller_pb2.RouterReport:
        return controller_pb2.RouterReport(load=controller_pb2.RouterReport.Load(tunnels=len(self._tunnels)))

    # --- to the controller --------------------------------------------------------------------------------------

    async def run(self, instance: str) -> None:
        """Stay attached, forever."""
        wait, complaint = _RETRY, ""
        for controller in cycle(self._config.controllers):
            attached = False

            def welcome(controller: str = controller) -> None:
                nonlocal attached
                attached = True
                logger.info("attached to controller %s", controller)

            try:
                await self._attach(controller, instance, welcome)
                reason = f"controller {controller} has ended the stream"
            except grpc.aio.AioRpcError as error:
                reason = f"controller {controller}: {error.code().name}: {error.details()}"
                if error.code() in _NOT_TRUSTED:
                    # Nobody says any more which keys have been retired.
                    self._keys = {}
            except ConfigurationError as error:
                reason = str(error)
            finally:
                self._outbox = None
            if attached:
                wait, complaint = _RETRY, ""
            if reason != complaint:
                logger.warning("not attached: %s; the tunnels stay", reason)
                complaint = reason
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(wait * 2, _MAX_RETRY)

    async def _attach(self, controller: str, instance: str, welcome: Callable[[], None]) -> None:
        credentials = grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(self._ca()), grpc.access_token_call_credentials(self._config.read_token())
        )
        # Of its own, or gRPC would wait on after the failures of the attempts before.
        options = channel_options({"grpc.use_local_subchannel_pool": 1})
        async with grpc.aio.secure_channel(controller, credentials, options=options) as channel:
            metadata = (("jumpstarter-kind", "Router"), ("jumpstarter-name", self._config.name))
            call = controller_pb2_grpc.RouterControlServiceStub(channel).Attach(metadata=metadata)
            outbox: asyncio.Queue[controller_pb2.RouterReport] = asyncio.Queue()
            self._outbox = outbox
            outbox.put_nowait(self._hello(instance))  # what happens from now on comes behind it
            work = [
                asyncio.create_task(job) for job in (self._send(call, outbox), self._tick(), self._read(call, welcome))
            ]
            try:
                done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
                call.cancel()
                for task in done:
                    task.result()
            finally:
                call.cancel()
                for task in work:
                    task.cancel()
                await asyncio.gather(*work, return_exceptions=True)

    def _ca(self) -> bytes:
        try:
            return self._config.tls.ca.read_bytes()
        except OSError as error:
            raise ConfigurationError(
                f"TLS CA {self._config.tls.ca} cannot be read: {error.strerror or error}"
            ) from error

    def _hello(self, instance: str) -> controller_pb2.RouterReport:
        hello = controller_pb2.RouterReport.Hello(
            name=self._config.name,
            endpoint=self._endpoint,
            labels=self._config.labels,
            tunnels=[tunnel.message for tunnel in self._tunnels.values()],
            instance=instance,
            weight=self._config.weight,
        )
        return controller_pb2.RouterReport(hello=hello)

    async def _send(self, call: Any, outbox: asyncio.Queue[controller_pb2.RouterReport]) -> None:
        while True:
            report = await outbox.get()
            try:
                await call.write(report)
            except asyncio.InvalidStateError:
                await call.code()  # the stream has ended; the reader has the reason
                return

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_REPORT)
            self._report(self._load())

    async def _read(self, call: Any, welcome: Callable[[], None]) -> None:
        async for command in call:
            match command.WhichOneof("command"):
                case "keys":
                    async with self._got_keys:
                        self._keys = dict(command.keys.pem)
                        if command.keys.HasField("now"):
                            self._synchronized = (command.keys.now.ToNanoseconds() / 1e9, time.monotonic())
                        self._got_keys.notify_all()
                    logger.info("%d signing keys are accepted", len(self._keys))
                    welcome()
                case "close":
                    self._close(command.close)
                case _:
                    pass  # of a later version

    def _close(self, close: Any) -> None:
        code = grpc.StatusCode.__members__.get(close.code, grpc.StatusCode.ABORTED)
        for stream in close.streams:
            tunnel = self._tunnels.get(stream)
            if tunnel is not None and not tunnel.closed.done():
                tunnel.closed.set_result(Refused(code, close.message))
