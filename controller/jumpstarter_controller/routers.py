# SPDX-License-Identifier: Apache-2.0
"""Routers that run apart: which there are, and which one a dial gets. Transactions for `Database.write` and `read`."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import grpc
from sqlalchemy import select

from jumpstarter_controller.administration.names import check_name, check_namespace
from jumpstarter_controller.errors import Refused, not_found
from jumpstarter_controller.identity import Caller, Role, issue_token, revoke_tokens
from jumpstarter_controller.identity.dial import dial_tokens
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Router

__all__ = [
    "ROUTERS_TOPIC",
    "Candidate",
    "Hello",
    "Route",
    "Routers",
    "Tokens",
    "attach",
    "choose",
    "create_router",
    "delete_router",
    "detach",
    "is_live",
    "seen",
]

#: Bus topic: a router has come or gone.
ROUTERS_TOPIC = "routers"

#: Seconds after which a router that says nothing counts as gone. It reports every ten seconds.
_SILENCE = 45.0


class Route(NamedTuple):
    """A router that dial tokens can be made for. endpoint: host:port for both ends."""

    endpoint: str
    instance: str


class Tokens(NamedTuple):
    """A new tunnel: where, and what each end shows there."""

    endpoint: str
    by_role: dict[Role, str]


class Hello(NamedTuple):
    """What a router says of itself when it attaches."""

    endpoint: str
    instance: str
    labels: dict[str, str]
    weight: int
    tunnels: int


@dataclass(frozen=True)
class Candidate:
    """A live router. load: tunnels that it carries, or is about to, by its weight."""

    route: Route
    name: str
    labels: Mapping[str, str]
    load: float


_ROUTERS = select(Router)


def is_live(tx: Transaction, router: Router) -> bool:
    """Whether a router is attached and was heard of."""
    return router.attachment is not None and router.last_seen > tx.now - _SILENCE


def choose(candidates: list[Candidate], exporter_labels: Mapping[str, str]) -> Route | None:
    """The router for a tunnel to an exporter with these labels.

    One that contradicts the exporter (``site: berlin`` and ``site: munich``) comes after one that does not; then the
    one that has the most labels in common comes first, then the one with the least load.
    """

    def rank(candidate: Candidate) -> tuple[int, int, float, str]:
        shared = [key for key in candidate.labels if key in exporter_labels]
        same = sum(candidate.labels[key] == exporter_labels[key] for key in shared)
        return (len(shared) - same, -same, candidate.load, candidate.name)

    return min(candidates, key=rank).route if candidates else None


class Routers:
    """Hands out the tokens of new tunnels. built_in: the router of this process, for when no other is there."""

    def __init__(self, built_in: Route | None = None) -> None:
        self._built_in = built_in
        #: Dials since the router last said what it carries: (when that was, how many).
        self._dialed: dict[str, tuple[float, int]] = {}

    def tokens(
        self, tx: Transaction, namespace: str, lease: str, client_id: str, exporter_labels: Mapping[str, str]
    ) -> Tokens:
        """The two tokens of a new tunnel, and where both go. Raises UNAVAILABLE when there is no router."""
        rows = [row for row in tx.session.scalars(_ROUTERS) if is_live(tx, row)]
        route = choose([self._candidate(row) for row in rows], exporter_labels) or self._built_in
        if route is None:
            raise Refused(
                grpc.StatusCode.UNAVAILABLE, f"lease {lease} cannot be dialed: no router is attached to the controller"
            )
        for row in rows:
            if row.instance == route.instance:
                self._dialed[row.instance] = (row.last_seen, self._pending(row) + 1)
        return Tokens(route.endpoint, dial_tokens(tx, route.instance, namespace, lease, client_id))

    def _candidate(self, row: Router) -> Candidate:
        load = (row.tunnels + self._pending(row)) / max(1, row.weight)
        return Candidate(Route(row.endpoint, row.instance), row.name, row.labels, load)

    def _pending(self, row: Router) -> int:
        since, count = self._dialed.get(row.instance, (row.last_seen, 0))
        return count if since == row.last_seen else 0


def _find(tx: Transaction, namespace: str, name: str) -> Router | None:
    return tx.session.scalars(select(Router).where(Router.namespace == namespace, Router.name == name)).first()


def create_router(
    tx: Transaction, namespace: str, name: str, lifetime: float, *, revoke: bool = False, actor: str = "administrator"
) -> str:
    """Make a router, or another token for the one that has this name. Returns the token, good for ``lifetime`` seconds.

    revoke: make the tokens worthless that it has. Raises `Refused` for a name that cannot be one.
    """
    check_name("router", name)
    check_namespace(namespace)
    row = _find(tx, namespace, name)
    if row is not None and revoke:
        revoke_tokens(tx, row, actor)
    if row is None:
        row = Router(namespace=namespace, name=name, created_at=tx.now)
        tx.session.add(row)
        tx.session.flush()
        tx.audit(actor, "router created", namespace=namespace, name=name)
    return issue_token(tx, row, lifetime, actor)[0]


def delete_router(tx: Transaction, namespace: str, name: str, actor: str = "administrator") -> None:
    """Forget a router; it is refused from now on, and its tunnels end when it goes. Raises NOT_FOUND."""
    row = _find(tx, namespace, name)
    if row is None:
        raise not_found(f"router {namespace}/{name} does not exist")
    revoke_tokens(tx, row, actor)
    tx.session.delete(row)
    tx.touch(ROUTERS_TOPIC)
    tx.audit(actor, "router deleted", namespace=namespace, name=name)


def attach(tx: Transaction, caller: Caller, hello: Hello) -> str:
    """A router is there. Returns the name of the attachment, which takes the place of an older one."""
    row = tx.session.get_one(Router, caller.id)
    row.endpoint, row.instance = hello.endpoint, hello.instance
    row.labels, row.weight = hello.labels, max(1, hello.weight)
    row.attachment = secrets.token_hex(8)
    row.tunnels, row.last_seen = hello.tunnels, tx.now
    tx.touch(ROUTERS_TOPIC)
    tx.audit(str(caller), "router attached", endpoint=hello.endpoint, tunnels=hello.tunnels)
    return row.attachment


def seen(tx: Transaction, caller: Caller, attachment: str, tunnels: int) -> None:
    """A router says how many tunnels it carries. Raises ABORTED when it has attached again meanwhile."""
    row = tx.session.get(Router, caller.id)
    if row is None or row.attachment != attachment:
        raise Refused(grpc.StatusCode.ABORTED, f"router {caller.name} has attached anew, this stream is of no use")
    row.tunnels, row.last_seen = tunnels, tx.now


def detach(tx: Transaction, caller: Caller, attachment: str) -> bool:
    """A router's stream has ended. Returns whether it is gone by that."""
    row = tx.session.get(Router, caller.id)
    if row is None or row.attachment != attachment:
        return False  # deleted, or attached anew
    row.attachment = None
    tx.touch(ROUTERS_TOPIC)
    tx.audit(str(caller), "router detached", endpoint=row.endpoint)
    return True
