# SPDX-License-Identifier: Apache-2.0
"""A database that has gone away: one probe looks whether it is back, everybody else waits for that."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from jumpstarter.common.exceptions import JumpstarterException

__all__ = ["AWAY", "Outage", "Unavailable"]

logger = logging.getLogger(__name__)

#: What callers are told. Why is in the log: they need not know where the database is.
AWAY = "the controller's database is not available; try again later"
#: Seconds between two probes.
_PAUSES = (0.05, 1.0)


class Unavailable(JumpstarterException):
    """The database cannot be used now; the same call may succeed later (gRPC: UNAVAILABLE)."""


class Outage:
    """Whether the database is there. probe: raises `Unavailable` while it is not."""

    def __init__(self, name: str, probe: Callable[[], Awaitable[None]]) -> None:
        self._name = name
        self._probe = probe
        self._prober: asyncio.Task[None] | None = None
        self._reason = ""
        self._over = asyncio.Event()
        self._over.set()
        #: Called with True when the database is lost, with False when it is back.
        self.watchers: list[Callable[[bool], None]] = []
        #: How often the database was lost.
        self.count = 0

    @property
    def down(self) -> bool:
        """The database was looked for and not found."""
        return not self._over.is_set() and bool(self._reason)

    def suspect(self, error: Exception) -> None:
        """A connection was lost. Look whether the database still answers; until then callers wait."""
        if self._prober is None:
            self._over.clear()
            self._prober = asyncio.create_task(self._look(error), name="database probe")

    async def over(self, patience: float | None) -> None:
        """Return when the database can be used. Raises `Unavailable` after ``patience`` seconds; None: never."""
        if self._over.is_set():
            return
        try:
            async with asyncio.timeout(patience):
                await self._over.wait()
        except TimeoutError:
            raise Unavailable(AWAY) from None

    async def _look(self, error: Exception) -> None:
        begin, pause = time.monotonic(), _PAUSES[0]
        try:
            while True:
                try:
                    await self._probe()
                    break
                except Unavailable as unavailable:
                    if not self._reason:
                        self.count += 1
                        logger.error("database %s is lost: %s", self._name, unavailable)
                        self._reason = str(unavailable)
                        self._tell(True)
                    self._reason = str(unavailable)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _PAUSES[1])
            if self._reason:
                logger.warning("database %s is back after %.1f s", self._name, time.monotonic() - begin)
                self._reason = ""
                self._tell(False)
            else:
                logger.info("a connection to database %s was lost: %s", self._name, " ".join(str(error).split()))
        finally:
            self._prober = None
            self._over.set()

    def _tell(self, down: bool) -> None:
        for watcher in self.watchers:
            watcher(down)

    async def stop(self) -> None:
        """Stop looking."""
        prober = self._prober
        if prober is not None:
            prober.cancel()
            await asyncio.gather(prober, return_exceptions=True)
