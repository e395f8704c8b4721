# SPDX-License-Identifier: Apache-2.0
"""An administrator of the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from controller_harness import LabFiles
from peers import Peer, controller

from jumpstarter_protocol.jumpstarter.admin.v1 import admin_pb2, admin_pb2_grpc

__all__ = ["AdminPeer", "admin_lab", "who_am_i"]

_SHARED = {
    "GetClient": "GetRequest",
    "GetExporter": "GetRequest",
    "GetPolicy": "GetRequest",
    "ListClients": "ListRequest",
    "ListExporters": "ListRequest",
    "ListPolicies": "ListRequest",
    "DeleteClient": "DeleteRequest",
    "DeleteExporter": "DeleteRequest",
    "DeletePolicy": "DeleteRequest",
}


class AdminPeer(Peer):
    """A client that calls AdminService."""

    def __init__(self, lab: LabFiles, config: Any, kind: str = "Client") -> None:
        super().__init__(lab, config, kind)
        self.stub = admin_pb2_grpc.AdminServiceStub(self.channel)

    async def do(self, method: str, **fields: Any) -> Any:
        """A call of AdminService."""
        request = getattr(admin_pb2, _SHARED.get(method, f"{method}Request"))(**fields)
        return await getattr(self.stub, method)(request, metadata=self.metadata, timeout=60)


@asynccontextmanager
async def admin_lab(lab: LabFiles) -> AsyncIterator[tuple[Any, AdminPeer]]:
    """A controller and its first administrator, "root"."""
    async with controller(lab) as running:
        root = AdminPeer(lab, lab.client("root", "--admin"))
        try:
            yield running, root
        finally:
            await root.close()


async def who_am_i(channel: grpc.aio.Channel) -> admin_pb2.WhoAmIResponse:
    """What WhoAmI answers on this channel."""
    return await admin_pb2_grpc.AdminServiceStub(channel).WhoAmI(admin_pb2.WhoAmIRequest(), timeout=60)
