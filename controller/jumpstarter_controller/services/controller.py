# SPDX-License-Identifier: Apache-2.0
"""jumpstarter.v1.ControllerService: exporters, tunnels, and the older calls of clients."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from sqlalchemy import select

from jumpstarter.common.enums import ExporterStatus
from jumpstarter_controller import exporters
from jumpstarter_controller.errors import Refused, failed_precondition, permission_denied
from jumpstarter_controller.identity import Caller, Identity
from jumpstarter_controller.lab import Lab
from jumpstarter_controller.leases.requests import (
    LeaseRequest,
    create_lease,
    find_lease,
    find_own_lease,
    release_lease,
)
from jumpstarter_controller.leases.schedule import exporter_topic, lease_topic
from jumpstarter_controller.services.credentials import authenticate
from jumpstarter_controller.services.listeners import Listeners, listener_topic
from jumpstarter_controller.services.messages import (
    conditions_message,
    duration_message,
    seconds_of,
    selector_from_message,
    selector_message,
    time_message,
)
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import Exporter, Lease
from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2

__all__ = ["ControllerService"]

#: Seconds that a dial waits for an exporter that is still getting ready.
_DIAL_WAIT = 30.0
_FAILED = {ExporterStatus.BEFORE_LEASE_HOOK_FAILED.value, ExporterStatus.AFTER_LEASE_HOOK_FAILED.value}


class ControllerService:
    """The service. router_endpoint: host:port that both ends of a tunnel connect to."""

    def __init__(self, lab: Lab, identity: Identity, router_endpoint: str) -> None:
        self._lab = lab
        self._identity = identity
        self._router_endpoint = router_endpoint
        self._listeners = Listeners(lab.bus)
        #: The newest Status stream of each exporter: only its end means that the exporter is gone.
        self._status_streams: dict[str, object] = {}

    # --- exporters ----------------------------------------------------------------------------------------------

    async def register(self, request: Any, context: Any) -> jumpstarter_pb2.RegisterResponse:
        """An exporter announces itself and its drivers."""
        caller = await authenticate(self._identity, context, "exporter")
        devices = [
            {"uuid": r.uuid, "parent": r.parent_uuid if r.HasField("parent_uuid") else None, "labels": dict(r.labels)}
            for r in request.reports
        ]
        uuid = await self._lab.change(exporters.register, caller, dict(request.labels), devices)
        return jumpstarter_pb2.RegisterResponse(uuid=uuid)

    async def unregister(self, request: Any, context: Any) -> jumpstarter_pb2.UnregisterResponse:
        """An exporter leaves."""
        caller = await authenticate(self._identity, context, "exporter")
        await self._lab.change(exporters.unregister, caller, request.reason)
        return jumpstarter_pb2.UnregisterResponse()

    async def report_status(self, request: Any, context: Any) -> jumpstarter_pb2.ReportStatusResponse:
        """An exporter tells its state."""
        caller = await authenticate(self._identity, context, "exporter")
        await self._lab.change(exporters.report_status, caller, request.status, request.message, request.release_lease)
        return jumpstarter_pb2.ReportStatusResponse()

    async def status(self, _: Any, context: Any) -> None:
        """Tell an exporter who holds it, now and whenever that changes."""
        caller = await authenticate(self._identity, context, "exporter")
        stream = self._status_streams[caller.id] = object()
        last: exporters.Assignment | None = None
        try:
            with self._lab.bus.subscribe(exporter_topic(caller.id)) as subscription:
                await self._lab.change(exporters.connected, caller)
                while True:
                    now = await self._lab.database.read(exporters.assignment, caller)
                    if now != last:
                        if last is not None and last.lease and now.lease and last.lease != now.lease:
                            # The exporter must see the end of the lease that it missed.
                            await context.write(jumpstarter_pb2.StatusResponse(leased=False))
                        last = now
                        await context.write(
                            jumpstarter_pb2.StatusResponse(
                                leased=now.lease is not None,
                                lease_name=now.lease,
                                client_name=now.client,
                                context=now.context,
                            )
                        )
                    await subscription.changed()
        finally:
            if self._status_streams.get(caller.id) is stream:
                del self._status_streams[caller.id]
                await self._lab.change(exporters.disconnected, caller)

    async def listen(self, request: Any, context: Any) -> None:
        """Tell an exporter of every client that dials, while it holds the lease."""
        caller = await authenticate(self._identity, context, "exporter")
        name = request.lease_name
        await self._lab.database.read(_check_listener, caller, name)
        with self._listeners.listening(caller.namespace, name) as listener:
            guard = asyncio.create_task(self._close_with_lease(caller, name, listener.close))
            try:
                async for token in listener.dials():
                    await context.write(
                        jumpstarter_pb2.ListenResponse(router_endpoint=self._router_endpoint, router_token=token)
                    )
            finally:
                guard.cancel()
                await asyncio.gather(guard, return_exceptions=True)

    async def _close_with_lease(self, caller: Caller, name: str, close: Any) -> None:
        with self._lab.bus.subscribe(lease_topic(caller.namespace, name)) as subscription:
            try:
                while True:
                    await self._lab.database.read(_check_listener, caller, name)
                    await subscription.changed()
            except Refused:
                close()

    # --- tunnels ------------------------------------------------------------------------------------------------

    async def dial(self, request: Any, context: Any) -> jumpstarter_pb2.DialResponse:
        """Open a tunnel to the exporter of the caller's lease; waits a while for an exporter that gets ready."""
        caller = await authenticate(self._identity, context, "client")
        name = request.lease_name
        lease = await self._lab.database.read(find_own_lease, caller, name)
        topics = [lease_topic(caller.namespace, name), listener_topic(caller.namespace, name)]
        if lease.exporter_id is not None:
            topics.append(exporter_topic(lease.exporter_id))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _DIAL_WAIT
        with self._lab.bus.subscribe(*topics) as subscription:
            while (reason := await self._not_yet(caller, name)) is not None:
                try:
                    async with asyncio.timeout_at(deadline):
                        await subscription.changed()
                except TimeoutError:
                    raise reason from None
        listener = self._listeners.get(caller.namespace, name)
        if listener is None:
            raise _not_listening(name)
        tokens = await self._lab.database.read(
            lambda tx: self._identity.dial_tokens(tx, caller.namespace, name, caller.id)
        )
        listener.dial(tokens["exporter"])
        return jumpstarter_pb2.DialResponse(
            router_endpoint=self._router_endpoint,
            router_token=tokens["client"],
        )

    async def _not_yet(self, caller: Caller, name: str) -> Refused | None:
        """Why the exporter cannot be reached yet. Raises `Refused` when waiting does not help."""
        status = await self._lab.database.read(_status_for_dial, caller, name)
        if status is ExporterStatus.AVAILABLE:
            return failed_precondition("exporter is not ready (status: Available)")
        return _not_listening(name) if self._listeners.get(caller.namespace, name) is None else None

    # --- older calls of clients ---------------------------------------------------------------------------------

    async def get_lease(self, request: Any, context: Any) -> jumpstarter_pb2.GetLeaseResponse:
        """A lease of the caller."""
        caller = await authenticate(self._identity, context, "client")
        lease = await self._lab.database.read(find_own_lease, caller, request.name, "GetLease permission denied")
        return jumpstarter_pb2.GetLeaseResponse(
            duration=duration_message(lease.duration),
            selector=selector_message(lease.selector),
            begin_time=time_message(lease.effective_begin),
            end_time=time_message(lease.effective_end),
            exporter_uuid=lease.exporter_id,
            conditions=conditions_message(lease.conditions),
        )

    async def request_lease(self, request: Any, context: Any) -> jumpstarter_pb2.RequestLeaseResponse:
        """Create a lease."""
        caller = await authenticate(self._identity, context, "client")
        wanted = LeaseRequest(
            selector=selector_from_message(request.selector),
            duration=seconds_of(request.duration) if request.HasField("duration") else None,
        )
        lease = await self._lab.change(create_lease, caller, wanted)
        return jumpstarter_pb2.RequestLeaseResponse(name=lease.name)

    async def release_lease(self, request: Any, context: Any) -> jumpstarter_pb2.ReleaseLeaseResponse:
        """Give a lease back, as its client or as the exporter that it holds."""
        caller = await authenticate(self._identity, context)
        if caller.kind == "exporter":
            await self._lab.change(exporters.release_by_exporter, caller, request.name)
        else:
            await self._lab.change(release_lease, caller, request.name)
        return jumpstarter_pb2.ReleaseLeaseResponse()

    async def list_leases(self, _: Any, context: Any) -> jumpstarter_pb2.ListLeasesResponse:
        """Names of the caller's leases that have not ended."""
        caller = await authenticate(self._identity, context, "client")
        return jumpstarter_pb2.ListLeasesResponse(names=await self._lab.database.read(_active_names, caller))

    async def get_service_endpoints(self, _: Any, context: Any) -> jumpstarter_pb2.GetServiceEndpointsResponse:
        """Where telemetry goes: nowhere, this controller takes none."""
        await authenticate(self._identity, context, "exporter")
        return jumpstarter_pb2.GetServiceEndpointsResponse()


def _not_listening(name: str) -> Refused:
    return Refused(grpc.StatusCode.UNAVAILABLE, f"exporter is not listening on lease {name}")


def _check_listener(tx: Transaction, caller: Caller, name: str) -> None:
    lease = find_lease(tx, caller.namespace, name)
    if lease.exporter_id != caller.id:
        raise permission_denied(f"permission denied: lease {name} is not held by {caller}")
    if lease.ended:
        raise failed_precondition(f"lease {name} has ended")


def _status_for_dial(tx: Transaction, caller: Caller, name: str) -> ExporterStatus:
    lease = find_own_lease(tx, caller, name)
    if lease.ended:
        raise failed_precondition(f"lease {name} has ended")
    exporter: Exporter | None = lease.exporter
    if exporter is None:
        raise failed_precondition(f"lease not active: {name} waits for an exporter")
    if not exporter.online or exporter.status == ExporterStatus.OFFLINE.value:
        raise failed_precondition("exporter is offline")
    status = ExporterStatus.from_proto(exporter.status)
    if exporter.status in _FAILED:
        word = "".join(part.capitalize() for part in status.name.split("_"))
        raise failed_precondition(f"exporter cannot be used (status: {word}): {exporter.status_message}")
    return status


def _active_names(tx: Transaction, caller: Caller) -> list[str]:
    names = select(Lease.name).where(Lease.client_id == caller.id, Lease.ended.is_(False)).order_by(Lease.sequence)
    return list(tx.session.scalars(names))
