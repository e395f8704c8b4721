# SPDX-License-Identifier: Apache-2.0
"""One console line under observation: everything it says is read at once, kept, logged and classified."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from .errors import BoardGone, BoardRestarted, ConsoleLost, ConsoleTimeout, KernelPanic
from .expect import Match, Pattern, compile_patterns, expect
from .phases import Phase, PhaseTracker
from .ring import Ring
from .transcript import Transcript
from .transport import ByteConsole

INTERRUPT = b"\x11\x03"
"""^Q, so that a console which a ^S (of somebody, or of a damaged byte) has stopped goes on, and ^C."""


class Watch:
    """What must not happen while an operation waits: made at its begin, asked again and again by :meth:`check`."""

    def __init__(self, line: ConsoleLine, what: str, *, panic: bool = True, restart: bool = True, lost: bool = True):
        self._line = line
        self._what = what
        self._panics = line.tracker.panics if panic else None
        self._boots = line.tracker.boots if restart else None
        self._losses = line.port_losses if lost else None

    def check(self) -> None:
        """Raise when the console or the device went away under the operation."""
        line, what = self._line, self._what
        if self._panics is not None and line.tracker.panics != self._panics:
            panic = line.tracker.panic or "panic"
            raise KernelPanic(
                f"{line.name}: the device died during {what}: {panic}", line=panic, tail=line.transcript.tail()
            )
        if line.failure is not None:
            raise ConsoleLost(f"{line.name}: the console was lost during {what}: {line.failure}")
        if self._losses is not None and line.port_losses != self._losses:
            raise BoardGone(
                f"{line.name}: the board went away during {what}: {line.port_event}", tail=line.transcript.tail()
            )
        if self._boots is not None and line.tracker.boots != self._boots:
            raise BoardRestarted(f"{line.name}: the device restarted during {what}", tail=line.transcript.tail())


class ConsoleLine:
    """Reads a :class:`ByteConsole` from :meth:`start` to :meth:`aclose`; ``name`` begins every error message."""

    def __init__(self, console: ByteConsole, name: str, tracker: PhaseTracker, transcript: Transcript) -> None:
        self.console = console
        self.name = name
        self.tracker = tracker
        self.transcript = transcript
        self.ring = Ring()
        self.failure: str | None = None
        self.port_losses = 0
        self.port_event = ""
        self._origin: int | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to read."""
        self.transcript.open()
        self._reader = asyncio.create_task(self._read(), name=f"console reader {self.name}")

    async def aclose(self) -> None:
        """Stop reading and let go of the console."""
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
            self._reader = None
        self.failure = self.failure or "closed"
        self.ring.wake()
        await self.console.aclose()
        self.transcript.close()

    async def write(self, data: bytes) -> None:
        """Send bytes; a console that is gone is an error here, not silence later."""
        if self.failure is not None:
            raise ConsoleLost(f"{self.name}: the console was lost: {self.failure}")
        try:
            await self.console.write(data)
        except (OSError, EOFError) as error:
            raise ConsoleLost(f"{self.name}: cannot write to the console: {error or type(error).__name__}") from error

    def lost_power(self, why: str) -> None:
        """The port or the board behind the console is gone (for now): operations that wait must end."""
        self.port_losses += 1
        self.port_event = why
        self.transcript.note(why)
        self.ring.wake()

    def watch(self, what: str, *, panic: bool = True, restart: bool = True, lost: bool = True) -> Watch:
        """Begin to watch for events that make it senseless to wait on."""
        return Watch(self, what, panic=panic, restart=restart, lost=lost)

    async def expect(
        self, patterns: Pattern | Sequence[Pattern], *, since: int, timeout: float, guard: Callable[[], None]
    ) -> Match | None:
        """See :func:`expect.expect`."""
        return await expect(self.ring, compile_patterns(patterns), since=since, timeout=timeout, guard=guard)

    def timeout_error(self, what: str, seconds: float) -> ConsoleTimeout:
        """A timeout that tells where the device is and what it said last."""
        tail = self.transcript.tail(5)
        said = " | ".join(tail) if tail else "nothing"
        return ConsoleTimeout(
            f"{self.name}: {what}: not within {seconds:g} s; phase {self.tracker.phase}, it said last: {said}",
            phase=str(self.tracker.phase),
            tail=self.transcript.tail(),
        )

    async def _read(self) -> None:
        try:
            async for chunk in self.console.chunks():
                if chunk.event:
                    self._port(chunk.event)
                if chunk.data:
                    self._received(chunk.seq, chunk.data)
            self.failure = "its byte stream ended"
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  whatever ends the reader must reach those who wait, as their error
            self.failure = f"{error}" or type(error).__name__
        self.transcript.note(f"console lost: {self.failure}")
        self.ring.wake()

    def _received(self, seq: int, data: bytes) -> None:
        if self._origin is None:
            self._origin = seq - self.ring.end
        missing = seq - self._origin - self.ring.end
        if missing > 0:
            self.ring.lost += missing
            self._origin += missing
            self.transcript.note(f"{missing} bytes of the console were lost on the way")
        self.transcript.received(data)
        self.tracker.feed(data, self.ring.end + len(data))
        self.ring.append(data)

    def _port(self, event: str) -> None:
        if event.startswith("lost"):
            self.lost_power(f"console port {event}")
        else:
            self.transcript.note(f"console port {event}")


__all__ = ["INTERRUPT", "ConsoleLine", "Phase", "Watch"]
