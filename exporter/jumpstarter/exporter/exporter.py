# SPDX-License-Identifier: Apache-2.0
"""An exporter that works for a controller.

The drivers are built once and live as long as the exporter; their ids come from the exporter's name and their paths, so
they are the same after a restart. Registration only describes them. Leases come one after the other
(`jumpstarter.exporter.lease`), the connection to the controller is kept up by `jumpstarter.exporter.uplink`, and one
task (`Exporter._work`) decides what happens next.

An exporter that was killed in a lease begins it anew: what the killed process had left on is switched off, the
beforeLease hook runs again.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from jumpstarter.common.enums import ExporterStatus
from jumpstarter.common.runtime import runtime_directory
from jumpstarter.exporter.lease import LeaseRun
from jumpstarter.exporter.ledger import CallLedger
from jumpstarter.exporter.power_record import PowerRecord
from jumpstarter.exporter.session import Session
from jumpstarter.exporter.uplink import Assignment, Uplink
from jumpstarter.streams.tunnel import Routers
from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from jumpstarter.config.exporter import ExporterConfigV1Alpha1

__all__ = ["Exporter"]

logger = logging.getLogger("jumpstarter.exporter")

#: Seconds for what is said to the controller when the exporter stops.
_FAREWELL_SECONDS = 10.0

#: Seconds that the drivers may take to end, slow power supplies included.
_END_SECONDS = 60.0


class Exporter:
    """The exporter of a configuration. `serve` runs it, `stop` ends it.

    exit_on_lease_end: stop after the first lease (as the configuration says when None). on_state: called with one line
    for people whenever what the exporter does changes ("available", "lease x: held by alice").
    """

    def __init__(
        self,
        config: ExporterConfigV1Alpha1,
        *,
        exit_on_lease_end: bool | None = None,
        on_state: Callable[[str], None] | None = None,
    ) -> None:
        self.config = config
        self.exit_on_lease_end = config.exit_on_lease_end if exit_on_lease_end is None else exit_on_lease_end
        self._on_state = on_state or (lambda _: None)
        self._wake = asyncio.Event()
        self._stop = False
        self._after_lease = False
        self._unregister = True
        self._hurry = False
        self._exit_code = 0
        self._rested = False
        self._run: LeaseRun | None = None

    def stop(
        self, wait_for_lease_exit: bool = False, should_unregister: bool = True, exit_code: int | None = None
    ) -> None:
        """End `serve`, with the afterLease hook where there is a lease.

        wait_for_lease_exit: let a present lease go on to its own end. Called again: the lease ends without waiting for
        its hooks.
        """
        again = self._stop and not self._after_lease
        self._stop = True
        self._unregister = should_unregister
        self._after_lease = wait_for_lease_exit and not again
        if exit_code is not None:
            self._exit_code = exit_code
        if again:
            self._hurry = True
        if self._run is not None:
            if again:
                self._run.hurry()
            elif not wait_for_lease_exit:
                self._run.finish()
        self._wake.set()

    async def serve(self) -> int:
        """Serve leases until stopped; returns the exit code: 0, or 1 when a hook said so.

        Raises ConfigurationError for drivers that cannot be built, `RegistrationRefused`, `Superseded`. Whatever ends
        it, the device is left switched off and the drivers are closed.
        """
        config = self.config
        root = await asyncio.to_thread(config.instantiate)
        session = Session.from_config(config, root)
        session.logs.attach()
        # Names are a lab's own: two labs may have one of the same name on this host.
        record = PowerRecord(f"{config.endpoint or ''}/{config.metadata.namespace or ''}/{config.name}")
        try:
            await record.take_over(session)
            with runtime_directory() as directory:
                async with Routers(config.tls, config.grpcOptions) as routers:
                    return await self._serve(session, routers, directory)
        finally:
            await self._end(session)
            record.close()

    async def _end(self, session: Session) -> None:
        """Power off and close the drivers; one that never answers must not keep the process."""
        try:
            async with asyncio.timeout(_END_SECONDS):
                await session.holding.end()
                await session.end()
        except TimeoutError:
            logger.error("exporter %s: a driver did not end within %g s; giving it up", self.config.name, _END_SECONDS)

    async def _serve(self, session: Session, routers: Routers, directory: Path) -> int:
        uplink = Uplink(self.config, lambda: _register_request(session), self._assigned)
        ledger = CallLedger(uplink)
        connection = asyncio.create_task(uplink.run())
        telling = asyncio.create_task(ledger.run())
        work = asyncio.create_task(self._work(session, uplink, routers, ledger, directory))
        try:
            # The connection only ends by an error, which ends everything: no hooks then, the device is not ours now.
            await asyncio.wait([connection, telling, work], return_when=asyncio.FIRST_COMPLETED)
            for ended in (connection, telling):
                if ended.done():
                    ended.result()
            code = work.result()
            await self._farewell(uplink, ledger)
            return code
        finally:
            for task in (work, telling, connection):
                task.cancel()
            await asyncio.gather(work, telling, connection, return_exceptions=True)

    def _assigned(self, assignment: Assignment) -> None:
        if self._run is not None:
            self._run.update(assignment)
        self._wake.set()

    async def _work(
        self, session: Session, uplink: Uplink, routers: Routers, ledger: CallLedger, directory: Path
    ) -> int:
        """Leases, one after the other, until told to stop. Returns the exit code."""
        while not self._stop:
            self._wake.clear()
            assignment = uplink.assignment
            if assignment is not None and assignment.lease is not None:
                self._on_state(f"lease {assignment.lease}: held by {assignment.client}")
                run = LeaseRun(assignment, self.config, session, uplink, routers, ledger, directory)
                self._run = run
                try:
                    self._rested = await run.run(reset=not self._rested)
                finally:
                    self._run = None
                if run.exit_code is not None:
                    return run.exit_code
                if self.exit_on_lease_end:
                    logger.info("stopping after the lease")
                    return self._exit_code
                continue
            if assignment is not None:
                message = session.status_message if session.status is ExporterStatus.AVAILABLE else ""
                session.update_status(ExporterStatus.AVAILABLE, message)
                uplink.report(ExporterStatus.AVAILABLE, message)
                self._on_state("available")
            await self._wake.wait()
        return self._exit_code

    async def _farewell(self, uplink: Uplink, ledger: CallLedger) -> None:
        """Leave the controller, if it can be reached."""
        if not uplink.registered:
            return
        try:
            async with asyncio.timeout(1.0 if self._hurry else _FAREWELL_SECONDS):
                if not uplink.attached:
                    raise TimeoutError
                await ledger.told()
                if self._unregister:
                    await uplink.leave("Exporter stopped")
        except TimeoutError:
            logger.warning("exporter %s: the controller could not be told that it stops", self.config.name)


def _register_request(session: Session) -> jumpstarter_pb2.RegisterRequest:
    root = session.root_device
    return jumpstarter_pb2.RegisterRequest(
        labels={"jumpstarter.dev/name": session.name},
        reports=[d.report(root=root, parent=parent, name=name) for _, parent, name, d in root.enumerate()],
    )
