# SPDX-License-Identifier: Apache-2.0
"""U-Boot's command line: commands with their status, the environment with exact values.

A command is typed, its echo compared, and only then entered: U-Boot never runs a line that was damaged on the way.
The status is kept in a variable of U-Boot's shell, so that it can be asked for again when its line was damaged.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from .ansi import apply_backspaces, strip_ansi
from .errors import ConsoleTimeout, UbootError, WrongPhase
from .expect import Match
from .line import ConsoleLine, Watch
from .phases import Phase
from .prompts import next_prompt, probe

_TYPING_TRIES = 5
_LONGEST = 480  # bytes: with our tail it fits the smallest usual line buffer of U-Boot (CONFIG_SYS_CBSIZE 512)
_NAME = re.compile(r"[^\s=;'\"$\\#&|]+")


@dataclass(frozen=True, slots=True)
class UbootResult:
    """Output lines and status of a command; ``rc`` None when it left the bootloader, for phase ``left``."""

    cmd: str
    rc: int | None
    lines: list[str]
    left: Phase | None = None


class _Left(Exception):
    """The bootloader handed over or started again."""


class UbootPrompt:
    """Runs commands at a U-Boot prompt on ``line``."""

    def __init__(self, line: ConsoleLine) -> None:
        self._line = line
        self._clean_boot = -1

    async def run(self, cmd: str, *, timeout: float = 60) -> UbootResult:
        """Run one command line. Raises WrongPhase, UbootError, ConsoleTimeout (the command got ^C then)."""
        line = self._line
        if not cmd.strip() or not cmd.isprintable():
            raise UbootError(f"{line.name}: U-Boot command {cmd!r} is empty or has characters that cannot be typed")
        if len(cmd.encode()) > _LONGEST:
            raise UbootError(f"{line.name}: U-Boot command of {len(cmd.encode())} bytes; {_LONGEST} are possible")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        watch = line.watch(f"the U-Boot command {cmd!r}", restart=False)
        await self._at_prompt(watch, cmd)
        nonce = secrets.token_hex(3)
        line.transcript.sent(f"=> {cmd}")
        await self._type(watch, f"{cmd}; jlrc=$?; echo @{nonce}:$jlrc", deadline)
        began = line.ring.end
        boots = line.tracker.boots

        def guard() -> None:
            watch.check()
            if line.tracker.boots != boots or line.tracker.phase is not Phase.BOOTLOADER:
                raise _Left

        await line.write(b"\r")
        sentinel = rf"@{nonce}:(?!\$)([^\r\n]*)\r?\n"
        try:
            found = await self._status(sentinel, nonce, began, deadline, guard)
        except _Left:
            output = line.ring.since(began)
            return UbootResult(cmd, None, _lines(output), line.tracker.phase)
        if found is None:
            await line.write(b"\x03")
            await next_prompt(line, watch, began, 3.0)
            raise line.timeout_error(f"the U-Boot command {cmd!r}", timeout)
        status = found.groups[0] or b""
        output = line.ring.since(began)[: found.seq - began]
        await next_prompt(line, watch, found.end_seq - 1, 2.0)
        lines = [said for said in _lines(output) if f"@{nonce}:" not in said]
        return UbootResult(cmd, int(status) if status.isdigit() else None, lines)

    async def checked(self, cmd: str, *, timeout: float = 60) -> list[str]:
        """Run a command that must succeed; its output lines."""
        result = await self.run(cmd, timeout=timeout)
        if result.rc != 0:
            said = " | ".join(result.lines[-3:]) or "nothing"
            raise UbootError(f"{self._line.name}: U-Boot command {cmd!r} failed with status {result.rc}: {said}")
        return result.lines

    async def version(self) -> str:
        """The version line, as ``U-Boot 2023.01 (...)``."""
        for said in await self.checked("version"):
            if said.startswith("U-Boot"):
                return said
        raise UbootError(f"{self._line.name}: the bootloader does not say which U-Boot it is")

    async def get_env(self, names: list[str] | None = None) -> dict[str, str | None]:
        """Values of the variables ``names`` (None where not defined), or the whole environment."""
        if names is None:
            return _parse_env(await self.checked("printenv"))
        found: dict[str, str | None] = {}
        for name in names:
            self._check_name(name)
            result = await self.run(f"printenv {name}")
            prefix = f"{name}="
            if result.rc == 0 and result.lines and result.lines[0].startswith(prefix):
                found[name] = "\n".join(result.lines)[len(prefix) :]
            elif any("not defined" in said for said in result.lines):
                found[name] = None
            else:
                raise UbootError(f"{self._line.name}: printenv {name} says: {' | '.join(result.lines) or 'nothing'}")
        return found

    async def set_env(self, values: dict[str, str | None]) -> dict[str, tuple[str | None, str | None]]:
        """Set variables (None removes); returns what changed, name to (old, new). Each is read back."""
        for name, value in values.items():
            self._check_name(name)
            if value is not None and (not value.isprintable() or not value.isascii()):
                raise UbootError(
                    f"{self._line.name}: the value of {name} has characters that cannot be typed: {value!r}"
                )
        before = await self.get_env(list(values))
        changed: dict[str, tuple[str | None, str | None]] = {}
        for name, value in values.items():
            wanted = value or None  # U-Boot has no empty variables: setting one to nothing removes it
            if before[name] == wanted:
                continue
            after = None
            for word in _quoted(wanted):
                await self.checked(f"setenv {name} {word}".rstrip())
                after = (await self.get_env([name]))[name]
                if after == wanted:
                    break
            if after != wanted:
                raise UbootError(f"{self._line.name}: setenv {name} did not take: it is {after!r}, not {wanted!r}")
            changed[name] = (before[name], after)
        return changed

    async def _at_prompt(self, watch: Watch, cmd: str) -> None:
        line = self._line
        phase = line.tracker.phase
        if phase is not Phase.BOOTLOADER and phase is not Phase.KERNEL:
            phase = await probe(line, watch, 3.0)
        if phase is not Phase.BOOTLOADER:
            raise WrongPhase(
                f"{line.name}: the U-Boot command {cmd!r}",
                current=str(phase),
                wanted="bootloader",
                hint="boot with until: bootloader first",
            )
        if line.tracker.prompt_seq >= 0 and self._clean_boot == line.tracker.boots:
            return
        # Whatever was typed to stop the countdown may stand on the command line.
        for _ in range(3):
            since = line.ring.end
            await line.write(b"\x03")
            if await next_prompt(line, watch, since, 2.0) is Phase.BOOTLOADER:
                self._clean_boot = line.tracker.boots
                return
        raise WrongPhase(
            f"{line.name}: the U-Boot command {cmd!r}",
            current=str(line.tracker.phase),
            wanted="bootloader prompt",
            hint="the bootloader is busy; boot with until: bootloader first",
        )

    async def _type(self, watch: Watch, text: str, deadline: float) -> None:
        line = self._line
        loop = asyncio.get_running_loop()
        for _ in range(_TYPING_TRIES):
            since = line.ring.end
            await line.write(text.encode())
            patience = min(1.0 + len(text) / 200, deadline - loop.time())
            if await line.expect(re.escape(text), since=since, timeout=patience, guard=watch.check) is not None:
                return
            since = line.ring.end
            await line.write(b"\x03")
            await next_prompt(line, watch, since, 1.0)
        raise ConsoleTimeout(f"{line.name}: U-Boot does not echo what is typed; it said: {line.transcript.tail(2)}")

    async def _status(
        self, sentinel: str, nonce: str, began: int, deadline: float, guard: Callable[[], None]
    ) -> Match | None:
        """The line with the status; asked for again when the prompt is there and the line is not (damaged)."""
        line = self._line
        loop = asyncio.get_running_loop()
        while (left := deadline - loop.time()) > 0:
            found = await line.expect(sentinel, since=began, timeout=min(left, 1.0), guard=guard)
            if found is not None:
                return found
            if line.tracker.prompt_seq > began:
                await line.write(f"echo @{nonce}:$jlrc\r".encode())
        return None

    def _check_name(self, name: str) -> None:
        if _NAME.fullmatch(name) is None:
            raise UbootError(f"{self._line.name}: {name!r} is no name of a U-Boot variable")


def _quoted(value: str | None) -> list[str]:
    """``value`` as one word of U-Boot's shell, in the ways to try.

    Up to 2024 its shell takes backslashes inside single quotes for escapes and cannot have a single quote inside
    double ones; the newer one does as POSIX says.
    """
    if value is None:
        return [""]
    posix = "'" + value.replace("'", "'\\''") + "'"
    old = "'" + value.replace("\\", "\\\\").replace("'", "'\\''") + "'"
    return [old] if old == posix else [old, posix]


def _lines(raw: bytes) -> list[str]:
    text = strip_ansi(raw).decode("utf-8", "replace").replace("\r\n", "\n")
    shown = (apply_backspaces(said.encode()).decode("utf-8", "replace") for said in text.split("\n"))
    lines = [said.rsplit("\r", 1)[-1] for said in shown]
    while lines and not lines[-1].strip():
        lines.pop()
    while lines and not lines[0].strip():
        lines.pop(0)
    return lines


_ENTRY = re.compile(r"([^\s=]+)=((?:[^\\\n]|\\.)*)(?:\n|$)", re.DOTALL)


def _parse_env(lines: list[str]) -> dict[str, str | None]:
    """The whole environment. In this listing, and only here, U-Boot escapes line ends and backslashes."""
    text = "\n".join(lines).partition("\nEnvironment size:")[0]
    return {name: re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL) for name, value in _ENTRY.findall(text)}
