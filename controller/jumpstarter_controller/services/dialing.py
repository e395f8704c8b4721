# SPDX-License-Identifier: Apache-2.0
"""From a client that dials to its exporter, at this controller or at another one."""

from __future__ import annotations

import asyncio
import logging
from typing import NamedTuple
from uuid import uuid4

import grpc

from jumpstarter.common.enums import ExporterStatus
from jumpstarter_controller import handover
from jumpstarter_controller.errors import Refused, failed_precondition
from jumpstarter_controller.identity import Caller
from jumpstarter_controller.lab import Lab
from jumpstarter_controller.leases.schedule import exporter_topic, lease_topic
from jumpstarter_controller.routers import ROUTERS_TOPIC, Routers, Tokens
from jumpstarter_controller.services.listeners import Invitation, Listeners
from jumpstarter_controller.state.database import Unavailable

__all__ = ["Dialer"]

logger = logging.getLogger(__name__)

#: Seconds that a dial waits for an exporter that is still getting ready.
_DIAL_WAIT = 30.0
#: Seconds that a dial is left to another controller before it is made anew, with tokens that are fresh.
_POSTED = 10.0


class _Posted(NamedTuple):
    """A dial that was handed over."""

    id: str
    listener: str
    tokens: Tokens
    until: float


class Dialer:
    """Makes tunnels."""

    def __init__(self, lab: Lab, routers: Routers, listeners: Listeners) -> None:
        self.lab = lab
        self.listeners = listeners
        self._routers = routers

    async def dial(self, caller: Caller, name: str) -> Invitation:
        """What the client is told. Raises `Refused` saying what was missing when it has waited."""
        attempt = _Attempt(self, caller, name)
        try:
            told = await attempt.go()
            return told if isinstance(told, Invitation) else await self._wait(attempt, caller, name)
        finally:
            await attempt.forget()

    async def _wait(self, attempt: _Attempt, caller: Caller, name: str) -> Invitation:
        place = await self.lab.database.read(handover.place_of, caller, name)
        topics = (
            lease_topic(caller.namespace, name),
            handover.listener_topic(caller.namespace, name),
            exporter_topic(place.exporter_id),
            handover.dial_topic(attempt.id),
            ROUTERS_TOPIC,
        )
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _DIAL_WAIT
        with self.lab.bus.subscribe(*topics) as subscription:
            while not isinstance(told := await attempt.go(), Invitation):
                try:
                    async with asyncio.timeout_at(min(deadline, attempt.until)):
                        await subscription.changed()
                except TimeoutError:
                    if loop.time() >= deadline:
                        if (late := await attempt.withdraw()) is not None:
                            return late
                        raise told from None
        return told

    async def tokens(self, caller: Caller, name: str, place: handover.Place) -> Tokens:
        """For a new tunnel. Raises UNAVAILABLE when there is no router."""
        return await self.lab.database.read(self._routers.tokens, caller.namespace, name, caller.id, dict(place.labels))


class _Attempt:
    """One dial, looked at again and again until it has succeeded."""

    def __init__(self, dialer: Dialer, caller: Caller, name: str) -> None:
        self.id = uuid4().hex
        self._dialer = dialer
        self._lab = dialer.lab
        self._caller = caller
        self._name = name
        self._posted: _Posted | None = None

    @property
    def until(self) -> float:
        """When this has to be looked at again at the latest (time of the event loop)."""
        return float("inf") if self._posted is None else self._posted.until

    async def go(self) -> Invitation | Refused:
        """The tunnel, or what is missing. Raises `Refused` when waiting does not help."""
        place = await self._lab.database.read(handover.place_of, self._caller, self._name)
        if self._posted is not None:
            told = await self._look(place)
            if told is not None:
                return told
        if place.status is ExporterStatus.AVAILABLE:
            return failed_precondition("exporter is not ready (status: Available)")
        missing = Refused(grpc.StatusCode.UNAVAILABLE, f"exporter is not listening on lease {self._name}")
        listener = self._dialer.listeners.get(self._caller.namespace, self._name)
        here = listener is not None and listener.session == place.listener
        if place.listener is None or not (here or self._lab.database.shared):
            return missing
        try:
            tokens = await self._dialer.tokens(self._caller, self._name, place)
        except Refused as refused:
            if refused.code is grpc.StatusCode.UNAVAILABLE:  # a router may come
                return refused
            raise
        if here and listener is not None:
            listener.dial(Invitation(tokens.endpoint, tokens.by_role["exporter"]))
            return Invitation(tokens.endpoint, tokens.by_role["client"])
        until = asyncio.get_running_loop().time() + _POSTED
        self._posted = _Posted(self.id, place.listener, tokens, until)
        await self._lab.database.write(
            handover.post, self.id, place.listener, tokens.endpoint, tokens.by_role["exporter"]
        )
        return missing

    async def _look(self, place: handover.Place) -> Invitation | Refused | None:
        """What has become of the dial that was handed over; None when it is to be made anew."""
        assert self._posted is not None
        taken, refused = await self._lab.database.read(handover.outcome, self.id)
        if taken:
            return self._told()
        if refused:
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, refused)
        if place.listener == self._posted.listener and asyncio.get_running_loop().time() < self._posted.until:
            return Refused(grpc.StatusCode.UNAVAILABLE, f"exporter is not listening on lease {self._name}")
        return await self.withdraw()

    def _told(self) -> Invitation:
        assert self._posted is not None
        return Invitation(self._posted.tokens.endpoint, self._posted.tokens.by_role["client"])

    async def withdraw(self) -> Invitation | None:
        """Give up the dial that was handed over; the tunnel, if it was taken before."""
        if self._posted is None:
            return None
        taken = await self._lab.database.write(handover.withdraw, self.id)
        told = self._told() if taken else None
        self._posted = None
        return told

    async def forget(self) -> None:
        """Leave nothing behind."""
        try:
            await self.withdraw()
        except Unavailable as error:
            logger.info("a dial of lease %s stays behind until it is too old: %s", self._name, error)
