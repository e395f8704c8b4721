# SPDX-License-Identifier: Apache-2.0
"""jumpstarter.client.v1.ClientService: what clients see and ask for."""

from __future__ import annotations

from typing import Any

from google.protobuf.empty_pb2 import Empty
from sqlalchemy import select

from jumpstarter.common.selectors import parse_selector
from jumpstarter_controller.errors import failed_precondition, permission_denied
from jumpstarter_controller.identity import Caller, Identity, issue_token
from jumpstarter_controller.lab import Lab
from jumpstarter_controller.leases.requests import (
    LeaseChange,
    create_lease,
    find_exporter,
    find_lease,
    release_lease,
    update_lease,
)
from jumpstarter_controller.services.credentials import authenticate
from jumpstarter_controller.services.messages import (
    LabelViews,
    check_parent,
    exporter_message,
    lease_message,
    lease_request,
    name_in,
    number_place,
    page_token,
    place_token,
    read_page,
    selector_of,
    time_message,
    time_of,
)
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Client, Exporter, Lease
from jumpstarter_protocol.jumpstarter.client.v1 import client_pb2

__all__ = ["ClientService"]


class ClientService:
    """The service. token_lifetime: seconds that a rotated token is good for."""

    def __init__(self, lab: Lab, identity: Identity, token_lifetime: float, labels: LabelViews | None = None) -> None:
        self._lab = lab
        self._identity = identity
        self._labels = labels or LabelViews()
        self._token_lifetime = token_lifetime

    async def _caller(self, context: Any) -> Caller:
        return await authenticate(self._identity, context, "client")

    async def get_exporter(self, request: Any, context: Any) -> client_pb2.Exporter:
        """One exporter."""
        caller = await self._caller(context)
        name = name_in(caller, "exporters", request.name)
        exporter = await self._lab.database.read(find_exporter, caller.namespace, name)
        return exporter_message(exporter, self._labels, request.show_hidden_labels)

    async def list_exporters(self, request: Any, context: Any) -> client_pb2.ListExportersResponse:
        """Exporters, by name."""
        caller = await self._caller(context)
        check_parent(caller, request.parent)
        wanted = selector_of("filter", request.filter)
        after = page_token(request.page_token)
        query = (
            select(Exporter)
            .where(Exporter.namespace == caller.namespace, Exporter.name > after)
            .order_by(Exporter.name)
        )
        page, more = await self._lab.database.read(
            read_page, query, lambda exporter: wanted.matches(exporter.all_labels), request.page_size
        )
        return client_pb2.ListExportersResponse(
            exporters=[exporter_message(exporter, self._labels, request.show_hidden_labels) for exporter in page],
            next_page_token=place_token(page[-1].name) if more else "",
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
        labels, tags = selector_of("filter", request.filter), selector_of("tag_filter", request.tag_filter)
        after = number_place(request.page_token) or 0
        query = (
            select(Lease).where(Lease.namespace == caller.namespace, Lease.sequence > after).order_by(Lease.sequence)
        )
        if request.only_active or not request.HasField("only_active"):
            query = query.where(~Lease.ended)

        def matches(lease: Lease) -> bool:
            return tags.matches(lease.tags) and (
                not labels or labels.matches(parse_selector(lease.selector).match_labels)
            )

        page, more = await self._lab.database.read(read_page, query, matches, request.page_size)
        return client_pb2.ListLeasesResponse(
            leases=[self._message(lease) for lease in page],
            next_page_token=place_token(str(page[-1].sequence)) if more else "",
        )

    async def create_lease(self, request: Any, context: Any) -> client_pb2.Lease:
        """Ask for an exporter. One that is free is assigned before the answer."""
        caller = await self._caller(context)
        check_parent(caller, request.parent)
        wanted = lease_request(request)
        return self._message(
            await self._lab.change(create_lease, caller, wanted, self._lab.limits, self._lab.catalogue)
        )

    async def update_lease(self, request: Any, context: Any) -> client_pb2.Lease:
        """Change the times or the holder of a lease.

        What is given is applied, whatever the mask says: clients of 0.9 send none, or any. Times that the mask names
        and that are not given are cleared.
        """
        caller = await self._caller(context)
        lease = request.lease
        name = name_in(caller, "leases", lease.name)
        change = LeaseChange(
            duration=time_of(lease, "duration"),
            begin=time_of(lease, "begin_time"),
            end=time_of(lease, "end_time"),
            client=self._new_holder(caller, lease.client) if lease.HasField("client") else None,
            clear=_cleared(request),
        )
        return self._message(await self._lab.change(update_lease, caller, name, change, self._lab.catalogue))

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
        if caller.method == "oidc":
            # A token of ours would outlive what the issuer says of its user.
            raise failed_precondition(f"the token of {caller} is one of an external issuer: it is renewed there")
        token, expires = await self._lab.database.write(_rotate, caller, self._token_lifetime)
        return client_pb2.RotateTokenResponse(token=token, expiry=time_message(expires))

    def _message(self, lease: Lease) -> client_pb2.Lease:
        return lease_message(lease, self._lab.database.clock(), self._labels)


#: Fields of a lease that an update mask can clear, and what `LeaseChange` calls them.
_CLEARABLE = {"begin_time": "begin", "end_time": "end"}


def _cleared(request: Any) -> frozenset[str]:
    absent = {path for path in request.update_mask.paths if path in _CLEARABLE and not request.lease.HasField(path)}
    return frozenset(_CLEARABLE[path] for path in absent)


def _rotate(tx: Transaction, caller: Caller, lifetime: float) -> tuple[str, float]:
    client = tx.session.get_one(Client, caller.id)
    return issue_token(tx, client, lifetime, str(caller))
