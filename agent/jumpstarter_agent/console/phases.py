# SPDX-License-Identifier: Apache-2.0
"""Where a booting device is, told from what it prints.

The tracker is fed every byte once, in order. It only *reads*: whoever needs certainty presses Enter and looks at
what changes (``ConsoleSession.probe``).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from .ansi import apply_backspaces, readable, strip_ansi


class Phase(StrEnum):
    """The phases of a boot, in the order in which they normally come; ``panic`` may come at any time."""

    SILENT = "silent"
    BOOTLOADER = "bootloader"
    KERNEL = "kernel"
    LOGIN = "login"
    PASSWORD = "password"
    SHELL = "shell"
    PANIC = "panic"


@dataclass(frozen=True, slots=True)
class PhaseRecord:
    """One phase of one boot: when it was first seen, ``seconds`` after the boot began, and the line that proved it."""

    phase: Phase
    at: datetime
    seconds: float
    line: str

    def as_dict(self) -> dict[str, object]:
        """JSON-able form; ``at`` in ISO 8601, UTC."""
        return {
            "phase": str(self.phase),
            "at": self.at.isoformat(),
            "seconds": round(self.seconds, 3),
            "line": self.line,
        }


@dataclass(frozen=True, slots=True)
class PhasePatterns:
    """What the prompts of a device look like: regular expressions for the unfinished last line."""

    bootloader_prompts: tuple[str, ...] = (
        r"^=> +$",
        r"^\S*U-Boot> *$",
        r"^barebox[^:]*:/ *$",
        r"^grub> *$",
        r"^Shell> *$",
    )
    login_prompts: tuple[str, ...] = (r"(?:^|\s)login: ?$",)
    password_prompts: tuple[str, ...] = (r"^[Pp]assword(?: for [^:]*)?: ?$",)
    shell_prompts: tuple[str, ...] = (r"^(?:\S.{0,80})?[#$] $",)


_LONGEST_LINE = 4096
_LONGEST_SEQUENCE = 16  # bytes of terminal control behind a prompt
_PROMPT_ENDS = frozenset(b" :>#$%")

_BANNER = re.compile(
    rb"^(U-Boot (?:(?:SPL|TPL|VPL) )?20\d\d\.\d\d\S*|barebox 20\d\d\.\d\d\S*|GNU GRUB +version \S+"
    rb"|SeaBIOS \(version [^)]*\)|UEFI firmware \(version [^)]*\)|iPXE \(http)"
)
_EARLY_STAGE = re.compile(rb"^U-Boot (?:SPL|TPL|VPL) ")
_AUTOBOOT = re.compile(rb"[Hh]it any key to stop autoboot|[Pp]ress .{1,40} to (?:stop|abort) autoboot|stop autoboot")
_RESETTING = re.compile(rb"^resetting \.\.\.|reboot: (?:Restarting system|machine restart)")
_KERNEL_START = re.compile(
    rb"^Starting kernel \.\.\.|^EFI stub: |^Uncompressing Linux|Booting Linux on |(?:^|\] )Linux version \d\S*"
)
_KERNEL_VERSION = re.compile(rb"Linux version (\d\S*)")
_KERNEL_BOOT = re.compile(rb"^\[ *0\.000000\].*(?:Linux version \d|Booting Linux on )")
_KERNEL_LINE = re.compile(rb"^\[ *\d+\.\d{6}\]")
_ACTIVATE = re.compile(rb"[Pp]ress [Ee]nter to activate this console")
_PANIC = re.compile(
    rb"Kernel panic - not syncing.*|Internal error: Oops.*|\bOops: [0-9a-fA-F]+.*|Unable to handle kernel .*"
    rb"|BUG: unable to handle .*|\"Synchronous Abort\" handler.*|### ERROR ### Please RESET the board ###"
)


@dataclass
class PhaseTracker:
    """Follows one console.

    ``framed`` is set by the shell link while it owns the console: then the bytes are its frames, and only a
    panic or the banner of a new boot still mean anything. ``on_phase`` is called for every change.
    """

    patterns: PhasePatterns = field(default_factory=PhasePatterns)
    on_phase: Callable[[PhaseRecord], None] | None = None
    clock: Callable[[], float] = time.monotonic

    phase: Phase = Phase.SILENT
    records: list[PhaseRecord] = field(default_factory=list)
    boots: int = 0
    """How often a boot began; a change means that everything known about the device's shell is void."""
    bootloader_version: str | None = None
    kernel_version: str | None = None
    panic: str | None = None
    panics: int = 0
    framed: bool = False
    prompt_seq: int = -1
    """Sequence number after the last prompt seen (of whatever phase); -1 when output followed it."""
    autoboot_seq: int = -1
    activate_seq: int = -1

    def __post_init__(self) -> None:
        self._line = bytearray()
        self._began = self.clock()
        self._resetting = False
        self._prompts = [
            (Phase.BOOTLOADER, _compiled(self.patterns.bootloader_prompts)),
            (Phase.PASSWORD, _compiled(self.patterns.password_prompts)),
            (Phase.LOGIN, _compiled(self.patterns.login_prompts)),
            (Phase.SHELL, _compiled(self.patterns.shell_prompts)),
        ]

    def begin_boot(self) -> None:
        """Forget the boot before: power is about to come on (again). Timings count from here."""
        self.boots += 1
        self._began = self.clock()
        self.records.clear()
        self.bootloader_version = self.kernel_version = self.panic = None
        self._line.clear()
        self._resetting = False
        self.prompt_seq = self.autoboot_seq = self.activate_seq = -1
        self.phase = Phase.SILENT

    def confirm(self, phase: Phase, line: str = "") -> None:
        """Set the phase from better knowledge than the prints: an answer to a probe."""
        self._enter(phase, line.encode())

    def feed(self, data: bytes, end_seq: int) -> None:
        """Look at bytes; ``end_seq`` is the sequence number after the last of them."""
        if data.strip(b"\r\n"):
            self.prompt_seq = -1
        if b"\n" in data:
            first, *rest = data.split(b"\n")
            self._whole_line(bytes(self._line + first), end_seq)
            for line in rest[:-1]:
                self._whole_line(line, end_seq)
            self._line = bytearray(rest[-1])
        else:
            self._line += data
            if len(self._line) > _LONGEST_LINE:
                del self._line[:-1024]
        if not self.framed and self._ends_as_prompts_do():
            self._unfinished_line(end_seq)

    def _ends_as_prompts_do(self) -> bool:
        line = self._line
        if line and line[-1] not in _PROMPT_ENDS and b"\x1b" in line[-_LONGEST_SEQUENCE:]:
            # Behind its prompt busybox asks the terminal where the cursor is; others end a colour there.
            line = bytearray(strip_ansi(bytes(line)))
        return bool(line) and line[-1] in _PROMPT_ENDS

    def _whole_line(self, raw: bytes, end_seq: int) -> None:
        raw = raw.rstrip(b"\r")
        if not raw:
            return
        line = apply_backspaces(strip_ansi(raw)).rsplit(b"\r", 1)[-1]
        if (panic := _PANIC.search(line)) is not None:
            self.panics += 1
            if self.panic is None or b"Kernel panic" in panic.group():
                self.panic = readable(panic.group())
            self._enter(Phase.PANIC, line)
        elif (banner := _BANNER.match(line)) is not None:
            # `version` at the prompt of U-Boot prints the banner as well: inside the bootloader it is only news
            # when a reset was announced.
            if self.phase not in (Phase.SILENT, Phase.BOOTLOADER) or self._resetting:
                self._restarted()
            self._enter(Phase.BOOTLOADER, line)
            if _EARLY_STAGE.match(line) is None or self.bootloader_version is None:
                self.bootloader_version = readable(banner.group(1))
        elif _RESETTING.search(line) is not None:
            self._resetting = True
        elif _AUTOBOOT.search(line) is not None and not self.framed:
            self.autoboot_seq = end_seq
            self._enter(Phase.BOOTLOADER, line)
        elif _KERNEL_START.search(line) is not None:
            if self.framed and _KERNEL_BOOT.match(line) is None:
                return
            if self.phase not in (Phase.SILENT, Phase.BOOTLOADER, Phase.KERNEL) or self._resetting:
                self._restarted()
            self._enter(Phase.KERNEL, line)
            if (version := _KERNEL_VERSION.search(line)) is not None:
                self.kernel_version = readable(version.group(1))
        elif not self.framed:
            if self.phase in (Phase.SILENT, Phase.BOOTLOADER) and _KERNEL_LINE.match(line) is not None:
                self._enter(Phase.KERNEL, line)
            if _ACTIVATE.search(line) is not None:
                self.activate_seq = end_seq

    def _unfinished_line(self, end_seq: int) -> None:
        line = apply_backspaces(strip_ansi(bytes(self._line))).rsplit(b"\r", 1)[-1]
        if len(line) > 200:
            return
        if self.phase is not Phase.SHELL and _AUTOBOOT.search(line) is not None:
            self.autoboot_seq = end_seq
            self._enter(Phase.BOOTLOADER, line)
            return
        if _ACTIVATE.search(line) is not None:
            self.activate_seq = end_seq
            return
        for phase, prompts in self._prompts:
            # A bootloader that loads a file draws a row of '#', which is no shell.
            if phase is Phase.SHELL and self.phase in (Phase.BOOTLOADER, Phase.PANIC):
                continue
            if any(prompt.search(line) for prompt in prompts):
                self.prompt_seq = end_seq
                self._enter(phase, line)
                return

    def _restarted(self) -> None:
        self.begin_boot()

    def _enter(self, phase: Phase, line: bytes) -> None:
        self._resetting = False
        if phase is self.phase:
            return
        self.phase = phase
        now = self.clock()
        record = PhaseRecord(phase, datetime.now(UTC), now - self._began, readable(line[:200]).strip())
        if all(known.phase is not phase for known in self.records):
            self.records.append(record)
        if self.on_phase is not None:
            self.on_phase(record)


def _compiled(patterns: tuple[str, ...]) -> tuple[re.Pattern[bytes], ...]:
    return tuple(re.compile(pattern.encode()) for pattern in patterns)
