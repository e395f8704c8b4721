# SPDX-License-Identifier: Apache-2.0
"""The router: pairs the two ends of a tunnel and passes frames between them as the bytes they are.

Each end shows a dial token that is good once, for one role, for a minute. A message is read from one end when the other
has taken the one before, so that a slow reader slows the sender and nothing piles up here. The tunnel is closed when
its lease ends or gets another holder.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
from grpc.aio import EOF

from jumpstarter_controller.errors import Refused, permission_denied
from jumpstarter_controller.identity import Identity, Ticket
from jumpstarter_controller.leases.requests import find_lease
from jumpstarter_controller.leases.schedule import lease_topic
from jumpstarter_controller.services.credentials import bearer_token
from jumpstarter_controller.state.database import Database, Transaction

__all__ = ["Router"]

logger = logging.getLogger(__name__)


class _Tunnel:
    """One tunnel, from the first end that comes until both are gone."""

    def __init__(self, ticket: Ticket, context: Any) -> None:
        self.ticket = ticket
        self.first = context
        #: How it ended: None when both ends were done, else what they are told.
        self.outcome: asyncio.Future[Refused | None] = asyncio.get_running_loop().create_future()

    def end(self, reason: Refused | None) -> None:
        """End it, unless it has ended."""
        if not self.outcome.done():
            self.outcome.set_result(reason)


class Router:
    """RouterService of this controller."""

    def __init__(self, database: Database, identity: Identity) -> None:
        self._database = database
        self._identity = identity
        self._waiting: dict[str, _Tunnel] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._used: dict[str, float] = {}

    @property
    def open_tunnels(self) -> int:
        """Tunnels with both ends."""
        return len(self._running)

    async def stream(self, _: Any, context: Any) -> None:
        """One end of a tunnel. Raises `Refused`."""
        ticket = await self._identity.ticket(bearer_token(context))
        self._use(ticket)
        tunnel = self._waiting.get(ticket.stream)
        if tunnel is not None and tunnel.ticket.role == ticket.role:
            raise permission_denied(f"permission denied: the {ticket.role} end of this tunnel is taken")
        if tunnel is None:
            tunnel = self._waiting[ticket.stream] = _Tunnel(ticket, context)
            left = max(0.0, ticket.expires_at - self._database.clock())
            asyncio.get_running_loop().call_later(left, self._give_up, tunnel)
        else:
            del self._waiting[ticket.stream]
            task = asyncio.create_task(self._run(tunnel, context))
            self._running.add(task)
            task.add_done_callback(lambda task: self._ran(tunnel, task))
        try:
            outcome = await asyncio.shield(tunnel.outcome)
        except asyncio.CancelledError:
            tunnel.end(Refused(grpc.StatusCode.UNAVAILABLE, f"the {ticket.role} has gone"))
            raise
        finally:
            if self._waiting.get(ticket.stream) is tunnel:
                del self._waiting[ticket.stream]
        if outcome is not None:
            raise outcome

    def _give_up(self, tunnel: _Tunnel) -> None:
        if self._waiting.get(tunnel.ticket.stream) is tunnel:
            message = f"the other end of the tunnel of lease {tunnel.ticket.lease} did not come"
            tunnel.end(Refused(grpc.StatusCode.DEADLINE_EXCEEDED, message))

    def _use(self, ticket: Ticket) -> None:
        """Refuse a token that was shown before. They are remembered while they could be shown again."""
        now = self._database.clock()
        if ticket.jti in self._used:
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, "this dial token has been used already")
        for jti in [jti for jti, expires in self._used.items() if expires <= now]:
            del self._used[jti]
        self._used[ticket.jti] = ticket.expires_at

    def _ran(self, tunnel: _Tunnel, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("tunnel of lease %s failed", tunnel.ticket.lease, exc_info=error)
        tunnel.end(Refused(grpc.StatusCode.INTERNAL, "internal error in the router"))

    async def _run(self, tunnel: _Tunnel, second: Any) -> None:
        workers = [
            asyncio.create_task(_carry(tunnel.first, second)),
            asyncio.create_task(_carry(second, tunnel.first)),
        ]
        guard = asyncio.create_task(self._guard(tunnel))
        carried = asyncio.gather(*workers)
        try:
            ends: set[asyncio.Future[Any]] = {carried, guard, tunnel.outcome}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if carried.done():
                error = carried.exception()
                logger.debug("tunnel of lease %s: %r", tunnel.ticket.lease, error)
                gone = Refused(grpc.StatusCode.UNAVAILABLE, "the other end of the tunnel has gone")
                tunnel.end(None if error is None else gone)
            elif guard.done():
                tunnel.end(guard.result())
            logger.info("tunnel of lease %s ended: %s", tunnel.ticket.lease, tunnel.outcome.result() or "done")
        finally:
            carried.cancel()
            guard.cancel()
            await asyncio.gather(*workers, guard, carried, return_exceptions=True)

    async def _guard(self, tunnel: _Tunnel) -> Refused:
        """Return, with the reason, when the lease does not carry this tunnel any more."""
        ticket = tunnel.ticket
        with self._database.bus.subscribe(lease_topic(ticket.namespace, ticket.lease)) as subscription:
            while True:
                try:
                    await self._database.read(_check_lease, ticket)
                except Refused as refused:
                    return refused
                await subscription.changed()


def _check_lease(tx: Transaction, ticket: Ticket) -> None:
    lease = find_lease(tx, ticket.namespace, ticket.lease)
    if lease.ended:
        raise Refused(grpc.StatusCode.ABORTED, f"lease {lease.name} has ended")
    if lease.client_id != ticket.client_id:
        raise permission_denied(f"permission denied: lease {lease.name} has another holder now")


async def _carry(source: Any, sink: Any) -> None:
    """Pass on messages until the source says that it has no more."""
    while (message := await source.read()) is not EOF:
        await sink.write(message)
