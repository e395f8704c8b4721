# SPDX-License-Identifier: Apache-2.0
"""A leased exporter, for programs: `Lease`, what ``config.lease(...)`` gives, in blocking code and in an event loop.

with config.lease(selector="board=rpi4") as lease, lease.connect() as client:
    client.power.on()
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from jumpstarter.client.controller import ControllerClient, connect_controller
from jumpstarter.client.lease import HeldLease, hold_lease
from jumpstarter.client.records import LeaseInfo, LeaseWish
from jumpstarter.common.exceptions import ArgumentError, ConnectionError, ControllerError
from jumpstarter.common.runtime import runtime_directory
from jumpstarter.config import env

if TYPE_CHECKING:
    from jumpstarter.config.client import ClientConfigV1Alpha1

__all__ = ["Lease", "Seconds", "lease", "lease_async", "seconds"]

Seconds = float | timedelta

_HALF_AN_HOUR = 1800.0


def seconds(value: Seconds | None) -> float | None:
    """A span of time in seconds."""
    return value.total_seconds() if isinstance(value, timedelta) else value


class Lease:
    """A lease that is held.

    Methods whose names end in ``_async`` are for code in the event loop that holds it, the others for every other
    thread. name: of the lease. exporter_name, exporter_labels: of the exporter that it holds.
    """

    def __init__(
        self, held: HeldLease, labels: dict[str, str], config: ClientConfigV1Alpha1, portal: BlockingPortal
    ) -> None:
        self.held = held
        self.name = held.name
        self.exporter_labels = labels
        self.portal = portal
        self._config = config

    @property
    def exporter_name(self) -> str:
        """The exporter that it holds."""
        return self.held.info.exporter or ""

    @property
    def info(self) -> LeaseInfo:
        """The lease, as the controller told it last."""
        return self.held.info

    @property
    def lost(self) -> str | None:
        """Why it was lost, None while it is held."""
        return self.held.lost.result() if self.held.lost.done() else None

    @asynccontextmanager
    async def serve_unix_async(self) -> AsyncIterator[str]:
        """A unix socket that leads to the exporter, in a private directory. Raises as `HeldLease.serve_unix` does."""
        with runtime_directory() as directory:
            async with self.held.serve_unix(directory / "exporter.sock") as path:
                yield path

    @asynccontextmanager
    async def connect_async(self) -> AsyncIterator[Any]:
        """The client of the exporter's root driver."""
        from jumpstarter.client.client import client_from_path

        drivers = self._config.drivers
        async with self.serve_unix_async() as path:
            stack = ExitStack()
            async with client_from_path(path, self.portal, stack, drivers.allow, drivers.unsafe) as client:
                try:
                    yield client
                finally:
                    # What is on it uses the loop from another thread.
                    with anyio.CancelScope(shield=True):
                        await anyio.to_thread.run_sync(stack.close)

    async def extend_async(self, duration: Seconds) -> LeaseInfo:
        """Let it end so long from now. Raises LeaseError when that is refused."""
        return await self.held.extend(seconds(duration) or 0.0)

    async def release_async(self) -> None:
        """Give it back now."""
        await self.held.controller.delete_lease(self.name)

    @contextmanager
    def serve_unix(self) -> Iterator[str]:
        """As `serve_unix_async`."""
        with self.portal.wrap_async_context_manager(self.serve_unix_async()) as path:
            yield path

    @contextmanager
    def connect(self) -> Iterator[Any]:
        """As `connect_async`."""
        with self.portal.wrap_async_context_manager(self.connect_async()) as client:
            yield client

    def extend(self, duration: Seconds) -> LeaseInfo:
        """As `extend_async`."""
        return self.portal.call(self.extend_async, duration)

    def release(self) -> None:
        """As `release_async`."""
        self.portal.call(self.release_async)


@asynccontextmanager
async def lease_async(
    config: ClientConfigV1Alpha1,
    selector: str | None = None,
    exporter_name: str | None = None,
    lease_name: str | None = None,
    duration: Seconds | None = _HALF_AN_HOUR,
    portal: BlockingPortal | None = None,
    *,
    acquisition_timeout: float | None = None,
    dial_timeout: float | None = None,
    tags: dict[str, str] | None = None,
    context: dict[str, str] | None = None,
) -> AsyncIterator[Lease]:
    """See `ClientConfigV1Alpha1.lease_async`."""
    name = lease_name or os.environ.get(env.JMP_LEASE)
    if not (name or selector or exporter_name):
        raise ArgumentError(f"a lease needs a selector, the name of an exporter, or that of a lease ({env.JMP_LEASE})")
    wish: LeaseWish | str = name or LeaseWish(
        selector=selector or "",
        exporter_name=exporter_name,
        duration=seconds(duration),
        tags=tags or {},
        context=context or {},
    )
    async with AsyncExitStack() as stack:
        if portal is None:
            portal = await stack.enter_async_context(BlockingPortal())
        controller = await stack.enter_async_context(connect_controller(config))
        held = await stack.enter_async_context(
            hold_lease(
                controller,
                wish,
                acquisition_timeout=acquisition_timeout or config.leases.acquisition_timeout,
                dial_timeout=dial_timeout or config.leases.dial_timeout,
            )
        )
        yield Lease(held, await exporter_labels(controller, held), config, portal)


async def exporter_labels(controller: ControllerClient, held: HeldLease) -> dict[str, str]:
    """Labels of the exporter that a lease holds; empty when the controller does not tell."""
    if not held.info.exporter:
        return {}
    try:
        return (await controller.get_exporter(held.info.exporter)).labels
    except (ConnectionError, ControllerError):
        return {}  # a decoration: the lease is there, and its tunnel will tell what is wrong


@contextmanager
def lease(config: ClientConfigV1Alpha1, *args: Any, **kwargs: Any) -> Iterator[Lease]:
    """See `ClientConfigV1Alpha1.lease`."""
    with start_blocking_portal() as portal:
        kwargs["portal"] = portal
        with portal.wrap_async_context_manager(lease_async(config, *args, **kwargs)) as held:
            yield held
