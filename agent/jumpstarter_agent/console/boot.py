# SPDX-License-Identifier: Apache-2.0
"""Following a boot to the phase that is wanted, and helping it where it needs a key."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from .errors import ConsoleError, LoginFailed, UbootError, WrongPhase
from .line import ConsoleLine, Watch
from .phases import Phase, PhaseRecord
from .prompts import log_in, probe, shell_answers, shows_a_reader
from .settings import ConsoleSettings, Login

GOALS = (Phase.BOOTLOADER, Phase.KERNEL, Phase.LOGIN, Phase.SHELL)
_PAST = {
    Phase.KERNEL: (Phase.KERNEL, Phase.LOGIN, Phase.PASSWORD, Phase.SHELL),
    Phase.LOGIN: (Phase.LOGIN, Phase.PASSWORD, Phase.SHELL),
}
_QUIET = 4.0  # seconds of silence after which a prompt of unknown shape is looked for
_STUCK = 2.0  # seconds a bootloader may stand at its prompt in a boot that should go past it
_REACTION = 1.0  # seconds in which something that reads the console shows that Enter was pressed


@dataclass(frozen=True, slots=True)
class BootReport:
    """How a boot went: phases with timings, versions seen, and the last lines of the console."""

    until: Phase
    phases: tuple[PhaseRecord, ...]
    seconds: float
    bootloader_version: str | None
    kernel_version: str | None
    console_tail: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "until": str(self.until),
            "phases": [record.as_dict() for record in self.phases],
            "seconds": round(self.seconds, 3),
            "bootloader_version": self.bootloader_version,
            "kernel_version": self.kernel_version,
            "console_tail": list(self.console_tail),
        }


class Boot:
    """One boot (or the rest of one, without ``power_cycle``) of the device on ``line``."""

    def __init__(self, line: ConsoleLine, settings: ConsoleSettings, goal: Phase, login: Login | None) -> None:
        self._line = line
        self._settings = settings
        self._goal = goal
        self._login = login
        self._checked_prompt = -1
        self._activated = -1
        self._next_key = 0.0
        self._next_look = 0.0
        self._stuck_since: float | None = None
        self._booted_by_hand = False

    async def run(self, timeout: float, power_cycle: Callable[[], Awaitable[None]] | None) -> BootReport:
        """Reach the goal within ``timeout`` seconds. Raises KernelPanic, ConsoleTimeout, WrongPhase, LoginFailed."""
        line = self._line
        loop = asyncio.get_running_loop()
        began = loop.time()
        deadline = began + timeout
        watch = line.watch(f"the boot to {self._goal}", restart=False, lost=False)
        if power_cycle is not None:
            line.tracker.begin_boot()
            await power_cycle()
        else:
            await self._look_around(watch)
        self._next_look = loop.time() + _QUIET
        while not await self._reached(watch):
            watch.check()
            now = loop.time()
            if now >= deadline:
                raise line.timeout_error(f"boot to {self._goal}", timeout)
            await self._help(watch, now, deadline, by_power=power_cycle is not None)
            seen = line.ring.end
            await line.ring.changed(min(deadline - loop.time(), self._patience()))
            if line.ring.end != seen:
                self._next_look = loop.time() + _QUIET
        return self.report(loop.time() - began)

    def report(self, seconds: float) -> BootReport:
        """What is known of the boot now."""
        tracker = self._line.tracker
        return BootReport(
            self._goal,
            tuple(tracker.records),
            seconds,
            tracker.bootloader_version,
            tracker.kernel_version,
            tuple(self._line.transcript.tail(20)),
        )

    def _patience(self) -> float:
        if self._goal is Phase.BOOTLOADER and self._line.tracker.phase is Phase.BOOTLOADER:
            return self._settings.autoboot_interval
        return 0.5

    async def _look_around(self, watch: Watch) -> None:
        """Without a power cycle: where are we, and can the goal be ahead of us?"""
        line, tracker = self._line, self._line.tracker
        if tracker.phase in (Phase.SILENT, Phase.SHELL, Phase.LOGIN):
            await probe(line, watch, 3.0)
        if self._goal is Phase.BOOTLOADER and tracker.phase in (Phase.KERNEL, Phase.LOGIN, Phase.PASSWORD, Phase.SHELL):
            raise WrongPhase(
                f"{line.name}: boot to bootloader without a power cycle",
                current=str(tracker.phase),
                wanted="bootloader",
                hint="allow a power cycle, or reboot the device first",
            )

    async def _reached(self, watch: Watch) -> bool:
        tracker = self._line.tracker
        if self._goal is Phase.BOOTLOADER:
            return tracker.phase is Phase.BOOTLOADER and tracker.prompt_seq >= 0
        if self._goal in _PAST:
            return tracker.phase in _PAST[self._goal]
        if tracker.phase is not Phase.SHELL or tracker.prompt_seq == self._checked_prompt:
            return False
        # Something that looks like a prompt is one when a shell answers behind it.
        self._checked_prompt = tracker.prompt_seq
        if await shell_answers(self._line, watch, 5.0):
            return True
        self._checked_prompt = -2
        return False

    async def _help(self, watch: Watch, now: float, deadline: float, *, by_power: bool) -> None:
        line, tracker = self._line, self._line.tracker
        loop = asyncio.get_running_loop()
        if tracker.phase is Phase.BOOTLOADER:
            if self._goal is Phase.BOOTLOADER:
                if now >= self._next_key:
                    self._next_key = now + self._settings.autoboot_interval
                    await line.write(self._settings.autoboot_key)
            elif tracker.prompt_seq >= 0:
                await self._leave_bootloader(now, by_power)
            return
        self._stuck_since = None
        if self._goal in (Phase.BOOTLOADER, Phase.KERNEL):
            return
        if tracker.activate_seq > self._activated:
            self._activated = tracker.activate_seq
            await line.write(b"\r")
        elif self._goal is Phase.SHELL and tracker.phase in (Phase.LOGIN, Phase.PASSWORD):
            if self._login is None:
                raise LoginFailed(
                    f"{line.name}: the device asks for a login and none is configured; its prompt:"
                    f" {' | '.join(line.transcript.tail(1))}"
                )
            await log_in(line, watch, self._login, deadline - loop.time())
            self._checked_prompt = -2
        elif now >= self._next_look and tracker.phase in (Phase.KERNEL, Phase.SHELL):
            self._next_look = now + 2 * _QUIET
            if await self._reacts(watch) and await shell_answers(line, watch, 1.0):
                tracker.confirm(Phase.SHELL)
                self._checked_prompt = -2

    async def _reacts(self, watch: Watch) -> bool:
        """Whether somebody reads the console: nothing longer than Enter is typed for a kernel that still starts.

        Its serial driver would find a full FIFO, from which no interrupt ever comes (an emulated UART is deaf from
        then on), or the end of a question, whose open quote would swallow what the shell is asked later.
        """
        ring, loop = self._line.ring, asyncio.get_running_loop()
        since = ring.end
        await self._line.write(b"\n")
        end = loop.time() + _REACTION
        while loop.time() < end:
            watch.check()
            if not await ring.changed(min(_REACTION / 4, end - loop.time())) and ring.end > since:
                break
        return shows_a_reader(ring.since(since))

    async def _leave_bootloader(self, now: float, by_power: bool) -> None:
        line = self._line
        if self._stuck_since is None:
            self._stuck_since = now
        if not by_power and not self._booted_by_hand:
            self._booted_by_hand = True
            line.transcript.sent("=> boot")
            # ^C first: something may stand on the command line.
            await line.write(b"\x03boot\r")
            self._stuck_since = now
        elif now - self._stuck_since > _STUCK:
            raise UbootError(
                f"{line.name}: the bootloader stopped at its prompt instead of booting; it said:"
                f" {' | '.join(line.transcript.tail(6))}"
            )


def goal_of(until: str) -> Phase:
    """``until`` as a phase. Raises ConsoleError naming the possible ones."""
    try:
        goal = Phase(until)
    except ValueError:
        goal = Phase.SILENT
    if goal not in GOALS:
        raise ConsoleError(f"a boot can go until {', '.join(GOALS)}, not {until!r}")
    return goal
