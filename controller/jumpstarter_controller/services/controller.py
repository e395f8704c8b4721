# SPDX-License-Identifier: Apache-2.0
"""jumpstarter.v1.ControllerService: exporters, tunnels, and the older calls of clients."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import grpc
from sqlalchemy import select

from jumpstarter_controller import exporters, handover
from jumpstarter_controller.errors import Refused
from jumpstarter_controller.identity import Caller, Identity
from jumpstarter_controller.lab import Lab
from jumpstarter_controller.leases.requests import (
    LeaseRequest,
    create_lease,
    find_own_lease,
    release_lease,
)
from jumpstarter_controller.leases.schedule import exporter_topic, lease_topic
from jumpstarter_controller.routers import Routers
from jumpstarter_controller.services.credentials import authenticate
from jumpstarter_controller.services.dialing import Dialer
from jumpstarter_controller.services.listeners import Invitation, Listener, Listeners, backlog_full
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

logger = logging.getLogger(__name__)


class ControllerService:
    """The service. routers: hands out tokens of new tunnels."""

    def __init__(self, lab: Lab, identity: Identity, routers: Routers) -> None:
        self._lab = lab
        self._identity = identity
        self._listeners = Listeners()
        self._dialer = Dialer(lab, routers, self._listeners)

    # --- exporters ----------------------------------------------------------------------------------------------

    async def register(self, request: Any, context: Any) -> jumpstarter_pb2.RegisterResponse:
        """An exporter announces itself and its drivers."""
        caller = await authenticate(self._identity, context, "exporter")
        devices = [
            {
                "uuid": r.uuid,
                "parent": r.parent_uuid if r.HasField("parent_uuid") else None,
                "labels": dict(r.labels),
                "description": r.description,
            }
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
        """Tell an exporter who holds it, now and whenever that changes. An outage of the database changes nothing."""
        caller = await authenticate(self._identity, context, "exporter")
        streams = self._lab.status_streams
        stream = streams[caller.id] = object()
        last: exporters.Assignment | None = None
        try:
            with self._lab.bus.subscribe(exporter_topic(caller.id)) as subscription:
                await self._lab.change(exporters.connected, caller, self._lab.replica)
                while True:
                    now, home = await self._lab.database.patient_read(_view, caller)
                    if streams.get(caller.id) is not stream or home not in (None, self._lab.replica):
                        # Whoever came later is the exporter; two of them would fight for the device.
                        text = f"superseded: another process has registered as {caller}"
                        raise Refused(grpc.StatusCode.ABORTED, text)
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
            if streams.get(caller.id) is stream:
                del streams[caller.id]
                await self._lab.disconnected(caller)

    async def listen(self, request: Any, context: Any) -> None:
        """Tell an exporter of every client that dials, while it holds the lease."""
        caller = await authenticate(self._identity, context, "exporter")
        name = request.lease_name
        await self._lab.database.read(handover.check_listener, caller, name)
        with self._listeners.listening(caller.namespace, name) as listener:
            attendant = asyncio.create_task(self._attend(caller, name, listener))
            try:
                await self._lab.database.write(handover.begin_listening, caller, name, listener.session)
                async for endpoint, token in listener.dials():
                    await context.write(jumpstarter_pb2.ListenResponse(router_endpoint=endpoint, router_token=token))
            finally:
                attendant.cancel()
                await asyncio.gather(attendant, return_exceptions=True)

    async def _attend(self, caller: Caller, name: str, listener: Listener) -> None:
        """Take the dials that other controllers hand over; close the listener when it does not count any more."""
        database, session = self._lab.database, listener.session
        topics = [
            lease_topic(caller.namespace, name),
            handover.listener_topic(caller.namespace, name),
            handover.dials_topic(session),
        ]
        try:
            with self._lab.bus.subscribe(*topics) as subscription:
                while True:
                    await subscription.changed()  # the first time, by this very stream
                    if await database.patient_read(handover.attend, caller, name, session):
                        refusal = backlog_full().message
                        dials = await database.patient_write(handover.take, session, listener.room, refusal)
                        for endpoint, token in dials:
                            listener.dial(Invitation(endpoint, token))
        except Refused as refused:
            logger.debug("Listen of %s ends: %s", caller, refused)
        except Exception:
            logger.exception("Listen of %s for lease %s failed", caller, name)
        finally:
            listener.close()

    # --- tunnels ------------------------------------------------------------------------------------------------

    async def dial(self, request: Any, context: Any) -> jumpstarter_pb2.DialResponse:
        """Open a tunnel to the exporter of the caller's lease; waits a while for an exporter that gets ready."""
        caller = await authenticate(self._identity, context, "client")
        begin = time.perf_counter()
        endpoint, token = await self._dialer.dial(caller, request.lease_name)
        self._lab.database.measure("dial", time.perf_counter() - begin)
        return jumpstarter_pb2.DialResponse(router_endpoint=endpoint, router_token=token)

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


def _view(tx: Transaction, caller: Caller) -> tuple[exporters.Assignment, str | None]:
    """Who holds the exporter, and the controller that it is connected to."""
    exporter = tx.session.get(Exporter, caller.id)
    home = exporter.replica if exporter is not None and exporter.connected else None
    return exporters.assignment(tx, caller), home


def _active_names(tx: Transaction, caller: Caller) -> list[str]:
    names = select(Lease.name).where(Lease.client_id == caller.id, ~Lease.ended).order_by(Lease.sequence)
    return list(tx.session.scalars(names))
