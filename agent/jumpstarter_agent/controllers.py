# SPDX-License-Identifier: Apache-2.0
"""Connections to controllers: one per client configuration, shared by all hosts of the run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from .errors import AgentError, as_controller_error

__all__ = ["ClientRef", "Controllers"]

log = logging.getLogger(__name__)

_CLOSE_SECONDS = 1.0


@dataclass(frozen=True)
class ClientRef:
    """Which client configuration to use: an alias, a file (absolute path), or neither: what `jmp` itself would use."""

    alias: str | None = None
    config: str | None = None

    def __str__(self) -> str:
        if self.config is not None:
            return f"client configuration {self.config}"
        return f"client {self.alias}" if self.alias is not None else "the current client"


class Controllers:
    """Open connections to controllers. Each lives in a task of its own until `aclose`."""

    def __init__(self) -> None:
        self._open: dict[tuple[Any, ...], asyncio.Task[None]] = {}
        self._values: dict[tuple[Any, ...], asyncio.Future[Any]] = {}
        self._closing = asyncio.Event()

    async def get(self, ref: ClientRef) -> Any:
        """The `jumpstarter.client.controller.ControllerClient` of a configuration; `AgentError` when there is none."""
        return await self._get("client", ref, _client_connection)

    async def admin(self, ref: ClientRef) -> Any:
        """The `jumpstarter.client.admin.AdminClient` of a configuration; `AgentError` when there is none."""
        return await self._get("admin", ref, _admin_connection)

    async def aclose(self) -> None:
        """Close all connections; what does not end in a second is cancelled."""
        self._closing.set()
        tasks = list(self._open.values())
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=_CLOSE_SECONDS)
            for task in stuck:
                task.cancel()

    async def _get(self, kind: str, ref: ClientRef, connect: Callable[[Any], AbstractAsyncContextManager[Any]]) -> Any:
        if self._closing.is_set():
            raise AgentError("canceled", "the agent is ending")
        config = load_config(ref)
        # A configuration that names somebody else now is another connection. A new token is a reason for
        # administrators only, who may just have replaced it: other clients read it again when the old one is refused.
        token = config.token if kind == "admin" else None
        key = (kind, ref, config.endpoint, config.metadata.namespace, config.metadata.name, token)
        value = self._values.get(key)
        if value is None:
            value = self._values[key] = asyncio.get_running_loop().create_future()
            self._open[key] = asyncio.create_task(self._keep(key, connect(config), value), name=f"controller for {ref}")
        return await asyncio.shield(value)

    async def _keep(
        self, key: tuple[Any, ...], connection: AbstractAsyncContextManager[Any], value: asyncio.Future[Any]
    ) -> None:
        # Opened and closed in one task: whatever scopes the connection has inside belong to it.
        try:
            async with connection as client:
                value.set_result(client)
                await self._closing.wait()
        except asyncio.CancelledError:
            value.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - whoever asked for the connection gets it
            if value.done():
                log.warning("closing the connection to a controller: %s", as_controller_error(error).message)
            else:
                value.set_exception(as_controller_error(error))
                # Read here as well: the one who asked may have been cancelled meanwhile.
                value.exception()
        finally:
            self._open.pop(key, None)
            self._values.pop(key, None)


def load_config(ref: ClientRef) -> Any:
    """The `ClientConfigV1Alpha1` that `ref` names. `AgentError` "invalid" or "not_found" says what to do."""
    from jumpstarter.config.client import ClientConfigV1Alpha1

    try:
        config = ClientConfigV1Alpha1.resolve(ref.alias, ref.config)
    except Exception as error:
        raise as_controller_error(error) from error
    if config is None:
        raise AgentError(
            "invalid",
            "no client configuration says which controller to ask: set jumpstarter_client_config (a file) or "
            "jumpstarter_client (an alias), or make one the current one (`jmp login`, `jmp config client use`)",
        )
    return config


@asynccontextmanager
async def _client_connection(config: Any) -> AsyncIterator[Any]:
    from jumpstarter.client.controller import connect_controller

    async with connect_controller(config) as client:
        yield client


@asynccontextmanager
async def _admin_connection(config: Any) -> AsyncIterator[Any]:
    from jumpstarter.client.admin import connect_admin

    async with connect_admin(config) as client:
        yield client
