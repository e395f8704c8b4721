# SPDX-License-Identifier: Apache-2.0
"""Hold a lease: get it, keep it, notice its loss, give it back.

async with connect_controller(config) as controller:
    async with hold_lease(controller, LeaseWish(selector="board=rpi4")) as held:
        async with held.serve_unix("/run/me/board.sock") as path:
            ...
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio

from jumpstarter.client.backoff import Backoff
from jumpstarter.client.keeping import Renewal, keep_alive
from jumpstarter.client.records import LeaseInfo, LeaseState, LeaseWish
from jumpstarter.common.exceptions import AuthenticationError, ConnectionError, LeaseError

if TYPE_CHECKING:
    from jumpstarter.client.controller import ControllerClient
    from jumpstarter.client.lease_socket import LeaseSocket

__all__ = ["HEARTBEAT_SECONDS", "HeldLease", "hold_lease"]

logger = logging.getLogger(__name__)

#: A lease whose holder was not heard of for so long ends, unless its wish says otherwise.
HEARTBEAT_SECONDS = 60.0
#: For giving a lease back when the controller cannot be reached at that moment.
_GIVE_BACK_SECONDS = 10.0
#: For creating a lease, likewise, when there is no acquisition timeout.
_CREATE_SECONDS = 30.0


class HeldLease:
    """A lease that is held; made by `hold_lease`.

    controller: where. name: of the lease. own: it was created here. release: give it back at the end; may be changed.
    state: as the controller told it last. lost: done when the lease is lost, with one line saying why; it is never lost
    by an outage alone.
    """

    def __init__(
        self,
        controller: ControllerClient,
        name: str,
        *,
        refusal: str,
        own: bool,
        release: bool,
        dial_timeout: float,
        on_state: Callable[[LeaseState], None] | None,
    ) -> None:
        self.controller = controller
        self.name = name
        self.own = own
        self.release = release
        self.dial_timeout = dial_timeout
        self.state = LeaseState(LeaseInfo("", name), ended=False)
        loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[str] = loop.create_future()
        #: Of the last `serve_unix`.
        self.socket: LeaseSocket | None = None
        self._unwatched = False
        self._refusal = refusal
        self._on_state = on_state
        self._acquired: asyncio.Future[None] = loop.create_future()
        self._tasks: list[asyncio.Task[None]] = []
        self._renewal: Renewal | None = None

    @property
    def info(self) -> LeaseInfo:
        """The lease, as the controller told it last."""
        return self.state.lease

    @property
    def where(self) -> str:
        """How messages name it."""
        return f"{self.controller.where}: lease {self.name}"

    # --- the life of it ----------------------------------------------------------------------------------------

    def start(self, heartbeat: float | None, renewal: Renewal | None) -> None:
        """Watch it and keep it, from now on."""
        self._spawn(self._watch())
        if heartbeat is not None:
            # A third: it survives two that get lost.
            self._spawn(keep_alive(self.controller, self.name, heartbeat / 3))
        if renewal is not None:
            self._renewal = renewal
            self._spawn(self._renew(renewal))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            # A mistake of ours (or of `on_state`): nobody watches the lease any more.
            logger.error("%s cannot be watched any more", self.where, exc_info=error)
            self._unwatched = self._unwatched or not self.lost.done()
            self._lose(f"lease {self.name} cannot be watched any more: {error!r}", error)

    async def stop(self) -> None:
        """Stop watching and keeping it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._acquired.done() and not self._acquired.cancelled():
            self._acquired.exception()  # whoever waited for it has gone: asyncio shall not complain

    async def acquired(self, timeout: float | None) -> None:
        """Return when it holds an exporter. timeout: seconds. Raises LeaseError."""
        done, _ = await asyncio.wait({self._acquired}, timeout=timeout)
        if done:
            self._acquired.result()
            return
        why = self.state.line or "the controller has not told why"
        raise LeaseError(
            f"{self.where}: {self._refusal} within {timeout:g} s: {why}",
            code="DEADLINE_EXCEEDED",
            state=self.info.state,
        )

    def _lose(self, reason: str, error: BaseException | None = None) -> None:
        if not self._acquired.done():
            self._acquired.set_exception(error or LeaseError(reason, code="FAILED_PRECONDITION", state=self.info.state))
        if not self.lost.done():
            self.lost.set_result(reason)

    async def _watch(self) -> None:
        backoff, told = Backoff(1.0, 10.0), False
        while True:
            try:
                async with aclosing(self.controller.watch_lease(self.name)) as states:
                    async for state in states:
                        backoff.reset()
                        told = False
                        self.note(state)
                return
            except AuthenticationError as error:
                if not self._acquired.done():
                    self._lose(str(error), error)
                    return
                if not told:
                    logger.warning("%s: the lease is still held", error)
                    told = True
            except LeaseError as error:
                # The one who may not see it any more has not got it any more.
                gone = error.code == "NOT_FOUND" and self._acquired.done()
                self._lose(f"lease {self.name} does not exist any more" if gone else str(error), error)
                return
            await backoff.wait()

    def note(self, state: LeaseState) -> None:
        """The controller has told something of the lease."""
        self.state = state
        lease = state.lease
        if self._on_state is not None:
            self._on_state(state)
        if lease.client and lease.client != self.controller.name:
            had = "was transferred" if self._acquired.done() else "belongs"
            self._lose(f"lease {self.name} {had} to client {lease.client}")
        elif state.ended:
            self._lose(self._why_ended(state))
        elif lease.state == "ready" and not self._acquired.done():
            self._acquired.set_result(None)

    def _why_ended(self, state: LeaseState) -> str:
        message = state.message or state.lease.reason or "the controller does not say why"
        if state.lease.state == "unsatisfiable":
            return f"{self.where}: {self._refusal}: {message}"
        if state.lease.state == "invalid":
            return f"{self.where} is not valid: {message}"
        if not self._acquired.done() and not self.own:
            return f"{self.where} has already ended: {message}"
        return f"lease {self.name} has ended: {message}"

    @property
    def over(self) -> bool:
        """Whether there is nothing left to give back."""
        return self.lost.done() and not self._unwatched

    # --- its time ----------------------------------------------------------------------------------------------

    @property
    def time_left(self) -> float | None:
        """Seconds until it ends if nobody extends it; None when it is renewed for as long as it is held."""
        renewal = self._renewal
        if renewal is None or renewal.limited:
            return self.info.remaining
        return None if renewal.maximum is None else max(0.0, renewal.maximum - self.info.elapsed)

    async def extend(self, seconds: float) -> LeaseInfo:
        """Let it end so many seconds from now, sooner or later than before. Raises LeaseError when that is refused."""
        lease = await self.controller.get_lease(self.name)
        duration = lease.elapsed + seconds
        if lease.begin_time is not None and lease.effective_begin_time is not None:
            duration += max(0.0, (lease.effective_begin_time - lease.begin_time).total_seconds())
        lease = await self.controller.update_lease(self.name, duration=duration)
        self.state = replace(self.state, lease=lease)
        return lease

    async def _renew(self, renewal: Renewal) -> None:
        await asyncio.wait({self._acquired})
        if not self.lost.done():
            await renewal.run(self)

    # --- reaching its exporter -----------------------------------------------------------------------------------

    def serve_unix(
        self, path: str | Path, *, on_log: Callable[[Any], None] | None = None
    ) -> AbstractAsyncContextManager[str]:
        """Context: a unix socket that leads to the exporter; every connection to it is a tunnel of its own.

        Entering waits until the exporter is ready for driver calls. Yields the path; `socket` is what serves it.
        on_log: called with what the exporter logs (LogStreamResponse), the output of its hooks included, from the
        beginning on. Raises ExporterOfflineError when the exporter is offline or its beforeLease hook failed,
        ExporterUnreachableError when it cannot be reached within ``dial_timeout``, LeaseError when the lease is lost.
        """
        from jumpstarter.client.lease_socket import lease_socket

        return lease_socket(self, Path(path), on_log)


@asynccontextmanager
async def hold_lease(
    controller: ControllerClient,
    lease: LeaseWish | str,
    *,
    release: bool = True,
    acquisition_timeout: float | None = None,
    dial_timeout: float = 60.0,
    on_state: Callable[[LeaseState], None] | None = None,
) -> AsyncIterator[HeldLease]:
    """Context in which a lease is held.

    lease: what to lease, or the name of a lease that exists; such a one is not given back at the end. release: give a
    lease that was made here back at the end, however it comes to it (before it holds an exporter it always is).
    acquisition_timeout: seconds to wait for an exporter, without end when None. dial_timeout: seconds that the exporter
    has to become reachable. on_state: called with every change, also while waiting.

    A lease made here, and to be given back, ends by itself when this process vanishes: by heartbeat (``wish.heartbeat``
    seconds, default 60, 0 for none), or, with a controller that knows none, because it is short and is renewed.
    ``wish.duration`` is the most it may last; None lasts as long as this context. Without ``release`` it has a
    heartbeat only if the wish says so, and needs a duration.

    Raises LeaseError saying why there is none, with the controller's line; ConnectionError, AuthenticationError.
    """
    async with AsyncExitStack() as stack:
        if isinstance(lease, LeaseWish):
            wish, heartbeat, renewal = _kept(controller, lease, release)
            held = HeldLease(
                controller,
                wish.name,
                refusal=_refusal(wish),
                own=True,
                release=True,
                dial_timeout=dial_timeout,
                on_state=on_state,
            )
            made = await _create(controller, wish, acquisition_timeout, named=bool(lease.name))
            stack.push_async_callback(_give_back, held)
            held.state = LeaseState(made, made.ended, message=made.message)
        else:
            held = HeldLease(
                controller,
                lease,
                refusal="it gets no exporter",
                own=False,
                release=False,
                dial_timeout=dial_timeout,
                on_state=on_state,
            )
            # A lease that somebody made with a heartbeat is kept alive by whoever holds it.
            heartbeat, renewal = (0.0 if "heartbeat" in controller.features else None), None
        stack.push_async_callback(held.stop)
        held.start(heartbeat, renewal)
        await held.acquired(acquisition_timeout)
        held.release = held.own and release  # until here nobody else knows of it: then it is always given back
        yield held


def _kept(
    controller: ControllerClient, wish: LeaseWish, release: bool
) -> tuple[LeaseWish, float | None, Renewal | None]:
    """The wish to send, its heartbeat, and how it is renewed."""
    wish = replace(wish, name=wish.name or str(uuid4()))
    heartbeat = None
    if "heartbeat" in controller.features and wish.heartbeat != 0 and (release or wish.heartbeat is not None):
        heartbeat = wish.heartbeat or HEARTBEAT_SECONDS
    wish = replace(wish, heartbeat=heartbeat)
    scheduled = wish.begin_time is not None or wish.end_time is not None
    if scheduled or (wish.duration is not None and (heartbeat is not None or not release)):
        return wish, heartbeat, None
    if not release:
        raise LeaseError(f"a lease for {wish.target} that is not given back needs a duration", code="INVALID_ARGUMENT")
    renewal = Renewal(maximum=wish.duration, guarded=heartbeat is not None)
    return replace(wish, duration=renewal.first), heartbeat, renewal


def _refusal(wish: LeaseWish) -> str:
    """How messages begin that say why there is none."""
    return f"{wish.target} cannot be leased" if wish.exporter_name else f"no exporter for {wish.target}"


async def _create(controller: ControllerClient, wish: LeaseWish, timeout: float | None, *, named: bool) -> LeaseInfo:
    """Create the lease, trying again while the controller is away. One that nobody will know of is deleted."""
    loop, backoff, repeated = asyncio.get_running_loop(), Backoff(), False
    deadline = loop.time() + (timeout if timeout is not None else _CREATE_SECONDS)
    try:
        while True:
            try:
                return await controller.create_lease(wish)
            except LeaseError as error:
                if error.code == "ALREADY_EXISTS" and repeated and not named:
                    return await controller.get_lease(wish.name)  # the answer to an earlier attempt was lost
                raise
            except AuthenticationError:
                raise
            except ConnectionError:
                repeated = True
                if loop.time() > deadline:
                    raise
            await backoff.wait()
    except asyncio.CancelledError:
        if not named:
            await _finish(_delete(controller, wish.name))
        raise


async def _give_back(held: HeldLease) -> None:
    if held.release and not held.over:
        await _finish(_delete(held.controller, held.name))


async def _delete(controller: ControllerClient, name: str) -> None:
    backoff, why = Backoff(), "the controller does not answer"
    try:
        async with asyncio.timeout(_GIVE_BACK_SECONDS):
            while True:
                try:
                    await controller.delete_lease(name)
                    return
                except LeaseError as error:
                    if error.code not in ("NOT_FOUND", "FAILED_PRECONDITION", "PERMISSION_DENIED"):
                        logger.warning("%s", error)
                    return  # it has ended already, or belongs to somebody else
                except ConnectionError as error:
                    why = str(error)
                    if isinstance(error, AuthenticationError):
                        break
                await backoff.wait()
    except TimeoutError:
        pass  # told below
    logger.warning("lease %s could not be given back and ends by itself: %s", name, why)


async def _finish(work: Coroutine[Any, Any, None]) -> None:
    """Do it even when the task is cancelled meanwhile, and again; it takes its own time limit."""
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError as error:
                cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
