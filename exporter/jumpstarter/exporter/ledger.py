# SPDX-License-Identifier: Apache-2.0
"""Which driver calls were made on a lease, told to the controller for its audit log.

Calls wait in a bounded queue while the controller is away; what does not fit is counted, and the count is told.
Controllers that do not ask for calls (0.9) are told nothing. Arguments and results are not recorded.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import grpc

from jumpstarter_protocol.jumpstarter.lab.v1 import controller_pb2

if TYPE_CHECKING:
    from jumpstarter.exporter.uplink import Uplink

__all__ = ["CallLedger", "CallRecord"]

logger = logging.getLogger(__name__)

#: Calls that wait at most.
_KEPT = 10_000

#: Calls that are told at once.
_BATCH = 500

#: Characters of a driver's or method's name that are kept: a client can send any text instead of one.
_LONGEST = 200

#: Seconds that a call waits for others to be told with it.
_TOGETHER_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One driver call. started: seconds since the epoch. seconds: how long it took. code: gRPC status name."""

    lease: str
    client: str
    driver: str
    method: str
    kind: str
    started: float
    seconds: float
    code: str

    def to_proto(self) -> controller_pb2.DriverCallRecord:
        """As the message of the wire."""
        record = controller_pb2.DriverCallRecord(
            lease=self.lease,
            client=self.client,
            driver=self.driver,
            method=self.method,
            kind=self.kind,
            code=self.code,
        )
        record.started.FromNanoseconds(int(self.started * 1e9))
        record.duration.FromNanoseconds(max(0, int(self.seconds * 1e9)))
        return record


class CallLedger:
    """Records calls (`note`) and tells the controller (`run`)."""

    def __init__(self, uplink: Uplink) -> None:
        self._uplink = uplink
        self._calls: deque[CallRecord] = deque()
        self._dropped = 0
        self._noted = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def note(self, record: CallRecord) -> None:
        """Add a call."""
        if len(self._calls) >= _KEPT:
            self._dropped += 1  # the newest: the first calls say how it began
        else:
            self._calls.append(replace(record, driver=_text(record.driver), method=_text(record.method)))
        self._empty.clear()
        self._noted.set()

    async def run(self) -> None:
        """Tell what was noted, for ever."""
        while True:
            await self._noted.wait()
            await asyncio.sleep(_TOGETHER_SECONDS)
            self._noted.clear()
            while self._calls or self._dropped:
                await self._tell()
            self._empty.set()

    async def told(self) -> None:
        """Wait until everything is told; wrap it in a timeout."""
        await self._empty.wait()

    async def _tell(self) -> None:
        await self._uplink.wait_attached()
        if not self._uplink.lab:
            self._forget(len(self._calls), self._dropped)
            return
        batch = [self._calls[i] for i in range(min(_BATCH, len(self._calls)))]
        dropped = self._dropped
        request = controller_pb2.ReportCallsRequest(calls=[record.to_proto() for record in batch], dropped=dropped)
        started = time.monotonic()
        try:
            await self._uplink.call("ReportCalls", request, lab=True)
        except grpc.aio.AioRpcError as error:
            # Telling it again would be refused again. An older controller of ours does not take calls at all.
            level = logging.DEBUG if error.code() is grpc.StatusCode.UNIMPLEMENTED else logging.WARNING
            logger.log(level, "the controller does not take %d driver calls: %s", len(batch), error.details())
        except Exception:  # the audit must not end the sessions it is about
            logger.exception("%d driver calls could not be told", len(batch))
        logger.debug("%d driver calls told in %.3f s", len(batch), time.monotonic() - started)
        self._forget(len(batch), dropped)

    def _forget(self, calls: int, dropped: int) -> None:
        for _ in range(calls):
            self._calls.popleft()
        self._dropped -= dropped


def _text(name: str) -> str:
    """A name that a message and a database can hold: no control characters, no halves of characters."""
    shown = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in name[:_LONGEST])
    return shown if len(name) <= _LONGEST else f"{shown}..."
