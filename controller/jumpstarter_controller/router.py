# SPDX-License-Identifier: Apache-2.0
"""The router: pairs the two ends of a tunnel and passes frames between them as the bytes they are.

Each end shows a dial token that is good once, for one role, for a minute. A message is read from one end when the other
has taken the one before, so that a slow reader slows the sender and nothing piles up here. The tunnel is closed when
its lease ends or gets another holder: a guard says when, which looks at the database within a controller, and listens
to a controller in a router that runs apart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import grpc
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from grpc.aio import EOF

from jumpstarter_controller.errors import Refused, permission_denied
from jumpstarter_controller.identity.dial import Ticket, key_id, read_ticket
from jumpstarter_controller.identity.keys import public_keys, unauthenticated
from jumpstarter_controller.services.credentials import bearer_token
from jumpstarter_controller.state.database import Database, Transaction
from jumpstarter_controller.state.models import SigningKey
from jumpstarter_controller.tunnels import TunnelOwner, lease_lost

__all__ = ["Guard", "Keys", "Router", "built_in_router", "owner_of", "router_handler"]

logger = logging.getLogger(__name__)

#: Returns, with the reason, when the tunnel has to close.
Guard = Callable[[Ticket], Awaitable[Refused]]
#: The public key with this id, PEM; None when there is none.
Keys = Callable[[str], Awaitable[str | None]]


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
    """RouterService. instance: which dial tokens are for this router; another one each time it starts.

    clock: seconds since 1970, the one that dial tokens are compared with.
    """

    def __init__(self, keys: Keys, guard: Guard, clock: Callable[[], float]) -> None:
        self.instance = uuid4().hex
        self._keys = keys
        self._guard = guard
        self._clock = clock
        self._parsed: dict[str, Any] = {}
        self._waiting: dict[str, _Tunnel] = {}
        self._running: set[asyncio.Task[None]] = set()
        #: Until when they are remembered: tokens that were shown; tunnels whose first end left before the other came.
        self._used: dict[str, float] = {}
        self._left: dict[str, tuple[float, str]] = {}

    @property
    def open_tunnels(self) -> int:
        """Tunnels with both ends."""
        return len(self._running)

    @property
    def waiting_ends(self) -> int:
        """Ends whose other one has not come yet."""
        return len(self._waiting)

    async def stream(self, _: Any, context: Any) -> None:
        """One end of a tunnel. Raises `Refused`."""
        ticket = await self._ticket(bearer_token(context))
        self._use(ticket)
        tunnel = self._waiting.get(ticket.stream)
        if tunnel is not None and tunnel.ticket.role == ticket.role:
            raise permission_denied(f"permission denied: the {ticket.role} end of this tunnel is taken")
        if tunnel is None:
            tunnel = self._waiting[ticket.stream] = _Tunnel(ticket, context)
            left = max(0.0, ticket.expires_at - self._clock())
            timer = asyncio.get_running_loop().call_later(left, self._give_up, tunnel)
            tunnel.outcome.add_done_callback(lambda _: timer.cancel())
        else:
            del self._waiting[ticket.stream]
            task = asyncio.create_task(self._run(tunnel, context))
            self._running.add(task)
            task.add_done_callback(lambda task: self._ran(tunnel, task))
        try:
            outcome = await asyncio.shield(tunnel.outcome)
        except asyncio.CancelledError:
            tunnel.end(_gone(ticket.role))
            raise
        finally:
            if self._waiting.get(ticket.stream) is tunnel:
                del self._waiting[ticket.stream]
                self._left[ticket.stream] = (ticket.expires_at, ticket.role)
        if outcome is not None:
            raise outcome

    def _give_up(self, tunnel: _Tunnel) -> None:
        if self._waiting.get(tunnel.ticket.stream) is tunnel:
            message = f"the other end of the tunnel of lease {tunnel.ticket.lease} did not come"
            tunnel.end(Refused(grpc.StatusCode.DEADLINE_EXCEEDED, message))

    async def _ticket(self, token: str) -> Ticket:
        kid = key_id(token)
        pem = await self._keys(kid)
        if pem is None:
            raise unauthenticated("token is signed by a key that this router does not accept")
        key = self._parsed.get(kid)
        if key is None:
            key = self._parsed[kid] = load_pem_public_key(pem.encode())
        return read_ticket(token, key, self.instance, self._clock())

    def _use(self, ticket: Ticket) -> None:
        """Refuse a token that was shown before. They are remembered while they could be shown again."""
        now = self._clock()
        if ticket.jti in self._used:
            raise unauthenticated("this dial token has been used already")
        for jti in [jti for jti, expires in self._used.items() if expires <= now]:
            del self._used[jti]
        for stream in [stream for stream, (expires, _) in self._left.items() if expires <= now]:
            del self._left[stream]
        self._used[ticket.jti] = ticket.expires_at
        if (left := self._left.get(ticket.stream)) is not None:
            raise _gone(left[1])

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
        guard: asyncio.Future[Refused] = asyncio.ensure_future(self._guard(tunnel.ticket))
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


def _gone(role: str) -> Refused:
    return Refused(grpc.StatusCode.UNAVAILABLE, f"the {role} has gone")


async def _carry(source: Any, sink: Any) -> None:
    """Pass on messages until the source says that it has no more."""
    while (message := await source.read()) is not EOF:
        await sink.write(message)


def owner_of(ticket: Ticket) -> TunnelOwner:
    """For whom the tunnel of a ticket is."""
    return TunnelOwner(ticket.namespace, ticket.lease, ticket.client_id)


def built_in_router(database: Database) -> Router:
    """The router within a controller: keys and leases are those of the database."""

    known: dict[str, str] = {}

    async def key(kid: str) -> str | None:
        if kid not in known:
            known.update(await database.read(public_keys))
        return known.get(kid) if await database.read(_accepted, kid) else None

    async def guard(ticket: Ticket) -> Refused:
        return await lease_lost(database, owner_of(ticket))

    return Router(key, guard, database.clock)


def _accepted(tx: Transaction, kid: str) -> bool:
    row = tx.session.get(SigningKey, kid)
    return row is not None and row.retired_at is None


def router_handler(router: Router, guarded: Callable[..., Any]) -> grpc.GenericRpcHandler:
    """RouterService with frames as the bytes that came. guarded: `Calls.guarded`."""
    stream: Any = grpc.stream_stream_rpc_method_handler(guarded(router.stream, "RouterService.Stream"))
    return grpc.method_handlers_generic_handler("jumpstarter.v1.RouterService", {"Stream": stream})
