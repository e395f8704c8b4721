# SPDX-License-Identifier: Apache-2.0
"""Keep a lease: tell the controller that its holder is alive, and renew what was leased for a short time only."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jumpstarter.client.backoff import Backoff
from jumpstarter.common.exceptions import ConnectionError, LeaseError

if TYPE_CHECKING:
    from jumpstarter.client.controller import ControllerClient
    from jumpstarter.client.lease import HeldLease

__all__ = ["Renewal", "keep_alive"]

logger = logging.getLogger(__name__)

#: Seconds of a lease that is renewed: how long it outlives a holder that vanished.
_SHORT = 300.0
#: The same where a heartbeat ends it anyway; long enough for the outages of a controller.
_GUARDED = 1800.0
#: Codes of a refused heartbeat after which no other is worth trying; with the others the controller itself failed.
_OVER = ("NOT_FOUND", "PERMISSION_DENIED", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "UNIMPLEMENTED")
#: A renewal that gains less than this is not asked for.
_LEAST_GAIN = 5.0


async def keep_alive(controller: ControllerClient, name: str, within: float) -> None:
    """Send heartbeats, each a little before the controller expects it, until it wants none or the lease is over.

    within: seconds that the first one has; 0 sends it at once.
    """
    backoff, told = Backoff(0.2, 5.0), False
    while True:
        await asyncio.sleep(within * 0.9)
        try:
            within = await controller.heartbeat(name)
        except (ConnectionError, LeaseError) as error:
            if isinstance(error, LeaseError) and error.code in _OVER:
                # Over, or not ours: whoever watches the lease learns which.
                logger.debug("no heartbeat for lease %s: %s", name, error)
                return
            if not told:
                logger.info("heartbeat of lease %s: %s; trying again", name, error)
                told = True
            await backoff.wait()
            within = 0.0
            continue
        backoff.reset()
        told = False
        if within <= 0:
            return


@dataclass
class Renewal:
    """Renews a short lease, again and again.

    maximum: the most it may last, in seconds; None without limit. guarded: a heartbeat watches over it. limited: the
    controller refuses to let it last longer than it does now.
    """

    maximum: float | None
    guarded: bool
    limited: bool = False

    @property
    def first(self) -> float:
        """Seconds to ask for at the beginning."""
        return _SHORT if self.maximum is None else min(_SHORT, self.maximum)

    @property
    def _ahead(self) -> float:
        return _GUARDED if self.guarded else _SHORT

    async def run(self, held: HeldLease) -> None:
        """Renew until the lease is over or has got all the time that it may have."""
        backoff = Backoff(0.5, 10.0)
        while not held.over:
            try:
                reached, refusal = await self._renew(held)
            except ConnectionError:
                await backoff.wait()  # whoever watches the lease has told of the outage
                continue
            backoff.reset()
            if refusal is not None and not self.limited:
                left = held.info.remaining or 0.0
                logger.warning("lease %s ends in %.0f s and cannot be renewed further: %s", held.name, left, refusal)
            self.limited = refusal is not None
            if reached:
                return
            await asyncio.sleep(max(min((held.info.remaining or 0.0) / 2, self._ahead / 3), 1.0))

    async def _renew(self, held: HeldLease) -> tuple[bool, LeaseError | None]:
        """Extend it as far as allowed. Whether it lasts as long as it ever may, and what refused more."""
        remaining = held.info.remaining or 0.0
        wanted = self._ahead
        if self.maximum is not None:
            wanted = min(wanted, self.maximum - held.info.elapsed)
        refusal: LeaseError | None = None
        while wanted - remaining >= _LEAST_GAIN:
            try:
                await held.extend(wanted)
                break
            except LeaseError as error:
                over = error.code in ("NOT_FOUND", "PERMISSION_DENIED") and "olicy" not in error.details
                if over or held.over:
                    return True, None
                # A policy or somebody's reservation: what about half of it?
                refusal = error
                wanted = remaining + (wanted - remaining) / 2
        complete = self.maximum is not None and held.info.elapsed + (held.info.remaining or 0.0) >= self.maximum - 1.0
        return complete, refusal
