# SPDX-License-Identifier: Apache-2.0
"""grpc.health.v1: what this process can do now, service by service."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from grpc_health.v1 import health, health_pb2, health_pb2_grpc

__all__ = ["Health"]

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """The health of some services. needing: those that can do nothing without the database; "" is the whole."""

    def __init__(self, needing: Iterable[str], others: Iterable[str] = ()) -> None:
        self._needing = ["", *needing]
        self._others = list(others)
        self._servicer = health.aio.HealthServicer()
        self._down = False
        self._changed = asyncio.Event()

    def serving(self) -> bool:
        """Whether the whole can serve."""
        return not self._down

    def add_to(self, server: Any) -> None:
        """Answer on this server."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    def database_down(self, down: bool) -> None:
        """The database has gone, or is back."""
        self._down = down
        self._changed.set()

    async def follow(self) -> None:
        """Say what is so, until cancelled."""
        while True:
            self._changed.clear()
            for name in self._others:
                await self._servicer.set(name, _SERVING)
            for name in self._needing:
                await self._servicer.set(name, _NOT_SERVING if self._down else _SERVING)
            await self._changed.wait()

    async def ends(self) -> None:
        """From now on nothing is served."""
        await self._servicer.enter_graceful_shutdown()
