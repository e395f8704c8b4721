# SPDX-License-Identifier: Apache-2.0
"""U-Boot's prompt on a console of this exporter.

A command travels as one line ``echo MARK'b'; COMMAND; echo MARK'e'$?``. The shell removes the quotes, so that the
marks it prints differ from the marks it echoes: output and exit status are what stands between and after the printed
ones, whatever is echoed, wrapped or printed by a driver in the meantime. The line is typed in pieces that must come
back as echo before the next one is sent: a UART without flow control loses what comes while nobody looks.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import cast

from jumpstarter.common.exceptions import DriverError
from jumpstarter_driver_pyserial.hub import Chunk, ConsoleHub, Writer

__all__ = ["PromptLink", "Result", "UbootError"]

_CTRL_C = b"\x03"
_PIECE = 16  # the receive FIFO of a 16550 or PL011
_ECHO_SECONDS = 1.0
_ATTEMPTS = 3
_KEY_INTERVAL = 0.1
_KEEP = 1 << 22
_TAIL = 160

# U-Boot is gone when one of these appears: it started something else, or itself again.
_LEFT = {
    "kernel": re.compile(rb"\nStarting kernel \.\.\."),
    "efi": re.compile(rb"\n(?:EFI stub: |Booting /)[^\n]*"),
    "reset": re.compile(rb"\nresetting \.\.\."),
}
_BANNER = re.compile(rb"(?:^|\n)(U-Boot (?:SPL )?\d{4}\.\d{2}[^\r\n]*)\r?\n")


class UbootError(DriverError):
    """U-Boot does not answer as U-Boot does; the message ends with the last thing on the console."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="INTERNAL")


@dataclass(frozen=True)
class Result:
    """What a command answered. rc is None when it left U-Boot; left is then "kernel", "efi" or "reset"."""

    rc: int | None
    lines: list[str]
    left: str | None = None


class PromptLink:
    """A conversation with U-Boot; see `conversation`."""

    def __init__(self, hub: ConsoleHub, writer: Writer, prompt: str) -> None:
        self._hub = hub
        self._writer = writer
        self._prompt = re.compile(rb"(?:^|[\r\n])" + re.escape(prompt.strip().encode()) + rb" ?\Z")
        self._at = hub.head
        self._seen = b""
        self._ready = False  # at the prompt, and nobody but us can have typed since

    @classmethod
    @asynccontextmanager
    async def conversation(cls, hub: ConsoleHub, prompt: str, owner: str) -> AsyncIterator[PromptLink]:
        """Be the writer of the console while the context lasts.

        owner: name of the writer; the conversation joins a writer of the same name. Raises ConsoleBusy naming the
        other one, when there is one.
        """
        held = hub.writer if hub.writer is not None and hub.writer.owner == owner else None
        writer = held or hub.claim(owner)
        try:
            yield cls(hub, writer, prompt)
        finally:
            if held is None:
                hub.release(writer)

    async def interrupt(self, timeout: float, *, since: int | None = None) -> str | None:
        """Come to the prompt, stopping autoboot or a command if need be. Returns the banner if it was seen.

        since: offset of the log to look from, for output that came already. Ctrl-C is the key: it stops a countdown and
        a boot command alike, and leaves nothing on the command line.

        Raises UbootError after ``timeout`` seconds, or as soon as something else was booted.
        """
        if since is not None:
            self._at = since
        self._seen = b""
        start = since if since is not None else self._hub.head
        await self._hub.wait_open(1.0)
        keys = asyncio.create_task(self._press_keys())
        try:
            async with asyncio.timeout(timeout):
                while not self._prompt.search(self._seen):
                    if keys.done():
                        keys.result()
                    self._check_left(self._seen)
                    await self._more(_KEY_INTERVAL)
        except TimeoutError:
            raise UbootError(f"no U-Boot prompt within {timeout:g} s{self._tail()}") from None
        finally:
            keys.cancel()
            await asyncio.wait([keys])  # not `await keys`: its cancellation could not be told from the caller's
            if not keys.cancelled():
                keys.exception()  # it was raised above, unless the prompt came all the same
        seen = self._hub.read(max(start, self._hub.ring.first), _KEEP).data
        banners = _BANNER.findall(seen)
        return banners[-1].decode(errors="replace").strip() if banners else None

    async def require_prompt(self, timeout: float = 3.0) -> None:
        """Make sure that U-Boot waits for a command. Raises UbootError.

        The look of the last line proves nothing: what somebody else typed may not be echoed yet. Ctrl-C drops it.
        """
        if self._ready:
            return
        self._at = self._hub.head
        self._seen = b""
        await self._send(_CTRL_C)
        try:
            await self._until(self._prompt, timeout)
        except TimeoutError:
            raise UbootError(
                f"the board is not at U-Boot's prompt (no answer within {timeout:g} s); interrupt its boot first"
                f"{self._tail()}"
            ) from None

    async def run(self, command: str, timeout: float) -> Result:
        """Run a command (see `common.check_command`) and return exit status and output lines.

        Raises UbootError when there is no prompt, the line is lost or too long, or U-Boot does not come back within
        ``timeout`` seconds (the command is interrupted then).
        """
        await self.require_prompt()
        self._ready = False
        mark = "jl" + secrets.token_hex(3)
        line = f"echo {mark}'b'; {command}; echo {mark}'e'$?" if command else f"echo {mark}'b'; echo {mark}'e'$?"
        await self._type(line.encode())
        begin = re.compile(rf"{mark}b\r*\n".encode())
        # A command that prints no newline at its end has the mark behind its last line.
        end = re.compile(rf"{mark}e(\d+)\r*\n".encode())
        self._seen = b""
        await self._send(b"\r")
        try:
            async with asyncio.timeout(timeout):
                started = await self._wait(begin)
                while (ended := end.search(self._seen, started.end())) is None:
                    left = self._left(self._seen[started.end() - 1 :])
                    if left is not None:
                        return Result(None, _lines(self._seen[started.end() :]), left)
                    await self._more(None)
                output = self._seen[started.end() : ended.start()]
                await self._wait(self._prompt)
        except TimeoutError:
            text = self._tail()
            with suppress(UbootError):
                await self._back_to_prompt()
            raise TimeoutError(f"U-Boot command {command!r} did not end within {timeout:g} s{text}") from None
        self._ready = True
        return Result(int(ended.group(1)), _lines(output))

    async def _back_to_prompt(self) -> None:
        self._seen = b""
        await self._send(_CTRL_C)
        with suppress(TimeoutError):
            await self._until(self._prompt, _ECHO_SECONDS)

    async def _type(self, line: bytes) -> None:
        """Type a line, without its end, and see all of it echoed."""
        for _ in range(_ATTEMPTS):
            if await self._typed(line):
                return
            if b"\a" in self._seen:
                await self._back_to_prompt()
                raise UbootError(
                    f"the command is too long for U-Boot's command line ({len(line)} characters with marks)"
                )
            await self._back_to_prompt()
        raise UbootError(f"U-Boot does not echo what is typed, after {_ATTEMPTS} attempts{self._tail()}")

    async def _typed(self, line: bytes) -> bool:
        self._seen = b""
        for start in range(0, len(line), _PIECE):
            piece = line[start : start + _PIECE]
            await self._send(piece)
            try:
                async with asyncio.timeout(_ECHO_SECONDS):
                    while piece not in self._seen:
                        if b"\a" in self._seen:  # the editor's buffer is full
                            return False
                        await self._more(None)
            except TimeoutError:
                return False
            self._seen = self._seen.partition(piece)[2]
        return True

    async def _press_keys(self) -> None:
        while True:
            await self._send(_CTRL_C)
            await asyncio.sleep(_KEY_INTERVAL)

    async def _send(self, data: bytes) -> None:
        await self._hub.write_as(self._writer, data)

    async def _until(self, pattern: re.Pattern[bytes], timeout: float) -> re.Match[bytes]:
        async with asyncio.timeout(timeout):
            return await self._wait(pattern)

    async def _wait(self, pattern: re.Pattern[bytes]) -> re.Match[bytes]:
        while (found := pattern.search(self._seen)) is None:
            await self._more(None)
        return found

    async def _more(self, timeout: float | None) -> None:
        """Wait for more output; returns without any after ``timeout`` seconds."""
        chunks = cast(AsyncGenerator[Chunk, None], self._hub.follow(self._at))
        try:
            async with asyncio.timeout(timeout), aclosing(chunks):
                async for chunk in chunks:
                    if chunk.event.startswith("lost") and chunk.seq == self._hub.head and not self._hub.open:
                        raise UbootError(f"the console went away ({chunk.event}); is the board powered?")
                    if chunk.data:
                        self._seen = (self._seen + chunk.data)[-_KEEP:]
                        self._at = chunk.seq + len(chunk.data)
                        return
        except TimeoutError:
            if timeout is None:  # the caller's
                raise
        else:
            raise UbootError("the console was closed")

    def _check_left(self, data: bytes) -> None:
        left = self._left(data)
        if left in ("kernel", "efi"):
            raise UbootError(
                f"the board has left U-Boot ({left}); its autoboot was not interrupted in time{self._tail()}"
            )

    @staticmethod
    def _left(data: bytes) -> str | None:
        for name, pattern in _LEFT.items():
            if pattern.search(data):
                return name
        return None

    def _tail(self) -> str:
        """The last thing on the console, for messages."""
        text = self._hub.read(-1, _TAIL).data.decode(errors="replace")
        text = re.sub(r"[^\x20-\x7e]+", " ", text).strip()
        return f'; the console says "...{text}"' if text else "; the console is silent"


def _lines(output: bytes) -> list[str]:
    """Output as lines, without the carriage returns that U-Boot puts before (and sometimes after) each newline."""
    text = output.decode(errors="replace").replace("\r", "")
    lines = text.split("\n")
    return lines[:-1] if lines and not lines[-1] else lines
