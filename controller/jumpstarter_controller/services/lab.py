# SPDX-License-Identifier: Apache-2.0
"""jumpstarter.lab.v1.LabControllerService: what this controller offers beyond Jumpstarter 0.9."""

from __future__ import annotations

from contextlib import aclosing
from importlib.metadata import version
from typing import Any

from jumpstarter_controller.errors import invalid
from jumpstarter_controller.identity import Caller, Identity
from jumpstarter_controller.lab import Lab
from jumpstarter_controller.leases.requests import create_lease, find_own_lease
from jumpstarter_controller.leases.watch import LeaseView, QueueViews
from jumpstarter_controller.services.calls import CallRecord, record_calls
from jumpstarter_controller.services.credentials import authenticate
from jumpstarter_controller.services.details import detail_message, exporter_details
from jumpstarter_controller.services.messages import (
    LabelViews,
    check_parent,
    duration_message,
    lease_message,
    lease_request,
    name_in,
    page_token,
    place_token,
    seconds_of,
    selector_of,
    time_message,
    time_of,
)
from jumpstarter_protocol.jumpstarter.client.v1 import client_pb2
from jumpstarter_protocol.jumpstarter.lab.v1 import controller_pb2

__all__ = ["FEATURES", "LabService"]

#: What GetInfo names.
FEATURES = (
    "calls",
    "exporter-details",
    "heartbeat",
    "minimum-duration",
    "no-match-wait",
    "reservations",
    "spot",
    "update-mask",
    "watch",
)
#: A heartbeat that is asked for more often than this is a mistake.
_SHORTEST_HEARTBEAT = 1.0
_LONGEST_HEARTBEAT = 86400.0
#: Beats that may get lost before a lease ends, plus one.
_BEATS = 3
_MAX_CALLS = 1000


class LabService:
    """The service."""

    def __init__(self, lab: Lab, identity: Identity, labels: LabelViews | None = None) -> None:
        self._lab = lab
        self._identity = identity
        self._labels = labels or LabelViews()
        self._views = QueueViews(lab.database, lab.catalogue)

    async def _caller(self, context: Any) -> Caller:
        return await authenticate(self._identity, context, "client")

    async def get_info(self, _: Any, context: Any) -> controller_pb2.GetInfoResponse:
        """What this controller is. Anybody may ask."""
        return controller_pb2.GetInfoResponse(version=version("jumpstarter-lab"), features=FEATURES)

    async def create_lease(self, request: Any, context: Any) -> client_pb2.Lease:
        """Ask for an exporter, with a heartbeat and waiting for a match if wanted."""
        caller = await self._caller(context)
        check_parent(caller, request.parent)
        wanted = lease_request(
            request,
            heartbeat=_heartbeat(request),
            wait_for_match=_waits(request),
            minimum=time_of(request, "minimum_duration"),
        )
        lease = await self._lab.change(create_lease, caller, wanted, self._lab.limits, self._lab.catalogue)
        return lease_message(lease, self._lab.database.clock(), self._labels)

    async def watch_lease(self, request: Any, context: Any) -> None:
        """Write the lease's state now and after every change, until it has ended."""
        caller = await self._caller(context)
        name = name_in(caller, "leases", request.name)
        last: bytes | None = None
        async with aclosing(self._views.views(caller.namespace, name)) as views:
            async for view in views:
                message = self._state(view)
                told = _without_clock(message)
                if told != last:
                    last = told
                    await context.write(message)

    def _state(self, view: LeaseView) -> controller_pb2.LeaseState:
        lease = view.lease
        return controller_pb2.LeaseState(
            lease=lease_message(lease, self._lab.database.clock(), self._labels),
            ended=lease.ended,
            position=view.position,
            waiting=view.waiting,
            spot=lease.spot,
            preempted_at=time_message(lease.preempted_at),
            message=view.message,
        )

    async def heartbeat(self, request: Any, context: Any) -> controller_pb2.HeartbeatResponse:
        """The holder is alive. Writes nothing: see `Heartbeats`."""
        caller = await self._caller(context)
        name = name_in(caller, "leases", request.name)
        lease = await self._lab.database.read(find_own_lease, caller, name)
        within = self._lab.beats.beat(lease, self._lab.database.clock())
        return controller_pb2.HeartbeatResponse(within=duration_message(within / _BEATS))

    async def list_exporters(self, request: Any, context: Any) -> controller_pb2.ListExportersResponse:
        """Exporters, by name, with their drivers and who holds them."""
        caller = await self._caller(context)
        check_parent(caller, request.parent)
        wanted = selector_of("filter", request.filter)
        page, more = await self._lab.database.read(
            exporter_details, caller.namespace, wanted, page_token(request.page_token), request.page_size
        )
        return controller_pb2.ListExportersResponse(
            exporters=[detail_message(detail, self._labels, request.show_hidden_labels) for detail in page],
            next_page_token=place_token(page[-1].exporter.name) if more else "",
        )

    async def report_calls(self, request: Any, context: Any) -> controller_pb2.ReportCallsResponse:
        """Driver calls that an exporter has served, for the audit log."""
        caller = await authenticate(self._identity, context, "exporter")
        if len(request.calls) > _MAX_CALLS:
            raise invalid(f"at most {_MAX_CALLS} calls can be reported at once, got {len(request.calls)}")
        calls = [
            CallRecord(
                lease=call.lease,
                client=call.client,
                driver=call.driver,
                method=call.method,
                kind=call.kind,
                started=seconds_of(call.started),
                duration=seconds_of(call.duration),
                code=call.code,
            )
            for call in request.calls
        ]
        await self._lab.database.write(record_calls, caller, calls, request.dropped)
        return controller_pb2.ReportCallsResponse()


def _waits(request: Any) -> bool:
    return bool(request.no_match == controller_pb2.CreateLeaseRequest.NO_MATCH_WAIT)


def _heartbeat(request: Any) -> float | None:
    heartbeat = time_of(request, "heartbeat")
    if heartbeat is not None and not _SHORTEST_HEARTBEAT <= heartbeat <= _LONGEST_HEARTBEAT:
        raise invalid(
            f"heartbeat must be {_SHORTEST_HEARTBEAT:g}s to {_LONGEST_HEARTBEAT:g}s, got {heartbeat:g}s; leave it out "
            "for a lease that needs none"
        )
    return heartbeat


def _without_clock(message: controller_pb2.LeaseState) -> bytes:
    """What has to differ for a new message: not the time that the lease has run."""
    copy = controller_pb2.LeaseState()
    copy.CopyFrom(message)
    copy.lease.ClearField("effective_duration")
    return copy.SerializeToString(deterministic=True)
