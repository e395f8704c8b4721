# SPDX-License-Identifier: Apache-2.0
"""jumpstarter.admin.v1.AdminService: administrators change the lab over the wire."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf.empty_pb2 import Empty
from sqlalchemy import func, select

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_controller.administration import policies, subjects
from jumpstarter_controller.administration.audit import AuditQuery
from jumpstarter_controller.errors import failed_precondition, invalid, permission_denied
from jumpstarter_controller.identity import Caller, Identity
from jumpstarter_controller.identity.callers import Kind
from jumpstarter_controller.identity.tokens import SUBJECTS, issue_token, list_tokens, revoke_tokens
from jumpstarter_controller.lab import Lab
from jumpstarter_controller.services import admin_messages as messages
from jumpstarter_controller.services.credentials import authenticate
from jumpstarter_controller.services.messages import (
    number_place,
    page_token,
    place_token,
    read_page,
    time_message,
    time_of,
)
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Client, Lease, Policy
from jumpstarter_protocol.jumpstarter.admin.v1 import admin_pb2

__all__ = ["AdminService"]

#: Seconds that a token can be good for at most.
_LONGEST_LIFETIME = 3650 * 86400.0
_MAX_REASON = 256


class AdminService:
    """The service. endpoint, ca: what those who get a token need to reach the controller; token_lifetime: seconds.

    Administrators are administrators of the lab: of every namespace. Raises ConfigurationError when ca is unreadable.
    """

    def __init__(self, lab: Lab, identity: Identity, endpoint: str, ca: Path, token_lifetime: float) -> None:
        self._lab = lab
        self._identity = identity
        self._endpoint = endpoint
        self._token_lifetime = token_lifetime
        try:
            self._ca = ca.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"TLS CA {ca} cannot be read: {error}") from error

    async def _administrator(self, context: Any) -> str:
        """The actor for the audit log. Raises PERMISSION_DENIED for everybody who is no administrator."""
        caller = await authenticate(self._identity, context)
        if not caller.administrator:
            raise permission_denied(f"permission denied: {caller} is not an administrator")
        return str(caller)

    async def who_am_i(self, _: Any, context: Any) -> admin_pb2.WhoAmIResponse:
        """Who the caller is."""
        caller: Caller = await authenticate(self._identity, context)
        return admin_pb2.WhoAmIResponse(
            kind=caller.kind,
            namespace=caller.namespace,
            name=caller.name,
            administrator=caller.administrator,
            expiry=time_message(caller.expires_at),
            method=caller.method,
        )

    # --- clients ------------------------------------------------------------------------------------------------

    async def create_client(self, request: Any, context: Any) -> admin_pb2.CreateClientResponse:
        """Make a client."""
        actor = await self._administrator(context)
        wanted = request.client
        new = subjects.NewSubject(dict(wanted.labels), wanted.username, administrator=wanted.administrator)
        namespace = messages.parent_of(request.parent)
        client, token = await self._lab.change(
            self._create, actor, "client", namespace, request.client_id, new, with_token=not request.without_token
        )
        answer = admin_pb2.CreateClientResponse(client=messages.client_message(client), **self._reach(*token))
        return answer

    async def get_client(self, request: Any, context: Any) -> admin_pb2.Client:
        """One client."""
        await self._administrator(context)
        namespace, name = messages.resource(request.name, "clients")
        client = await self._lab.database.read(subjects.find_subject, "client", namespace, name)
        return messages.client_message(client)

    async def list_clients(self, request: Any, context: Any) -> admin_pb2.ListClientsResponse:
        """Clients of a namespace, by name."""
        await self._administrator(context)
        page, more = await self._lab.database.read(_list_subjects, "client", request)
        return admin_pb2.ListClientsResponse(
            clients=[messages.client_message(client) for client in page],
            next_page_token=place_token(page[-1].name) if more else "",
        )

    async def update_client(self, request: Any, context: Any) -> admin_pb2.Client:
        """Change a client."""
        actor = await self._administrator(context)
        namespace, name = messages.resource(request.client.name, "clients")
        values = messages.masked(request.client, request.update_mask, ("labels", "username", "administrator"))
        change = subjects.change_subject
        client = await self._lab.change(_keeping_an_administrator, change, actor, "client", namespace, name, **values)
        return messages.client_message(client)

    async def delete_client(self, request: Any, context: Any) -> Empty:
        """Delete a client."""
        actor = await self._administrator(context)
        namespace, name = messages.resource(request.name, "clients")
        await self._lab.change(
            _keeping_an_administrator, subjects.delete_subject, actor, "client", namespace, name, force=request.force
        )
        return Empty()

    # --- exporters ----------------------------------------------------------------------------------------------

    async def create_exporter(self, request: Any, context: Any) -> admin_pb2.CreateExporterResponse:
        """Make an exporter."""
        actor = await self._administrator(context)
        wanted = request.exporter
        new = subjects.NewSubject(dict(wanted.labels), wanted.username, enabled=not request.disabled)
        namespace = messages.parent_of(request.parent)
        exporter, token = await self._lab.change(
            self._create, actor, "exporter", namespace, request.exporter_id, new, with_token=not request.without_token
        )
        return admin_pb2.CreateExporterResponse(exporter=messages.exporter_message(exporter), **self._reach(*token))

    async def get_exporter(self, request: Any, context: Any) -> admin_pb2.Exporter:
        """One exporter."""
        await self._administrator(context)
        namespace, name = messages.resource(request.name, "exporters")
        return await self._lab.database.read(_exporter_now, namespace, name)

    async def list_exporters(self, request: Any, context: Any) -> admin_pb2.ListExportersResponse:
        """Exporters of a namespace, by name."""
        await self._administrator(context)
        return await self._lab.database.read(_exporters_now, request)

    async def update_exporter(self, request: Any, context: Any) -> admin_pb2.Exporter:
        """Change an exporter."""
        actor = await self._administrator(context)
        namespace, name = messages.resource(request.exporter.name, "exporters")
        values = messages.masked(request.exporter, request.update_mask, ("labels", "username", "enabled"))
        await self._lab.change(subjects.change_subject, actor, "exporter", namespace, name, **values)
        return await self._lab.database.read(_exporter_now, namespace, name)

    async def delete_exporter(self, request: Any, context: Any) -> Empty:
        """Delete an exporter."""
        actor = await self._administrator(context)
        namespace, name = messages.resource(request.name, "exporters")
        await self._lab.change(subjects.delete_subject, actor, "exporter", namespace, name, force=request.force)
        return Empty()

    # --- tokens -------------------------------------------------------------------------------------------------

    async def issue_token(self, request: Any, context: Any) -> admin_pb2.IssueTokenResponse:
        """Make a token, and with revoke_older make the others worthless."""
        actor = await self._administrator(context)
        kind, namespace, name = messages.subject_resource(request.name)
        lifetime = time_of(request, "lifetime")
        if lifetime is None:
            lifetime = self._token_lifetime
        if not 0 < lifetime <= _LONGEST_LIFETIME:
            raise invalid(f"lifetime must be positive and at most {_LONGEST_LIFETIME:g}s, got {lifetime:g}s")
        token, expires, revoked = await self._lab.change(
            _issue, actor, kind, namespace, name, lifetime, revoke_older=request.revoke_older
        )
        return admin_pb2.IssueTokenResponse(revoked=revoked, **self._reach(token, expires))

    async def list_tokens(self, request: Any, context: Any) -> admin_pb2.ListTokensResponse:
        """The tokens and certificates of a client or exporter; never the tokens themselves."""
        await self._administrator(context)
        kind, namespace, name = messages.subject_resource(request.name)

        def read(tx: Transaction) -> Any:
            return list_tokens(tx, subjects.find_subject(tx, kind, namespace, name).id)

        rows = await self._lab.database.read(read)
        return admin_pb2.ListTokensResponse(tokens=[messages.token_message(row) for row in rows])

    async def revoke_tokens(self, request: Any, context: Any) -> admin_pb2.RevokeTokensResponse:
        """Make tokens and certificates worthless."""
        actor = await self._administrator(context)
        kind, namespace, name = messages.subject_resource(request.name)
        ids = set(request.ids) or None

        def change(tx: Transaction) -> int:
            return revoke_tokens(tx, subjects.find_subject(tx, kind, namespace, name), actor, ids=ids)

        return admin_pb2.RevokeTokensResponse(revoked=await self._lab.change(change))

    def _create(
        self,
        tx: Transaction,
        actor: str,
        kind: Kind,
        namespace: str,
        name: str,
        new: subjects.NewSubject,
        *,
        with_token: bool,
    ) -> tuple[Any, tuple[str, float | None]]:
        subject = subjects.add_subject(tx, actor, kind, namespace, name, new)
        return subject, issue_token(tx, subject, self._token_lifetime, actor) if with_token else ("", None)

    def _reach(self, token: str, expires: float | None) -> dict[str, Any]:
        """The fields that say how the controller is reached, and with which token."""
        return {"token": token, "expiry": time_message(expires), "endpoint": self._endpoint, "ca": self._ca}

    # --- policies -----------------------------------------------------------------------------------------------

    async def get_policy(self, request: Any, context: Any) -> admin_pb2.AccessPolicy:
        """One policy."""
        await self._administrator(context)
        namespace, name = messages.resource(request.name, "policies")
        return messages.policy_message(await self._lab.database.read(policies.find_policy, namespace, name))

    async def list_policies(self, request: Any, context: Any) -> admin_pb2.ListPoliciesResponse:
        """Policies of a namespace, by name."""
        await self._administrator(context)
        namespace, after = messages.parent_of(request.parent), page_token(request.page_token)
        query = select(Policy).where(Policy.namespace == namespace, Policy.name > after).order_by(Policy.name)
        page, more = await self._lab.database.read(read_page, query, _every, request.page_size)
        return admin_pb2.ListPoliciesResponse(
            policies=[messages.policy_message(policy) for policy in page],
            next_page_token=place_token(page[-1].name) if more else "",
        )

    async def set_policy(self, request: Any, context: Any) -> admin_pb2.AccessPolicy:
        """Make or replace a policy."""
        actor = await self._administrator(context)
        namespace, policy = messages.parent_of(request.parent), request.policy
        rules = [messages.rule_of(rule) for rule in policy.rules]
        set_ = await self._lab.change(policies.put_policy, actor, namespace, request.policy_id, policy.exporters, rules)
        return messages.policy_message(set_)

    async def delete_policy(self, request: Any, context: Any) -> Empty:
        """Delete a policy."""
        actor = await self._administrator(context)
        namespace, name = messages.resource(request.name, "policies")
        await self._lab.change(policies.delete_policy, actor, namespace, name)
        return Empty()

    # --- leases and the log -------------------------------------------------------------------------------------

    async def end_lease(self, request: Any, context: Any) -> Empty:
        """End anybody's lease."""
        actor = await self._administrator(context)
        namespace, name = messages.resource(request.name, "leases")
        if len(request.reason) > _MAX_REASON:
            raise invalid(f"reason has {len(request.reason)} characters, {_MAX_REASON} are allowed")
        await self._lab.change(subjects.end_any_lease, actor, namespace, name, request.reason)
        return Empty()

    async def list_audit(self, request: Any, context: Any) -> admin_pb2.ListAuditResponse:
        """Entries of the audit log, the newest first."""
        await self._administrator(context)
        query = AuditQuery(
            namespace=messages.parent_of(request.parent) if request.parent else "",
            lease=request.lease,
            exporter=request.exporter,
            client=request.client,
            action=request.action,
            since=time_of(request, "since"),
            until=time_of(request, "until"),
            before=number_place(request.page_token),
        )
        page, more = await self._lab.database.read(read_page, query.select(), _every, request.page_size)
        return admin_pb2.ListAuditResponse(
            entries=[messages.audit_message(entry) for entry in page],
            next_page_token=place_token(str(page[-1].id)) if more else "",
        )


def _every(_: object) -> bool:
    return True


def _list_subjects(tx: Transaction, kind: str, request: Any) -> tuple[list[Any], bool]:
    namespace, wanted, after = messages.list_of(request)
    model = SUBJECTS[kind]
    query = select(model).where(model.namespace == namespace, model.name > after).order_by(model.name)
    return read_page(tx, query, lambda row: wanted.matches(getattr(row, "all_labels", row.labels)), request.page_size)


def _exporter_now(tx: Transaction, namespace: str, name: str) -> admin_pb2.Exporter:
    exporter = subjects.find_subject(tx, "exporter", namespace, name)
    leases = subjects.active_leases(tx, exporter)
    return messages.exporter_message(exporter, leases[0].name if leases else "")


def _exporters_now(tx: Transaction, request: Any) -> admin_pb2.ListExportersResponse:
    page, more = _list_subjects(tx, "exporter", request)
    rows = tx.session.execute(
        select(Lease.exporter_id, Lease.name).where(
            Lease.ended.is_(False), Lease.exporter_id.in_([exporter.id for exporter in page])
        )
    )
    held: dict[str | None, str] = {row.exporter_id: row.name for row in rows}
    return admin_pb2.ListExportersResponse(
        exporters=[messages.exporter_message(exporter, held.get(exporter.id, "")) for exporter in page],
        next_page_token=place_token(page[-1].name) if more else "",
    )


def _issue(
    tx: Transaction, actor: str, kind: Kind, namespace: str, name: str, lifetime: float, *, revoke_older: bool
) -> tuple[str, float, int]:
    subject = subjects.find_subject(tx, kind, namespace, name)
    revoked = revoke_tokens(tx, subject, actor) if revoke_older else 0
    return (*issue_token(tx, subject, lifetime, actor), revoked)


def _keeping_an_administrator(tx: Transaction, change: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run ``change``. Raises FAILED_PRECONDITION when nobody could administer the lab afterwards."""
    value = change(tx, *args, **kwargs)
    tx.session.flush()
    if not tx.session.scalar(select(func.count()).select_from(Client).where(Client.administrator.is_(True))):
        raise failed_precondition("the lab would be left without an administrator: make another one first")
    return value
