# SPDX-License-Identifier: Apache-2.0
"""One console of one device, for as long as a lease holds it: the public face of this package."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from . import shell, transfer
from .ansi import readable
from .boot import Boot, BootReport, goal_of
from .errors import ConsoleError, WrongPhase
from .expect import Match, Pattern
from .line import ConsoleLine, Watch
from .link import NotAnswering, ShellGone, ShellLink, is_preparation
from .phases import Phase, PhaseRecord, PhaseTracker
from .prepare import prepare
from .prompts import log_in, probe, shell_answers
from .ring import LogSlice
from .settings import ConsoleSettings, Login
from .shell import ExecResult
from .transcript import Transcript
from .transfer import Progress, TransferResult
from .transport import ByteConsole
from .uboot import UbootPrompt, UbootResult

_RELEASE_SECONDS = 1.5


@dataclass(frozen=True, slots=True)
class ConsoleEvent:
    """Something worth showing: ``kind`` is phase or note."""

    kind: str
    text: str
    data: dict[str, Any] = field(default_factory=dict)


class ConsoleSession:
    """Keeps a console open, logged and understood between operations.

    Operations run one at a time, in the order in which they were asked for. Cancelling the task that awaits one is
    safe: the device gets ^C, and the next operation finds its way back. ``name`` begins every error message.
    """

    def __init__(
        self,
        console: ByteConsole,
        *,
        name: str = "console",
        log_path: Path | None = None,
        settings: ConsoleSettings | None = None,
        on_event: Callable[[ConsoleEvent], None] | None = None,
    ) -> None:
        self.settings = settings or ConsoleSettings()
        self.log_path = log_path
        self._on_event = on_event
        self._login = self.settings.login
        tracker = PhaseTracker(self.settings.patterns, on_phase=self._phase_changed)
        self._line = ConsoleLine(console, name, tracker, Transcript(log_path))
        self._line.transcript.is_protocol = is_preparation
        self._uboot = UbootPrompt(self._line)
        self._link: ShellLink | None = None
        self._link_boot = -1
        self._in_step = True
        self._busy = asyncio.Lock()
        if self._login is not None and self._login.password:
            self._line.transcript.hide(self._login.password)

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to read and to log."""
        opener = getattr(self._line.console, "open", None)
        if opener is not None:
            await opener()
        await self._line.start()

    async def aclose(self) -> None:
        """Give the shell back to whoever comes next and stop reading. Safe to call twice."""
        if self._link is not None and self._line.failure is None:
            with contextlib.suppress(ConsoleError, TimeoutError):
                async with asyncio.timeout(_RELEASE_SECONDS), self._busy:
                    await self._release()
        await self._line.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    # --- state --------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The name errors begin with."""
        return self._line.name

    @property
    def failure(self) -> str | None:
        """Why nothing is read any more, None while all is well."""
        return self._line.failure

    @property
    def phase(self) -> Phase:
        """Where the device is, as far as what it said tells."""
        return self._line.tracker.phase

    @property
    def phases(self) -> list[PhaseRecord]:
        """The phases of this boot in the order in which they were first seen."""
        return list(self._line.tracker.records)

    @property
    def bootloader_version(self) -> str | None:
        """What the bootloader of this boot called itself."""
        return self._line.tracker.bootloader_version

    @property
    def kernel_version(self) -> str | None:
        """The kernel release of this boot, when the kernel said it on the console."""
        return self._line.tracker.kernel_version

    @property
    def panic(self) -> str | None:
        """The line by which the kernel of this boot said that it died."""
        return self._line.tracker.panic

    @property
    def seq(self) -> int:
        """Position after the last byte read."""
        return self._line.ring.end

    @property
    def lost_bytes(self) -> int:
        """Bytes that are known to have been lost between the device and us."""
        return self._line.ring.lost

    def tail(self, lines: int = 20) -> list[str]:
        """The last lines the device said, printable."""
        return self._line.transcript.tail(lines)

    def log(self, since_seq: int = 0, max_bytes: int = 65536) -> LogSlice:
        """Raw bytes of the console from a position on."""
        return self._line.ring.slice(since_seq, max_bytes)

    def notify_power(self, state: str) -> None:
        """Tell that the board's power was switched: ``off`` ends what waits for the board, ``on`` starts the clock."""
        if state == "off":
            self._drop_link()
            self._line.lost_power("power was switched off")
            self._line.tracker.begin_boot()
        elif state == "on" and not self._line.tracker.records:
            self._line.tracker.begin_boot()

    # --- text ---------------------------------------------------------------------------------------------------

    async def send(self, data: bytes | str, *, secret: bool = False) -> None:
        """Type ``data``. ``secret``: it appears in no log, even when the device echoes it."""
        raw = data.encode() if isinstance(data, str) else data
        async with self._busy:
            await self._release()
            if secret:
                self._line.transcript.hide(raw.decode("utf-8", "replace").strip())
            self._line.transcript.sent("(secret)" if secret else readable(raw))
            await self._line.write(raw)

    async def expect(
        self,
        pattern: Pattern | Sequence[Pattern],
        *,
        timeout: float,
        since: int | None = None,
        fail_on_panic: bool = True,
    ) -> Match:
        """Wait until a regular expression (of several the first to match) is found from position ``since`` on.

        ``since`` None: from now on. Patterns are searched in bytes, ``^`` and ``$`` also match at lines. Raises
        ConsoleTimeout, and KernelPanic at once when the kernel dies meanwhile (unless the pattern matches that).
        """
        start = self.seq if since is None else since
        watch = self._line.watch("waiting for text", panic=fail_on_panic, restart=False, lost=False)
        found = await self._line.expect(pattern, since=start, timeout=timeout, guard=watch.check)
        if found is None:
            raise self._line.timeout_error(f"waiting for {_shown(pattern)}", timeout)
        return found

    async def probe(self, timeout: float = 2.0) -> Phase:
        """Find out the phase by pressing Enter and looking what answers."""
        async with self._busy:
            if self._link_usable():
                try:
                    if self._in_step or await self._resync():
                        await self._shell_link("probe")
                        return Phase.SHELL
                except ConsoleError:
                    self._drop_link()
            return await probe(self._line, self._line.watch("probing the console"), timeout)

    @asynccontextmanager
    async def attach(self) -> AsyncIterator[RawConsole]:
        """The console as a raw byte stream (``receive``, ``send``), for a person; nobody else uses it meanwhile."""
        async with self._busy:
            await self._release()
            self._line.transcript.note("attached")
            try:
                yield RawConsole(self._line)
            finally:
                self._line.transcript.note("detached")

    # --- the shell ----------------------------------------------------------------------------------------------

    async def exec(
        self,
        cmd: str,
        *,
        in_data: bytes = b"",
        timeout: float | None = None,
        executable: str = "sh",
        max_output: int = 16 << 20,
    ) -> ExecResult:
        """Run a command in the device's shell; see :func:`shell.run`. Raises WrongPhase when there is no shell."""
        async with self._shell(f"the command {_short(cmd)!r}") as link:
            return await shell.run(
                link, cmd, in_data=in_data, timeout=timeout, executable=executable, max_output=max_output
            )

    async def put(
        self,
        src: Path | bytes,
        dest: str,
        *,
        mode: int | None = None,
        check: bool = False,
        allow_slow: bool = False,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> TransferResult:
        """Copy a local file (or bytes) to ``dest`` on the device; see :func:`transfer.put`."""
        try:
            content = src if isinstance(src, bytes) else await asyncio.to_thread(src.read_bytes)
        except OSError as error:
            raise ConsoleError(f"{self.name}: put {dest}: cannot read {src!s}: {error.strerror}") from error
        async with self._shell(f"put of {dest}") as link, _limit(f"{self.name}: put {dest}", timeout) as end:
            return await transfer.put(
                link, content, dest, mode=mode, check=check, allow_slow=allow_slow, deadline=end, progress=progress
            )

    async def fetch(
        self,
        src: str,
        dest: Path,
        *,
        check: bool = False,
        allow_slow: bool = False,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> TransferResult:
        """Copy ``src`` on the device to the local file ``dest``; see :func:`transfer.fetch`."""
        async with self._shell(f"fetch of {src}") as link, _limit(f"{self.name}: fetch {src}", timeout) as end:
            try:
                return await transfer.fetch(
                    link, src, dest, check=check, allow_slow=allow_slow, deadline=end, progress=progress
                )
            except OSError as error:
                if isinstance(error, TimeoutError):
                    raise
                raise ConsoleError(f"{self.name}: fetch {src}: cannot write {dest}: {error.strerror}") from error

    async def login(self, login: Login | None = None, *, timeout: float = 30) -> None:
        """Get from a login prompt to a shell; remembers the login for later prompts of this session."""
        async with self._busy:
            if self._link_usable():
                return
            self._login = login or self._login
            if self._login is None:
                raise ConsoleError(f"{self.name}: login: no user name is given and none is configured")
            await log_in(self._line, self._line.watch("the login"), self._login, timeout)

    async def reset(self) -> None:
        """Forget what is known about the shell; the next command finds out anew."""
        async with self._busy:
            if self._link is not None:
                with contextlib.suppress(NotAnswering, ShellGone):
                    await self._resync()
                await self._release()

    # --- boot ---------------------------------------------------------------------------------------------------

    async def boot(
        self,
        until: str = "shell",
        *,
        timeout: float = 300,
        power_cycle: Callable[[], Awaitable[None]] | None = None,
        login: Login | None = None,
    ) -> BootReport:
        """Bring the device to phase ``until`` (bootloader, kernel, login, shell), by ``power_cycle`` if given.

        The bootloader's countdown is stopped for ``bootloader``, a login prompt is answered on the way to ``shell``.
        Without ``power_cycle`` it waits for (or, at a bootloader prompt, starts) the rest of a boot. Raises
        KernelPanic at once, ConsoleTimeout with the phase and the last lines, WrongPhase, LoginFailed.
        """
        goal = goal_of(until)
        async with self._busy:
            self._login = login or self._login
            if self._login is not None and self._login.password:
                self._line.transcript.hide(self._login.password)
            boot = Boot(self._line, self.settings, goal, self._login)
            if power_cycle is None and self._link_usable():
                if goal is not Phase.BOOTLOADER and await self._resync():
                    return boot.report(0.0)
                await self._release()
            self._drop_link()
            return await boot.run(timeout, power_cycle)

    # --- U-Boot -------------------------------------------------------------------------------------------------

    async def uboot_run(self, cmd: str, *, timeout: float = 60) -> UbootResult:
        """Run one U-Boot command; see :class:`uboot.UbootPrompt`."""
        async with self._bootloader():
            return await self._uboot.run(cmd, timeout=timeout)

    async def uboot_version(self) -> str:
        """The version line of the U-Boot that is at its prompt."""
        async with self._bootloader():
            return await self._uboot.version()

    async def uboot_get_env(self, names: list[str] | None = None) -> dict[str, str | None]:
        """Variables of U-Boot's environment: those named, None where undefined, or all."""
        async with self._bootloader():
            return await self._uboot.get_env(names)

    async def uboot_set_env(self, values: dict[str, str | None]) -> dict[str, tuple[str | None, str | None]]:
        """Set (None: remove) variables; returns what changed as name to (old, new). Not saved to storage."""
        async with self._bootloader():
            return await self._uboot.set_env(values)

    # --- inside -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _bootloader(self) -> AsyncIterator[None]:
        async with self._busy:
            if self._link_usable():
                raise WrongPhase(
                    f"{self.name}: a U-Boot command",
                    current=str(Phase.SHELL),
                    wanted="bootloader",
                    hint="boot with until: bootloader first",
                )
            self._drop_link()
            yield

    @asynccontextmanager
    async def _shell(self, what: str) -> AsyncIterator[ShellLink]:
        async with self._busy:
            link = await self._shell_link(what)
            self._in_step = False
            try:
                yield link
            except NotAnswering:
                raise
            except ShellGone:
                self._drop_link()
                raise
            except ConsoleError:
                # Its last request was answered; a timeout or a lost board is sorted out at the next operation.
                raise
            else:
                self._in_step = True

    async def _shell_link(self, what: str) -> ShellLink:
        if self.phase is Phase.PANIC:
            self._drop_link()
        if self._link is not None and self._link_usable() and (self._in_step or await self._resync()):
            return self._link
        self._drop_link()
        watch = self._line.watch(what)
        await self._reach_shell(what, watch)
        self._link = await prepare(self._line, watch, quiet_kernel=self.settings.quiet_kernel)
        self._link_boot = self._line.tracker.boots
        self._in_step = True
        self._line.tracker.confirm(Phase.SHELL)
        self._line.transcript.note("shell prepared")
        return self._link

    async def _reach_shell(self, what: str, watch: Watch) -> None:
        tracker = self._line.tracker
        if tracker.phase in (Phase.SILENT, Phase.KERNEL):
            await probe(self._line, watch, 3.0)
        elif tracker.phase is Phase.PANIC and await shell_answers(self._line, watch, 2.0):
            # An oops need not be the end.
            tracker.confirm(Phase.SHELL)
        if tracker.phase in (Phase.LOGIN, Phase.PASSWORD) and self._login is not None:
            await log_in(self._line, watch, self._login, 30)
            tracker.confirm(Phase.SHELL)
        if tracker.phase is Phase.SHELL and not await shell_answers(self._line, watch, 2.0):
            await probe(self._line, watch, 3.0)
        if tracker.phase is not Phase.SHELL:
            raise WrongPhase(
                f"{self.name}: {what}", current=str(tracker.phase), wanted="shell", hint=self._hint(tracker)
            )

    def _hint(self, tracker: PhaseTracker) -> str:
        if tracker.phase is Phase.PANIC:
            return f"the kernel died ({tracker.panic}); power cycle the board"
        return {
            Phase.SILENT: "nothing answers: is the board on, and is this its console?",
            Phase.BOOTLOADER: "boot with until: shell first",
            Phase.KERNEL: "it is still booting: boot with until: shell, or try again",
            Phase.LOGIN: "configure a login",
            Phase.PASSWORD: "configure a login",
        }.get(tracker.phase, "try again")

    def _link_usable(self) -> bool:
        return self._link is not None and self._link_boot == self._line.tracker.boots and self._line.failure is None

    async def _resync(self) -> bool:
        assert self._link is not None
        self._line.tracker.framed = True
        self._in_step = await self._link.interrupt()
        if self._in_step:
            self._line.tracker.confirm(Phase.SHELL)
        return self._in_step

    def _drop_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    async def _release(self) -> None:
        """End the device program: the device's own shell, with echo and prompt, for a person or for `send`."""
        link, usable = self._link, self._link_usable()
        self._drop_link()
        if link is None or not usable:
            return
        since = self._line.ring.end
        watch = self._line.watch("giving the shell back")
        await self._line.write(b"quit\n")
        await self._line.expect(f"@{link.nonce} X", since=since, timeout=2.0, guard=watch.check)
        await self._line.write(b" stty sane 2>/dev/null\n")
        await shell_answers(self._line, watch, 2.0)

    def _phase_changed(self, record: PhaseRecord) -> None:
        self._line.transcript.note(f"phase {record.phase} after {record.seconds:.3f} s")
        if self._on_event is not None:
            self._on_event(ConsoleEvent("phase", f"{record.phase} after {record.seconds:.1f} s", record.as_dict()))


class RawConsole:
    """The console without interpretation, from the moment of attaching."""

    def __init__(self, line: ConsoleLine) -> None:
        self._line = line
        self._pos = line.ring.end

    async def receive(self) -> bytes:
        """The next bytes, never empty. Raises ConsoleLost when the console is gone."""
        ring = self._line.ring
        watch = self._line.watch("attached", panic=False, restart=False, lost=False)
        while ring.end <= self._pos:
            watch.check()
            await ring.changed(3600)
        data = ring.since(self._pos)
        self._pos = ring.end
        return data

    async def send(self, data: bytes) -> None:
        """Type bytes."""
        await self._line.write(data)


@asynccontextmanager
async def _limit(what: str, seconds: float | None) -> AsyncIterator[float | None]:
    """Gives when the time is over, in the event loop's time."""
    try:
        async with asyncio.timeout(seconds) as limit:
            yield limit.when()
    except TimeoutError:
        raise transfer.timed_out(what, seconds or 0.0) from None


def _shown(pattern: Pattern | Sequence[Pattern]) -> str:
    several = [pattern] if isinstance(pattern, str | bytes | re.Pattern) else pattern
    return " or ".join(repr(p.pattern) if isinstance(p, re.Pattern) else repr(p) for p in several)


def _short(cmd: str) -> str:
    return cmd if len(cmd) <= 60 else cmd[:57] + "..."
