# SPDX-License-Identifier: Apache-2.0
"""jumpstarter.client.v1.ClientService: what clients see and ask for."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any

from google.protobuf.empty_pb2 import Empty
from sqlalchemy import Select, select

from jumpstarter.common.selectors import Selector, SelectorError, parse_selector
from jumpstarter_controller.errors import invalid, permission_denied
from jumpstarter_controller.identity import Caller, Identity, issue_token
from jumpstarter_controller.lab import Lab
from jumpstarter_controller.leases.requests import (
    LeaseChange,
    LeaseRequest,
    create_lease,
    find_exporter,
    find_lease,
    release_lease,
    update_lease,
)
from jumpstarter_controller.services.credentials import authenticate
from jumpstarter_controller.services.messages import (
    check_parent,
    exporter_message,
    lease_message,
    name_in,
    time_message,
    time_of,
)
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Client, Exporter, Lease
from jumpstarter_protocol.jumpstarter.client.v1 import client_pb2

__all__ = ["ClientService"]

#: Entries of a page when the client does not say, and at most.
_PAGE, _MAX_PAGE = 100, 1000


class ClientService:
    """The service. token_lifetime: seconds that a rotated token is good for."""

    def __init__(self, lab: Lab, identity: Identity, token_lifetime: float) -> None:
        self._lab = lab
        self._identity = identity
        self._token_lifetime = token_lifetime

    async def _caller(self, context: Any) -> Caller:
        return await authenticate(self._identity, context, "client")

    async def get_exporter(self, request: Any, context: Any) -> client_pb2.Exporter:
        """One exporter."""
        caller = await self._caller(context)
        name = name_in(caller, "exporters", request.name)
        return exporter_message(await self._lab.database.read(find_exporter, caller.namespace, name))

    async def list_exporters(self, request: Any, context: Any) -> client_pb2.ListExportersResponse:
        """Exporters, by name."""
        caller = await self._caller(context)
        check_parent(caller, request.parent)
        wanted = _selector("filter", request.filter)
        after = _page_token(request.page_token)
        query = (
            select(Exporter)
            .where(Exporter.namespace == caller.namespace, Exporter.name > after)
            .order_by(Exporter.name)
        )
        page, more = await self._lab.database.read(
            _page, query, lambda exporter: wanted.matches(exporter.all_labels), request.page_size
        )
        return client_pb2.ListExportersResponse(
            exporters=[exporter_message(exporter) for exporter in page],
            next_page_token=_token(page[-1].name) if more else "",
        )

    async def get_lease(self, request: Any, context: Any) -> client_pb2.Lease:
        """One lease of the namespace."""
        caller = await self._caller(context)
        name = name_in(caller, "leases", request.name)
        return self._message(await self._lab.database.read(find_lease, caller.namespace, name))

    async def list_leases(self, request: Any, context: Any) -> client_pb2.ListLeasesResponse:
        """Leases of the namespace, in the order of creation; ``filter`` is about the labels they ask for."""
        caller = await self._caller(context)
        check_parent(caller, request.parent)
        labels, tags = _selector("filter", request.filter), _selector("tag_filter", request.tag_filter)
        after = _page_token(request.page_token) or "0"
        if not after.isascii() or not after.isdigit():
            raise invalid("page_token is not one of ours")
        query = (
            select(Lease)
            .where(Lease.namespace == caller.namespace, Lease.sequence > int(after))
            .order_by(Lease.sequence)
        )
        if request.only_active or not request.HasField("only_active"):
            query = query.where(Lease.ended.is_(False))

        def matches(lease: Lease) -> bool:
            return tags.matches(lease.tags) and (
                not labels or labels.matches(parse_selector(lease.selector).match_labels)
            )

        page, more = await self._lab.database.read(_page, query, matches, request.page_size)
        return client_pb2.ListLeasesResponse(
            leases=[self._message(lease) for lease in page],
            next_page_token=_token(str(page[-1].sequence)) if more else "",
        )

    async def create_lease(self, request: Any, context: Any) -> client_pb2.Lease:
        """Ask for an exporter. One that is free is assigned before the answer."""
        caller = await self._caller(context)
        check_parent(caller, request.parent)
        lease = request.lease
        wanted = LeaseRequest(
            name=request.lease_id,
            selector=lease.selector,
            exporter_name=lease.exporter_name or None,
            duration=time_of(lease, "duration"),
            begin=time_of(lease, "begin_time"),
            end=time_of(lease, "end_time"),
            tags=dict(lease.tags),
            context=dict(lease.context),
            allow_disabled=lease.allow_disabled,
        )
        return self._message(await self._lab.change(create_lease, caller, wanted))

    async def update_lease(self, request: Any, context: Any) -> client_pb2.Lease:
        """Change the times or the holder of a lease. What is given is applied, whatever the mask says."""
        caller = await self._caller(context)
        lease = request.lease
        name = name_in(caller, "leases", lease.name)
        change = LeaseChange(
            duration=time_of(lease, "duration"),
            begin=time_of(lease, "begin_time"),
            end=time_of(lease, "end_time"),
            client=self._new_holder(caller, lease.client) if lease.HasField("client") else None,
        )
        return self._message(await self._lab.change(update_lease, caller, name, change))

    def _new_holder(self, caller: Caller, name: str) -> str:
        if not name.startswith(f"namespaces/{caller.namespace}/"):
            raise permission_denied("permission denied: cannot transfer lease to client in different namespace")
        return name_in(caller, "clients", name)

    async def delete_lease(self, request: Any, context: Any) -> Empty:
        """Give a lease back. It stays visible, as ended."""
        caller = await self._caller(context)
        name = name_in(caller, "leases", request.name)
        await self._lab.change(release_lease, caller, name, once=True)
        return Empty()

    async def rotate_token(self, request: Any, context: Any) -> client_pb2.RotateTokenResponse:
        """A new token for the caller; the one it came with stays good until it expires or is revoked."""
        caller = await self._caller(context)
        check_parent(caller, request.parent)
        token, expires = await self._lab.database.write(_rotate, caller, self._token_lifetime)
        return client_pb2.RotateTokenResponse(token=token, expiry=time_message(expires))

    def _message(self, lease: Lease) -> client_pb2.Lease:
        return lease_message(lease, self._lab.database.clock())


def _rotate(tx: Transaction, caller: Caller, lifetime: float) -> tuple[str, float]:
    client = tx.session.get_one(Client, caller.id)
    return issue_token(tx, client, lifetime)


def _selector(field: str, text: str) -> Selector:
    try:
        return parse_selector(text)
    except SelectorError as error:
        raise invalid(f"invalid {field}: {error}") from error


def _page(tx: Transaction, query: Select[Any], matches: Callable[[Any], bool], size: int) -> tuple[list[Any], bool]:
    """The first ``size`` rows that match, and whether there are more."""
    size = min(size if size > 0 else _PAGE, _MAX_PAGE)
    found: list[Any] = []
    for row in tx.session.scalars(query.execution_options(yield_per=size + 1)):
        if matches(row):
            if len(found) == size:
                return found, True
            found.append(row)
    return found, False


def _token(place: str) -> str:
    return base64.urlsafe_b64encode(place.encode()).decode()


def _page_token(text: str) -> str:
    try:
        return base64.b64decode(text.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise invalid("page_token is not one of ours") from None
