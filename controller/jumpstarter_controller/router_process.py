# SPDX-License-Identifier: Apache-2.0
"""A router that runs apart from the controller: `jumpstarter-controller serve --role router`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from jumpstarter.common.grpc import server_options, stop_server
from jumpstarter_controller.health import Health
from jumpstarter_controller.router import Router, router_handler
from jumpstarter_controller.router_config import RouterConfig
from jumpstarter_controller.router_link import RouterLink
from jumpstarter_controller.services.binding import Calls
from jumpstarter_controller.serving import Certificate, bind

__all__ = ["RunningRouter", "running_router"]

logger = logging.getLogger(__name__)

#: Seconds that tunnels get to end by themselves when the router stops.
_GRACE = 0.5


@dataclass(frozen=True)
class RunningRouter:
    """What runs. address: host:port that it is bound to; endpoint: the one that it tells others."""

    address: str
    endpoint: str
    router: Router


@asynccontextmanager
async def running_router(path: Path) -> AsyncIterator[RunningRouter]:
    """Context in which a router serves, attached to a controller or trying to be.

    Raises ConfigurationError for what cannot be read or bound.
    """
    config = RouterConfig.load(path)
    config.read_token()  # a file that is missing is said now, not when the link needs it
    server, calls = grpc.aio.server(options=server_options()), Calls()
    address = bind(server, config.listen, Certificate(config.tls.certificate, config.tls.key).credentials())
    endpoint = config.endpoint or address
    link = RouterLink(config, endpoint)
    router = Router(link.key, link.guard, link.clock)
    server.add_generic_rpc_handlers((router_handler(router, calls.guarded),))
    health = Health([], ["jumpstarter.v1.RouterService"])
    health.add_to(server)
    told = asyncio.create_task(health.follow())
    await server.start()
    attached = asyncio.create_task(link.run(router.instance), name="router link")
    attached.add_done_callback(_failed)
    try:
        yield RunningRouter(address, endpoint, router)
    finally:
        await health.ends()
        await stop_server(server, _GRACE)
        await calls.ended()
        for task in (attached, told):
            task.cancel()
        await asyncio.gather(attached, told, return_exceptions=True)


def _failed(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.critical("the router cannot attach any more", exc_info=error)
