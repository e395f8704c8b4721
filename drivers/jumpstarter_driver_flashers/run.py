# SPDX-License-Identifier: Apache-2.0
"""One flash of a board, from power cycle to the record: all of it beside the board's console, on the exporter."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Final

from jumpstarter.common.exceptions import ConfigurationError, DriverError
from jumpstarter_driver_flashers.job import Outcome, finish
from jumpstarter_driver_flashers.linux_run import LinuxRun
from jumpstarter_driver_flashers.shell import ShellError
from jumpstarter_driver_flashers.uboot_run import UbootRun
from jumpstarter_driver_flashers.uboot_stage import UbootStage
from jumpstarter_driver_pyserial.hub import ConsoleHub, ConsoleUnavailable, Writer
from jumpstarter_driver_storage.errors import StorageFault
from jumpstarter_driver_uboot.link import PromptLink, UbootError

__all__ = ["BoardRun"]

#: What another attempt may mend: the board, its console and its network.
_RETRYABLE: Final = (UbootError, ShellError, ConsoleUnavailable, TimeoutError, ConnectionError)
_LONGEST_BACKOFF: Final = 30.0


@dataclass
class BoardRun(LinuxRun, UbootRun):
    """Runs a `Job`; see `run`."""

    async def run(self) -> Outcome:
        """All of it, as often as allowed. The board is in the configured power state afterwards, however it went.

        Raises StorageRefused when nothing was written, StorageFailed otherwise.
        """
        driver = self.driver
        hub = driver.console()
        hub.start()
        writer = hub.claim(f"flasher {driver.owner}")
        ended = False
        try:
            outcome = await self._attempts(hub, writer)
            ended = True
            return outcome
        finally:
            hub.release(writer)
            wanted = driver.power_after if ended else driver.power_after_failure
            if ended and self.job.wish.power_off is not None:
                wanted = "off" if self.job.wish.power_off else "leave"
            await finish(self._leave(wanted))

    async def _attempts(self, hub: ConsoleHub, writer: Writer) -> Outcome:
        attempts = self.job.wish.retries or self.driver.retries
        for attempt in range(1, attempts + 1):
            try:
                return await self._attempt(hub, writer)
            except _RETRYABLE as error:
                reason = getattr(error, "details", "") or str(error)
                if attempt == attempts:
                    what = f"target {self.job.target!r} of driver {self.driver.owner}: {reason}"
                    if attempts > 1:
                        what += f" (the last of {attempts} attempts)"
                    raise self._fault(what, "io") from error
                self.driver.logger.warning("attempt %d of %d failed: %s", attempt, attempts, reason)
                self.say(f"attempt {attempt} of {attempts} failed: {reason}", 0, None)
            except (ConfigurationError, ValueError) as error:
                if isinstance(error, StorageFault):
                    raise self._as_it_is(error) from error
                raise self._fault(str(error), "refused") from error
            except DriverError as error:  # of the power switch, or of the servers
                raise self._fault(error.details, "io") from error
            except OSError as error:
                if isinstance(error, StorageFault):
                    raise
                raise self._fault(f"on the exporter host: {error}", "io") from error
            await asyncio.sleep(min(self.driver.retry_wait * 2 ** (attempt - 1), _LONGEST_BACKOFF))
        raise AssertionError("there is at least one attempt")

    async def _attempt(self, hub: ConsoleHub, writer: Writer) -> Outcome:
        services = ("tftp",) if self.job.method == "uboot" else ("tftp", "http")
        try:
            async with self._services(*services):
                uboot = UbootStage(await self._to_prompt(hub, writer), self.say)
                if self.job.method == "uboot":
                    return await self._by_uboot(uboot)
                return await self._by_linux(uboot, hub, writer)
        finally:
            for path in self._placed:
                path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # other files are in it: not ours
                    if path.parent.name.startswith("jl-"):
                        path.parent.rmdir()
            self._placed.clear()

    async def _to_prompt(self, hub: ConsoleHub, writer: Writer) -> PromptLink:
        driver = self.driver
        self.say("power cycle", 0, None)
        link = PromptLink(hub, writer, driver.uboot_prompt())
        await driver.power("off")
        await asyncio.sleep(driver.power_wait)
        since = hub.head
        await driver.power("on")
        self.say("waiting for U-Boot", 0, None)
        await link.interrupt(driver.uboot_timeout, since=since)
        return link

    async def _leave(self, state: str) -> None:
        """Bring the board into the power state that the configuration wants."""
        if state == "leave":
            return
        try:
            await self.driver.power("off")
            if state == "on":
                await asyncio.sleep(self.driver.power_wait)
                await self.driver.power("on")
        except Exception as error:  # noqa: BLE001 - what the flash itself ended with matters more
            self.driver.logger.error("the board could not be switched %s after the flash: %s", state, error)
            if self.begun and self.written:
                self.say(f"the board could not be switched {state}: {error}", 0, None)
