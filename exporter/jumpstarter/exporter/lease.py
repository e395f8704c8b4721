# SPDX-License-Identifier: Apache-2.0
"""One lease on the exporter's side, from the controller's word to the device's rest.

One task (`LeaseRun.run`) decides everything: drivers reset, clients let in, beforeLease hook, ready, end, afterLease
hook, the lease given back, power off. What happens outside only sets flags that this task looks at: `update` (the
controller says something), `finish` (the exporter stops), `hurry`.

Clients may connect from the first moment: while the beforeLease hook runs they see its output live, and their driver
calls wait. An outage of the controller is no event here; only the next dial needs it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import grpc

from jumpstarter.common.enums import ExporterStatus
from jumpstarter.common.exceptions import JumpstarterException
from jumpstarter.exporter.backoff import Backoff
from jumpstarter.exporter.door import ClientDoor
from jumpstarter.exporter.hooks import HookAction, HookContext, HookOutcome, run_hook
from jumpstarter.exporter.ledger import CallRecord
from jumpstarter.exporter.server import UnixListener, serve_on
from jumpstarter.exporter.uplink import Assignment, Uplink
from jumpstarter.streams.sockets import connect_unix
from jumpstarter.streams.tunnel import Routers, bridge_tunnel
from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2

if TYPE_CHECKING:
    from jumpstarter.config.exporter import ExporterConfigV1Alpha1
    from jumpstarter.exporter.hooks import Moment
    from jumpstarter.exporter.ledger import CallLedger
    from jumpstarter.exporter.session import Session

__all__ = ["LeaseRun"]

logger = logging.getLogger("jumpstarter.exporter")

#: Seconds that a client gets to ask for the last status before its tunnel closes.
_LAST_LOOK_SECONDS = 1.0

#: Seconds that the answer to that question may take through the tunnel.
_ANSWER_SECONDS = 0.3

#: Seconds that the client of a lease that could not be prepared gets to see why.
_FAILURE_LOOK_SECONDS = 2.0

#: Seconds between asking the controller to take a lease back and asking again.
_RELEASE_SECONDS = 10.0

#: A stopping exporter does not wait longer than this for a controller that is away.
_STOP_SECONDS = 5.0

#: Codes with which an exporter's ReleaseLease is refused by controllers that know only ReportStatus(release_lease).
_NO_RELEASE = frozenset(
    {
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


class _LeaseContext:
    """What the session's EndSession sets."""

    def __init__(self, requested: asyncio.Event) -> None:
        self.end_session_requested = requested


class LeaseRun:
    """A lease that holds this exporter.

    directory: private, for the sockets. `exit_code` is set when the exporter has to stop because of a hook.
    """

    def __init__(
        self,
        assignment: Assignment,
        config: ExporterConfigV1Alpha1,
        session: Session,
        uplink: Uplink,
        routers: Routers,
        ledger: CallLedger,
        directory: Path,
    ) -> None:
        assert assignment.lease is not None
        self.name: str = assignment.lease
        self.exit_code: int | None = None
        self._assignment = assignment
        self._config = config
        self._session = session
        self._uplink = uplink
        self._routers = routers
        self._ledger = ledger
        self._directory = directory
        self._over = asyncio.Event()  # the lease shall end: by the controller, the client, or the exporter
        self._lost = asyncio.Event()  # the controller has given the exporter to nobody, or to somebody else
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._tunnels: set[asyncio.Task[None]] = set()

    # What others say -------------------------------------------------------------------------------------------

    def update(self, assignment: Assignment) -> None:
        """The controller says who holds the exporter."""
        if assignment.lease != self.name:
            if not self._lost.is_set():
                logger.info("lease %s has ended", self.name)
            self._lost.set()
            self._over.set()
            self._close_tunnels()
            return
        before, self._assignment = self._assignment.client, assignment
        if assignment.client != before:
            logger.info("lease %s was transferred from %s to %s", self.name, before, assignment.client)
            if not self._uplink.lab:
                # The router of a 0.9 controller leaves the old client in. Ours does not, and knows which tunnel is
                # whose; a new client's that was quick is not hurt then.
                self._close_tunnels()

    def finish(self) -> None:
        """The exporter stops: end the lease."""
        self._stopping.set()
        self._over.set()

    def hurry(self) -> None:
        """End without waiting for hooks."""
        self.finish()
        self._hurry.set()

    # The life of the lease -------------------------------------------------------------------------------------

    async def run(self, reset: bool) -> bool:
        """Serve the lease until it is over. reset: the drivers are not in their rest state yet.

        Returns whether they are now, so that the next lease need not reset them.
        """
        session = self._session
        session.uuid = uuid4()  # clients see by it whether what they left here is still there
        session.logs.forget()
        session.motd = self._config.motd or ""
        session.lease_context = _LeaseContext(self._over)
        logger.info("lease %s: held by %s", self.name, self._assignment.client or "an unknown client")
        try:
            async with AsyncExitStack() as stack:
                hooks = UnixListener(str(self._directory / "hook.sock"))
                clients = UnixListener(str(self._directory / "client.sock"))
                await stack.enter_async_context(serve_on(session, hooks))
                door = await stack.enter_async_context(serve_on(ClientDoor(session, self._note), clients, grace=0))
                listening = asyncio.create_task(self._listen(door))
                stack.push_async_callback(self._stop_clients, listening)
                await self._serve(reset)
        except Exception as error:  # whatever it was: the device is given back, and so is the lease
            logger.exception("lease %s failed", self.name)
            self._status(ExporterStatus.BEFORE_LEASE_HOOK_FAILED, f"the exporter failed: {error}")
            await self._release()
        finally:
            session.lease_context = None
        await session.holding.end()
        rested = await session.recycle()
        logger.info("lease %s: done", self.name)
        return rested

    async def _serve(self, reset: bool) -> None:
        if await self._before(reset):
            await self._over.wait()
            await self._after()
        await self._release()

    def _status(self, status: ExporterStatus, message: str = "") -> None:
        self._session.update_status(status, message)
        self._uplink.report(status, message)

    async def _before(self, reset: bool) -> bool:
        """Get the device ready. False when that failed, and the lease has to go back."""
        hook = self._config.hooks.before_lease
        if reset or hook is not None:
            self._status(ExporterStatus.BEFORE_LEASE_HOOK, "Running beforeLease hook" if hook else "Resetting drivers")
        if reset:
            try:
                # In the loop: drivers that read a device all the time start to do so here.
                self._session.root_device.reset()
            except Exception as error:  # noqa: BLE001 (drivers may fail in any way; the client is told)
                await self._failed(f"drivers cannot be reset: {str(error) or type(error).__name__}")
                return False
        outcome = await self._hook("beforeLease")
        if outcome.action in (HookAction.END_LEASE, HookAction.EXIT):
            if outcome.action is HookAction.EXIT:
                self.exit_code = 1
            await self._failed(outcome.message)
            return False
        if outcome.motd:
            motd = (self._config.motd or "").rstrip("\n")
            self._session.motd = "\n".join(part for part in (motd, outcome.motd) if part)
        if not self._over.is_set():
            self._status(ExporterStatus.LEASE_READY, outcome.status_message)
            logger.info("lease %s: ready", self.name)
        return True

    async def _failed(self, message: str) -> None:
        """Say that the lease cannot be served, and give the client a moment to hear why."""
        self._status(ExporterStatus.BEFORE_LEASE_HOOK_FAILED, message)
        await _until(_FAILURE_LOOK_SECONDS, self._lost, self._hurry)

    async def _after(self) -> None:
        """Take the device back from the client, and run the afterLease hook."""
        session, hook = self._session, self._config.hooks.after_lease
        status = ExporterStatus.AFTER_LEASE_HOOK
        if hook is not None:
            self._status(status, "Running afterLease hook")
        else:
            session.update_status(status, "The lease is ending")
        # What a holder switched on goes off before the hook starts, not in the middle of it.
        await session.holding.end()
        outcome = await self._hook("afterLease")
        if outcome.action in (HookAction.END_LEASE, HookAction.EXIT):
            if outcome.action is HookAction.EXIT:
                self.exit_code = 1
            self._status(ExporterStatus.AFTER_LEASE_HOOK_FAILED, outcome.message)
        else:
            session.update_status(ExporterStatus.AVAILABLE, outcome.status_message)
        if self._tunnels:
            await self._last_look()

    async def _last_look(self) -> None:
        """Keep the tunnels until the clients have seen how it ended and closed them, but not for long."""
        gone = asyncio.create_task(asyncio.wait(set(self._tunnels)))
        seen = asyncio.create_task(self._session.wait_status_seen())
        hurried = asyncio.create_task(self._hurry.wait())
        try:
            await asyncio.wait([gone, seen, hurried], timeout=_LAST_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if seen.done() and not gone.done():
                await asyncio.wait([gone, hurried], timeout=_ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (gone, seen, hurried):
                task.cancel()

    async def _hook(self, moment: Moment) -> HookOutcome:
        hooks = self._config.hooks
        hook = hooks.before_lease if moment == "beforeLease" else hooks.after_lease
        if hook is None:
            return HookOutcome(HookAction.CONTINUE)
        if self._hurry.is_set():
            return HookOutcome(HookAction.WARN, f"{moment} hook was left out: the exporter was stopped in a hurry")
        context = HookContext(
            host=str(self._directory / "hook.sock"),
            lease_name=self.name,
            client_name=self._assignment.client,
            exporter_name=self._config.name,
            details=_variables(self._assignment.context),
        )
        running = asyncio.create_task(run_hook(hook, moment, context, self._session))
        hurried = asyncio.create_task(self._hurry.wait())
        try:
            await asyncio.wait([running, hurried], return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return running.result()
            return HookOutcome(HookAction.WARN, f"{moment} hook was ended: the exporter was stopped in a hurry")
        finally:
            running.cancel()
            hurried.cancel()
            await asyncio.gather(running, hurried, return_exceptions=True)

    # Giving the lease back -------------------------------------------------------------------------------------

    async def _release(self) -> None:
        """Make the controller take the lease back, unless it has. Waits for one that is away, unless stopping."""
        asking = asyncio.create_task(self._ask_for_release())
        try:
            await _until(None, self._lost, self._stopping)
            if not self._lost.is_set():
                await _until(_STOP_SECONDS, self._lost, self._hurry)
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _ask_for_release(self) -> None:
        """Ask until the controller says, on the Status stream, that the lease is no more."""
        if self._lost.is_set():
            return
        while True:
            try:
                await self._uplink.call("ReleaseLease", jumpstarter_pb2.ReleaseLeaseRequest(name=self.name))
            except grpc.aio.AioRpcError as error:
                logger.debug("ReleaseLease %s: %s", self.name, error.details())
                if error.code() in _NO_RELEASE:
                    await self._release_by_status()
            await asyncio.sleep(_RELEASE_SECONDS)

    async def _release_by_status(self) -> None:
        request = jumpstarter_pb2.ReportStatusRequest(
            status=ExporterStatus.AFTER_LEASE_HOOK.to_proto(), message="Releasing the lease", release_lease=True
        )
        try:
            await self._uplink.call("ReportStatus", request)
        except grpc.aio.AioRpcError as error:
            logger.warning("lease %s cannot be released: %s", self.name, error.details())

    # Clients ---------------------------------------------------------------------------------------------------

    async def _listen(self, socket: str) -> None:
        """Take the clients that dial, for as long as this runs; again after each outage."""
        backoff = Backoff()
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                async for dial in self._uplink.listen(self.name):
                    tunnel = asyncio.create_task(self._tunnel(socket, dial))
                    self._tunnels.add(tunnel)
                    tunnel.add_done_callback(self._tunnels.discard)
            except grpc.aio.AioRpcError as error:
                # The lease has ended, most likely; the Status stream will say so.
                logger.debug("Listen on lease %s: %s", self.name, error.details())
            except Exception:  # without listening no client would ever come in again
                logger.exception("lease %s: listening for clients failed", self.name)
            backoff.worked(loop.time() - began)
            await backoff.wait()

    async def _tunnel(self, socket: str, dial: Any) -> None:
        if self._lost.is_set():
            return  # a dial that was under way when the lease ended
        try:
            stream = await connect_unix(socket)
            await bridge_tunnel(stream, dial.router_endpoint, dial.router_token, routers=self._routers)
        except (JumpstarterException, OSError) as error:
            logger.info("lease %s: a client's tunnel ended: %s", self.name, error)
        except Exception:  # one client's tunnel is no reason to end the lease
            logger.exception("lease %s: a client's tunnel failed", self.name)

    def _close_tunnels(self) -> None:
        for tunnel in self._tunnels:
            tunnel.cancel()

    async def _stop_clients(self, listening: asyncio.Task[None]) -> None:
        self._close_tunnels()
        listening.cancel()
        for result in await asyncio.gather(listening, *self._tunnels, return_exceptions=True):
            if isinstance(result, Exception):
                logger.warning("lease %s: %s: %s", self.name, type(result).__name__, result)

    def _note(self, driver: str, method: str, kind: str, began: float, seconds: float, code: str) -> None:
        client = self._assignment.client
        self._ledger.note(CallRecord(self.name, client, driver, method, kind, began, seconds, code))


def _variables(context: Mapping[str, str]) -> dict[str, str]:
    """A lease's context as a hook's variables. A client chose the keys, so they cannot be the names (LD_PRELOAD)."""
    return {f"LEASE_CONTEXT_{re.sub(r'[^A-Za-z0-9]', '_', key).upper()}": value for key, value in context.items()}


async def _until(seconds: float | None, *events: asyncio.Event) -> None:
    """Wait for one of the events, for so long at most."""
    tasks = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
