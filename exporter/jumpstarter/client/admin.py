# SPDX-License-Identifier: Apache-2.0
"""Administration of a jumpstarter.lab controller: clients, exporters, tokens, policies, the audit log.

async with connect_admin(config) as admin:
    created = await admin.create_client("alice", labels={"team": "ci"})

Every call but `whoami` needs a client that is an administrator. Names are plain ("alice"); they are looked up in the
namespace given to `connect_admin`. Every call raises `JumpstarterException`, one line.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from jumpstarter.client.admin_model import (
    AdminClientInfo,
    AdminExporterInfo,
    AuditRecord,
    Credential,
    Identity,
    PolicyInfo,
    PolicyRule,
    TokenInfo,
    duration_message,
    policy_message,
    time_message,
)
from jumpstarter.common.controller import error_from_rpc, open_channel, presented_tls
from jumpstarter.common.exceptions import ConfigurationError, ControllerError
from jumpstarter.config.client import ClientConfigV1Alpha1
from jumpstarter.config.exporter import ExporterConfigV1Alpha1
from jumpstarter_protocol.jumpstarter.admin.v1 import admin_pb2, admin_pb2_grpc

__all__ = [
    "AdminClient",
    "AdminClientInfo",
    "AdminExporterInfo",
    "AuditRecord",
    "Credential",
    "Identity",
    "PolicyInfo",
    "PolicyRule",
    "TokenInfo",
    "connect_admin",
]

#: Entries asked for at once.
_PAGE = 500


@asynccontextmanager
async def connect_admin(
    config: ClientConfigV1Alpha1 | ExporterConfigV1Alpha1, *, namespace: str | None = None, timeout: float = 30.0
) -> AsyncIterator[AdminClient]:
    """Connect with the identity of `config`.

    namespace: of the things to administer (default: the identity's own). timeout: seconds for each call.
    """
    space = namespace or config.metadata.namespace
    if not space:
        raise ConfigurationError(f"configuration {config.path or config.metadata.name} names no namespace")
    async with open_channel(config, tls=await presented_tls(config)) as channel:
        yield AdminClient(channel, space, f"controller {config.endpoint}", timeout)


@dataclass
class AdminClient:
    """The calls. Made by `connect_admin`. where: opens every error."""

    channel: grpc.aio.Channel = field(repr=False)
    namespace: str
    where: str
    timeout: float

    def __post_init__(self) -> None:
        self._stub: Any = admin_pb2_grpc.AdminServiceStub(self.channel)
        self._parent = f"namespaces/{self.namespace}"

    async def whoami(self) -> Identity:
        """Who this is to the controller. For every identity, exporters included."""
        answer = await self._ask("WhoAmI", admin_pb2.WhoAmIRequest(), "ask who this is")
        return Identity.from_message(answer)

    # --- clients -----------------------------------------------------------------------------------------------

    async def create_client(
        self,
        name: str,
        *,
        labels: Mapping[str, str] | None = None,
        username: str = "",
        administrator: bool = False,
        without_token: bool = False,
    ) -> tuple[AdminClientInfo, Credential | None]:
        """A new client, and its token unless `without_token`. username: its identity at an external issuer."""
        client = admin_pb2.Client(labels=labels or {}, username=username, administrator=administrator)
        request = admin_pb2.CreateClientRequest(
            parent=self._parent, client_id=name, client=client, without_token=without_token
        )
        answer = await self._ask("CreateClient", request, f'create client "{name}"')
        return AdminClientInfo.from_message(answer.client), Credential.from_message(answer)

    async def get_client(self, name: str) -> AdminClientInfo:
        """One client."""
        request = admin_pb2.GetRequest(name=self._name("clients", name))
        return AdminClientInfo.from_message(await self._ask("GetClient", request, f'get client "{name}"'))

    async def list_clients(self, selector: str = "") -> list[AdminClientInfo]:
        """All clients, or those with these labels."""
        found = self._pages("ListClients", admin_pb2.ListRequest(parent=self._parent, filter=selector), "clients")
        return [AdminClientInfo.from_message(client) async for client in found]

    async def update_client(
        self,
        name: str,
        *,
        labels: Mapping[str, str] | None = None,
        username: str | None = None,
        administrator: bool | None = None,
    ) -> AdminClientInfo:
        """Change what is not None. labels: all that the client shall have."""
        client = admin_pb2.Client(name=self._name("clients", name))
        mask = _fill(client, labels=labels, username=username, administrator=administrator)
        request = admin_pb2.UpdateClientRequest(client=client, update_mask=mask)
        return AdminClientInfo.from_message(await self._ask("UpdateClient", request, f'update client "{name}"'))

    async def delete_client(self, name: str, *, force: bool = False) -> None:
        """Delete a client and revoke its tokens. With active leases only by `force`, which ends them."""
        request = admin_pb2.DeleteRequest(name=self._name("clients", name), force=force)
        await self._ask("DeleteClient", request, f'delete client "{name}"')

    # --- exporters ---------------------------------------------------------------------------------------------

    async def create_exporter(
        self,
        name: str,
        *,
        labels: Mapping[str, str] | None = None,
        username: str = "",
        enabled: bool = True,
        without_token: bool = False,
    ) -> tuple[AdminExporterInfo, Credential | None]:
        """A new exporter, and its token unless `without_token`."""
        exporter = admin_pb2.Exporter(labels=labels or {}, username=username, enabled=enabled)
        request = admin_pb2.CreateExporterRequest(
            parent=self._parent,
            exporter_id=name,
            exporter=exporter,
            without_token=without_token,
            disabled=not enabled,
        )
        answer = await self._ask("CreateExporter", request, f'create exporter "{name}"')
        return AdminExporterInfo.from_message(answer.exporter), Credential.from_message(answer)

    async def get_exporter(self, name: str) -> AdminExporterInfo:
        """One exporter."""
        request = admin_pb2.GetRequest(name=self._name("exporters", name))
        return AdminExporterInfo.from_message(await self._ask("GetExporter", request, f'get exporter "{name}"'))

    async def list_exporters(self, selector: str = "") -> list[AdminExporterInfo]:
        """All exporters, or those with these labels."""
        found = self._pages("ListExporters", admin_pb2.ListRequest(parent=self._parent, filter=selector), "exporters")
        return [AdminExporterInfo.from_message(exporter) async for exporter in found]

    async def update_exporter(
        self,
        name: str,
        *,
        labels: Mapping[str, str] | None = None,
        username: str | None = None,
        enabled: bool | None = None,
    ) -> AdminExporterInfo:
        """Change what is not None. labels: all that administrators give the exporter."""
        exporter = admin_pb2.Exporter(name=self._name("exporters", name))
        mask = _fill(exporter, labels=labels, username=username, enabled=enabled)
        request = admin_pb2.UpdateExporterRequest(exporter=exporter, update_mask=mask)
        return AdminExporterInfo.from_message(await self._ask("UpdateExporter", request, f'update exporter "{name}"'))

    async def delete_exporter(self, name: str, *, force: bool = False) -> None:
        """Delete an exporter and revoke its tokens. While it is leased only by `force`, which ends the lease."""
        request = admin_pb2.DeleteRequest(name=self._name("exporters", name), force=force)
        await self._ask("DeleteExporter", request, f'delete exporter "{name}"')

    # --- tokens ------------------------------------------------------------------------------------------------

    async def issue_token(
        self, kind: str, name: str, *, lifetime: float | None = None, revoke_older: bool = False
    ) -> Credential:
        """A new token for a "client" or "exporter". lifetime: seconds (default: the lab's)."""
        request = admin_pb2.IssueTokenRequest(
            name=self._name(f"{kind}s", name), lifetime=duration_message(lifetime), revoke_older=revoke_older
        )
        answer = await self._ask("IssueToken", request, f'issue a token for {kind} "{name}"')
        return Credential.of(answer)

    async def list_tokens(self, kind: str, name: str) -> list[TokenInfo]:
        """The tokens that a "client" or "exporter" was given. Never the secrets."""
        request = admin_pb2.ListTokensRequest(name=self._name(f"{kind}s", name))
        answer = await self._ask("ListTokens", request, f'list the tokens of {kind} "{name}"')
        return [TokenInfo.from_message(token) for token in answer.tokens]

    async def revoke_tokens(self, kind: str, name: str, ids: Iterable[str] = ()) -> int:
        """Revoke tokens by their ids, or all of them; how many that were."""
        request = admin_pb2.RevokeTokensRequest(name=self._name(f"{kind}s", name), ids=list(ids))
        answer = await self._ask("RevokeTokens", request, f'revoke tokens of {kind} "{name}"')
        return int(answer.revoked)

    # --- policies ----------------------------------------------------------------------------------------------

    async def get_policy(self, name: str) -> PolicyInfo:
        """One access policy."""
        request = admin_pb2.GetRequest(name=self._name("policies", name))
        return PolicyInfo.from_message(await self._ask("GetPolicy", request, f'get policy "{name}"'))

    async def list_policies(self) -> list[PolicyInfo]:
        """All access policies."""
        found = self._pages("ListPolicies", admin_pb2.ListRequest(parent=self._parent), "policies")
        return [PolicyInfo.from_message(policy) async for policy in found]

    async def set_policy(self, name: str, exporters: str, rules: Iterable[PolicyRule]) -> PolicyInfo:
        """Create or replace a policy. exporters: selector, "" for all."""
        request = admin_pb2.SetPolicyRequest(
            parent=self._parent, policy_id=name, policy=policy_message(exporters, rules)
        )
        return PolicyInfo.from_message(await self._ask("SetPolicy", request, f'set policy "{name}"'))

    async def delete_policy(self, name: str) -> None:
        """Delete a policy."""
        request = admin_pb2.DeleteRequest(name=self._name("policies", name))
        await self._ask("DeletePolicy", request, f'delete policy "{name}"')

    # --- leases and the log ------------------------------------------------------------------------------------

    async def end_lease(self, name: str, reason: str = "") -> None:
        """End anybody's lease. reason: a line that its holder gets to read."""
        request = admin_pb2.EndLeaseRequest(name=self._name("leases", name), reason=reason)
        await self._ask("EndLease", request, f'end lease "{name}"')

    async def list_audit(
        self,
        *,
        lease: str = "",
        exporter: str = "",
        client: str = "",
        action: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = 100,
        everywhere: bool = False,
    ) -> list[AuditRecord]:
        """Entries of the audit log, the newest first, `limit` at most (None: all of them).

        action: part of the action's name. everywhere: of all namespaces, and of the controller itself.
        """
        request = admin_pb2.ListAuditRequest(
            parent="" if everywhere else self._parent,
            lease=lease,
            exporter=exporter,
            client=client,
            action=action,
            since=time_message(since),
            until=time_message(until),
        )
        found: list[AuditRecord] = []
        async for entry in self._pages("ListAudit", request, "entries", limit):
            found.append(AuditRecord.from_message(entry))
            if limit is not None and len(found) == limit:
                break
        return found

    # --- calls -------------------------------------------------------------------------------------------------

    def _name(self, kind: str, name: str) -> str:
        return f"{self._parent}/{kind}/{name}"

    async def _ask(self, method: str, request: Any, what: str) -> Any:
        try:
            return await getattr(self._stub, method)(request, timeout=self.timeout)
        except grpc.RpcError as error:
            if _code(error) is grpc.StatusCode.UNIMPLEMENTED:
                raise ControllerError(
                    f"{self.where}: cannot {what}: it has no administration service; a controller of Jumpstarter 0.9 "
                    "is administered through Kubernetes",
                    code="UNIMPLEMENTED",
                ) from None
            raise error_from_rpc(error, f"{self.where}: {what}") from None

    async def _pages(self, method: str, request: Any, items: str, limit: int | None = None) -> AsyncIterator[Any]:
        """Every item of every page."""
        request.page_size = _PAGE if limit is None else min(limit, _PAGE)
        what = f"list {'the audit log' if items == 'entries' else items}"
        while True:
            answer = await self._ask(method, request, what)
            for item in getattr(answer, items):
                yield item
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token


def _code(error: Any) -> Any:
    return error.code()


def _fill(message: Any, **fields: Any) -> FieldMask:
    """Set the fields that are not None; the mask that names them. Raises `ConfigurationError` when there are none."""
    changed = {name: value for name, value in fields.items() if value is not None}
    if not changed:
        # An empty mask would mean all fields, which is not what nothing means.
        raise ConfigurationError(f"nothing to change: give one of {', '.join(fields)}")
    for name, value in changed.items():
        if name == "labels":
            message.labels.update(value)
        else:
            setattr(message, name, value)
    return FieldMask(paths=list(changed))
