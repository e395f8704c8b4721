# SPDX-License-Identifier: Apache-2.0
"""Which host holds which lease, and who gets one when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .errors import AgentError
from .lease import LIFETIMES, HostLease, LeaseOptions, Place
from .reach import ControllerReach, Reach
from .recording import Recording
from .request import Args, HostRef

__all__ = ["LeaseTable", "Note", "options_of", "wished_reach"]

Note = Callable[[str, dict[str, Any]], object]
"""Takes a line, with details, for the task that waits for a lease."""


class LeaseTable:
    """Leases by host name. One acquisition or release per host at a time; hosts do not wait for each other."""

    def __init__(self, place: Place, recording: Recording) -> None:
        self._place = place
        self._recording = recording
        self._leases: dict[str, HostLease] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._closing = False
        self.on_empty: Callable[[], object] | None = None
        self.on_held: Callable[[HostLease], object] | None = None
        self.on_session: Callable[[HostLease], object] | None = None

    @property
    def held(self) -> dict[str, HostLease]:
        """Leases that are held now, by host."""
        return {host: lease for host, lease in self._leases.items() if lease.state == "held"}

    @property
    def is_empty(self) -> bool:
        """No lease is held, being taken or being given back."""
        return not any(lease.state in ("acquiring", "held", "releasing") for lease in self._leases.values())

    def get(self, host: str) -> HostLease | None:
        """The held lease of a host."""
        return self.held.get(host)

    def by_name(self, name: str) -> HostLease | None:
        """The held lease with this name."""
        return next((lease for lease in self.held.values() if lease.name == name), None)

    async def ensure(self, host: HostRef, play: str | None, note: Note | None = None) -> HostLease:
        """The lease of `host`, acquired now when there is none.

        A lease that was lost since the last operation is an error once; one that ran out of time stays an error until
        it is taken again on purpose (`take`).
        """
        async with self._lock(host.name):
            lease = self._leases.get(host.name)
            if lease is not None and lease.state == "held":
                if not _left_over(lease, play):
                    _check_same_reach(lease, host)
                    return lease
                await lease.release()
            elif lease is not None and lease.loss is not None:
                if lease.loss.code == "exporter_lost":
                    del self._leases[host.name]
                raise lease.loss
            return await self._acquire(host, options_of(host, play), note)

    async def take(self, host: HostRef, options: LeaseOptions, note: Note | None = None) -> tuple[HostLease, bool]:
        """The lease of `host` with these options; tells whether it was acquired now."""
        async with self._lock(host.name):
            lease = self._leases.get(host.name)
            if lease is not None and lease.state == "held" and not _left_over(lease, options.play):
                _check_same_reach(lease, host, options)
                return lease, False
            if lease is not None and lease.state == "held":
                await lease.release()
            return await self._acquire(host, options, note), True

    async def release(self, host: str) -> bool:
        """Give the lease of `host` back; False when there is none."""
        async with self._lock(host):
            lease = self._leases.pop(host, None)
            if lease is None or lease.state != "held":
                return False
            await lease.release()
            return True

    async def release_of_other_plays(self, play: str | None) -> None:
        """Give back leases with lifetime "play" that belong to another play."""
        gone = [host for host, lease in self.held.items() if _left_over(lease, play)]
        await asyncio.gather(*(self.release(host) for host in gone))

    async def release_all(self, seconds: float, keep: frozenset[str] = frozenset()) -> None:
        """Give everything back except the hosts in `keep`, all at once, each within `seconds`."""
        self._closing = not keep
        # A lost lease may still be closing; one that has ended is done at once.
        leases = [lease for host, lease in self._leases.items() if host not in keep]
        deadline = asyncio.get_running_loop().time() + seconds
        for lease in leases:
            lease.budget.deadline = deadline
        if leases:
            # A little longer than each of them has: then only what is stuck is left behind.
            await asyncio.wait([asyncio.create_task(lease.release()) for lease in leases], timeout=seconds + 0.2)

    async def _acquire(self, host: HostRef, options: LeaseOptions, note: Note | None) -> HostLease:
        if self._closing:
            raise AgentError("canceled", "the agent is ending")
        if host.reach is None:
            raise AgentError("not_found", f"{host.name} holds no lease, and the request does not say how to reach it")
        before = self._leases.get(host.name)
        if before is not None:
            # Lost, but its exporter may still be switching the device off.
            await before.release()
        reach = wished_reach(host.reach, options)
        lease = HostLease(
            host=host.name,
            reach=reach,
            asked=host.reach,
            options=options,
            place=self._place,
            recording_dir=self._recording.directory(host.name),
            on_end=self._ended,
            on_note=note,
            on_event=lambda kind, data: self._recording.event(host.name, kind, **data),
            on_session=self.on_session,
        )
        self._leases[host.name] = lease
        self._recording.event(host.name, "acquiring", target=reach.target)
        await lease.acquire()
        lease.on_note = None  # whoever waited has it now
        self._recording.event(host.name, "held", lease=lease.label, target=lease.connection.exporter)
        if self.on_held is not None:
            self.on_held(lease)
        return lease

    def _ended(self, lease: HostLease) -> None:
        reason = lease.loss.message if lease.loss is not None else "given back"
        self._recording.event(lease.host, "ended", lease=lease.label, reason=reason)
        if lease.loss is None and self._leases.get(lease.host) is lease:
            del self._leases[lease.host]
        if self.on_empty is not None and self.is_empty:
            self.on_empty()

    def _lock(self, host: str) -> asyncio.Lock:
        return self._locks.setdefault(host, asyncio.Lock())


def options_of(host: HostRef, play: str | None, base: LeaseOptions | None = None) -> LeaseOptions:
    """Options from the ``host.lease`` object of a request over `base`."""
    given = Args(host.lease)
    options = LeaseOptions(
        name=given.optional_text("name"),
        lifetime=given.choice("lifetime", LIFETIMES, "run"),
        duration=given.optional_seconds("duration"),
        hold_on_failure=given.optional_seconds("hold_on_failure"),
        play=play,
    )
    given.finish()
    if base is None:
        return options
    return replace(
        base,
        name=base.name or options.name,
        duration=base.duration if base.duration is not None else options.duration,
        hold_on_failure=base.hold_on_failure if base.hold_on_failure is not None else options.hold_on_failure,
    )


def _left_over(lease: HostLease, play: str | None) -> bool:
    """A lease for one play only, met by another play."""
    return lease.options.lifetime == "play" and play is not None and lease.options.play not in (None, play)


def _wishes(options: LeaseOptions | None) -> bool:
    return options is not None and (options.wish.selector, options.wish.exporter) != (None, None)


def wished_reach(reach: Reach, options: LeaseOptions) -> Reach:
    """`reach` with what a task asked for instead of the host's variables."""
    wish = options.wish
    if not _wishes(options):
        return reach
    if not isinstance(reach, ControllerReach):
        raise AgentError(
            "invalid",
            f"selector and exporter are for leases from a controller, and this host is reached at {reach.target}",
        )
    # One of the two given alone is all that is asked for: the host's selector says nothing about another exporter.
    return replace(reach, selector=wish.selector or "", exporter=wish.exporter)


def _check_same_reach(lease: HostLease, host: HostRef, options: LeaseOptions | None = None) -> None:
    if host.reach is None:
        return
    wanted = wished_reach(host.reach, options) if options is not None else host.reach
    # Without a wish of its own a task takes what the one before has chosen.
    if wanted != lease.reach and (wanted != lease.asked or _wishes(options)):
        raise AgentError(
            "invalid",
            f"{host.name} is leased through {lease.reach.target}, the request says {wanted.target}; "
            "give the lease back first",
        )
