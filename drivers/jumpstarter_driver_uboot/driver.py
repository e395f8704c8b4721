# SPDX-License-Identifier: Apache-2.0
"""U-Boot on a board's serial console: the exporter talks to it, right beside the UART."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import Driver, export
from jumpstarter.driver.calls import call_to_end
from jumpstarter_driver_pyserial.hub import ConsoleHub
from jumpstarter_driver_uboot.common import check_command, check_name, parse_printenv, quotings
from jumpstarter_driver_uboot.link import PromptLink, UbootError

__all__ = ["UbootConsole", "UbootError"]


@dataclass(kw_only=True)
class UbootConsole(Driver):
    """The U-Boot command line of a board.

    Children ``power`` and ``serial`` are the board's power switch and console (usually references). prompt: what the
    command line begins with.

    A client of any age can do the conversation itself over ``serial``. The methods below do it on the exporter: one
    call instead of hundreds of round trips, and nothing half-typed when the client goes away. Each takes the console
    for writing; ``owner`` is the name under which the caller already has it, if so.
    """

    driver_type: ClassVar[str] = "console"

    prompt: str = "\n=>"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("power", "serial"):
            if name not in self.children:
                raise ConfigurationError(f'children: "{name}" is missing (use {name}: {{ref: path.of.the.driver}})')
        if not self.prompt.strip():
            raise ConfigurationError("prompt: is empty")

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_uboot.client.UbootConsoleClient"

    @export(readonly=True)
    def get_prompt(self) -> str:
        """What the command line begins with."""
        return self.prompt

    @export
    async def interrupt(self, timeout: float = 30.0, owner: str = "") -> dict[str, Any]:
        """Come to the prompt: stop the autoboot countdown, or whatever U-Boot is doing.

        Returns {"version": the banner if it was seen, "seconds"}. Raises UbootError when there is no prompt within
        ``timeout`` seconds or something else was booted.
        """
        began = time.monotonic()
        async with self._link(owner) as link:
            version = await link.interrupt(timeout)
        return {"version": version, "seconds": round(time.monotonic() - began, 3)}

    @export
    async def reboot_to_prompt(self, wait: float = 2.0, timeout: float = 30.0, owner: str = "") -> dict[str, Any]:
        """Power-cycle the board (off for ``wait`` seconds) and stop it at the prompt; as `interrupt` otherwise."""
        if wait < 0:
            raise ValueError(f"wait: {wait:g} s is negative")
        power = self.children["power"]
        async with self._link(owner, booting=True) as link:
            await _call(power, "off")
            await asyncio.sleep(wait)
            began = time.monotonic()
            since = self._hub().head
            await _call(power, "on")
            version = await link.interrupt(timeout, since=since)
        return {"version": version, "seconds": round(time.monotonic() - began, 3)}

    @export
    async def run(self, cmd: str, timeout: float = 60.0, owner: str = "") -> dict[str, Any]:
        """Run one command line.

        Returns {"cmd", "rc", "lines", "left"}: exit status, output, and None; or, when the command left U-Boot, no
        status and "kernel", "efi" or "reset".

        Raises ValueError for a line that cannot be typed, UbootError when the board is not at the prompt,
        TimeoutError when the command does not end in time (it is interrupted then).
        """
        command = check_command(cmd)
        async with self._link(owner) as link:
            result = await link.run(command, timeout)
        return {"cmd": cmd, "rc": result.rc, "lines": result.lines, "left": result.left}

    @export
    async def version(self, owner: str = "") -> str:
        """U-Boot's version line, as in "U-Boot 2023.01 (Jan 09 2023 - 16:07:33 +0000)"."""
        async with self._link(owner) as link:
            result = await link.run("version", 10)
        for line in result.lines:
            if line.startswith("U-Boot"):
                return line
        raise UbootError(f"unexpected answer to version: {result.lines!r}")

    @export
    async def env_get(self, name: str, owner: str = "") -> str | None:
        """The value of a variable, None when it is not defined."""
        async with self._link(owner) as link:
            return await self._get(link, check_name(name))

    @export
    async def env_set(self, name: str, value: str | None, owner: str = "") -> dict[str, Any]:
        """Set a variable, or delete it with None, and read it back. It is lost at reset (until ``saveenv``).

        Returns {"changed", "previous"}. Raises ValueError for a value that cannot be typed, UbootError when U-Boot
        refuses it (some variables are write-once) or the value read back is another one.
        """
        check_name(name)
        value = value or None  # U-Boot knows no empty variable
        words = [""] if value is None else [f" {word}" for word in quotings(value)]
        async with self._link(owner) as link:
            previous = await self._get(link, name)
            if previous == value:
                return {"changed": False, "previous": previous}
            for word in words:
                result = await link.run(f"setenv {name}{word}", 10)
                present = await self._get(link, name)
                if result.rc == 0 and present == value:
                    return {"changed": True, "previous": previous}
        said = " ".join(result.lines) or f"it is {present!r} now"
        raise UbootError(f"setenv {name}: exit status {result.rc}: {said}")

    async def _get(self, link: PromptLink, name: str) -> str | None:
        result = await link.run(f"printenv {name}", 10)
        try:
            return parse_printenv(name, result.rc, result.lines)
        except ValueError as error:
            raise UbootError(str(error)) from None

    def _hub(self) -> ConsoleHub:
        hub = getattr(self.children["serial"], "hub", None)
        if not isinstance(hub, ConsoleHub):
            raise NotImplementedError(
                'the driver "serial" shares no console log; talk to U-Boot from the client instead'
            )
        return hub

    async def _is_off(self) -> bool:
        power = self.children["power"]
        return hasattr(power, "status") and await _call(power, "status") == "off"

    @asynccontextmanager
    async def _link(self, owner: str, *, booting: bool = False) -> AsyncIterator[PromptLink]:
        hub = self._hub()
        hub.start()
        if not booting and await self._is_off():
            raise UbootError("the board is off; power it on first")
        conversation: AbstractAsyncContextManager[PromptLink]
        conversation = PromptLink.conversation(hub, self.prompt, owner or f"uboot {self.uuid}")
        async with conversation as link:
            yield link


async def _call(driver: Driver, name: str) -> Any:
    """Call a driver's method of either colour."""
    return await call_to_end(getattr(driver, name))
