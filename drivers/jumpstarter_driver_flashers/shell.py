# SPDX-License-Identifier: Apache-2.0
"""The shell of a flasher system on a console of this exporter.

Commands travel as at U-Boot's prompt (`jumpstarter_driver_uboot.link`), between marks whose echo differs from what the
shell prints, and with their exit status. BusyBox's line editor is left out of it: at 80 columns it folds what it echoes
and asks the terminal for its cursor. The first line that is typed starts a loop which reads lines by ``read``: from
there on the terminal driver of the kernel echoes what is typed, unfolded.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import shlex
from collections.abc import Callable
from contextlib import suppress

from jumpstarter.common.exceptions import DriverError
from jumpstarter_driver_flashers.manifest import FlasherLogin
from jumpstarter_driver_pyserial.hub import ConsoleHub, Writer
from jumpstarter_driver_uboot.link import PromptLink, UbootError

__all__ = ["ShellError", "ShellLink", "quote"]

_LOOP = 'while IFS= read -r L; do eval "$L"; done'
_PROBE_SECONDS = 3.0
_QUIET_SECONDS = 0.3
_TTY_LINE = 4000
"""Bytes the kernel's terminal driver takes for a line, with room for its end."""
_SECRET_PIECE = 1024
_PASSWORD = re.compile(rb"ssword: ?\Z")


class ShellError(DriverError):
    """The flasher system does not answer, or a command failed; the message ends with the last thing it said."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="INTERNAL")


quote = shlex.quote


class ShellLink(PromptLink):
    """A conversation with a POSIX shell. Start with `login`."""

    def __init__(self, hub: ConsoleHub, writer: Writer, *, since: int) -> None:
        """since: offset of the log where the system's output begins."""
        super().__init__(hub, writer, "\0")
        self._prompt = re.compile(rb"")  # `read` shows none
        self._at = since
        self._watch: Callable[[str], None] | None = None
        self._silence: float | None = None

    async def login(self, login: FlasherLogin, timeout: float) -> None:
        """Wait for the system's shell, logging in if it asks, and make it ready for `run`.

        A prompt alone proves nothing (kernel messages end with any character): the shell has to print a mark.
        Raises ShellError after ``timeout`` seconds.
        """
        prompt = re.compile(rb"(?:^|[\r\n])[^\r\n]*" + re.escape(login.prompt.strip().encode()) + rb" ?(?:\x1b\[6n)?\Z")
        asks = re.compile(re.escape(login.login_prompt.strip().encode()) + rb" ?\Z")
        named = 0
        try:
            async with asyncio.timeout(timeout):
                while True:
                    before = len(self._seen)
                    await self._more(_QUIET_SECONDS)
                    if len(self._seen) != before:
                        continue  # it is still talking
                    if prompt.search(self._seen):
                        if await self._probe():
                            break
                    elif login.username is not None and asks.search(self._seen):
                        named += 1
                        if named > 3:
                            raise ShellError(f"the flasher system refuses the login of its manifest{self._tail()}")
                        await self._answer(login.username)
                    elif login.password is not None and _PASSWORD.search(self._seen):
                        await self._answer(login.password)
                    else:
                        await self._more(None)
        except TimeoutError:
            raise ShellError(
                f"no shell (prompt {login.prompt!r}) of the flasher system within {timeout:g} s{self._tail()}"
            ) from None
        self._ready = True

    async def command(
        self, command: str, timeout: float, *, watch: Callable[[str], None] | None = None, silence: float | None = None,
        what: str = "",
    ) -> list[str]:  # fmt: skip
        """Run a command and return its output; ShellError unless its exit status is 0.

        watch: called with the output so far whenever there is more. silence: see `status`. what: how errors call the
        command.
        """
        rc, lines = await self.status(command, timeout, watch=watch, silence=silence, what=what)
        if rc != 0:
            said = " / ".join(line for line in lines[-4:] if line.strip()) or "no output"
            raise ShellError(f"{what or repr(command)} failed on the board with exit status {rc}: {said}")
        return lines

    async def status(
        self, command: str, timeout: float, *, watch: Callable[[str], None] | None = None, silence: float | None = None,
        what: str = "",
    ) -> tuple[int, list[str]]:  # fmt: skip
        """Exit status and output lines of a command. Raises ShellError when it does not end in ``timeout`` seconds, or
        prints nothing for ``silence`` seconds."""
        if len(command) > _TTY_LINE - 64:
            raise ShellError(f"{what or repr(command[:40])}: {len(command)} characters are too long for the console")
        if any(ord(char) < 32 or ord(char) == 127 for char in command):
            raise ValueError(f"control character in the shell command {command!r}")
        self._watch, self._silence = watch, silence
        try:
            result = await self.run(command, timeout)
        except UbootError as error:
            raise ShellError(str(error)) from None
        except TimeoutError:
            raise ShellError(f"{what or repr(command)} did not end within {timeout:g} s{self._tail()}") from None
        finally:
            self._watch = self._silence = None
        if result.rc is None:
            raise ShellError(f"{what or repr(command)}: the board restarted{self._tail()}")
        return result.rc, result.lines

    async def secret(self, name: str, value: str) -> None:
        """Set a shell variable to what must not appear on the console: it is typed while nothing is echoed."""
        await self.command(f"{name}=", 10)
        data = value.encode()
        for start in range(0, len(data), _SECRET_PIECE):  # more than the terminal's line would silently be cut off
            await self._typed_blind(name, data[start : start + _SECRET_PIECE])

    async def _typed_blind(self, name: str, value: bytes) -> None:
        mark = "jl" + secrets.token_hex(3)
        line = f"stty -echo && echo {mark}'r' && IFS= read -r L2 && {name}=${name}$L2; L2=; stty echo; echo {mark}'k'"
        await self._type(line.encode())
        self._seen = b""
        await self._send(b"\r")
        try:
            await self._until(re.compile(rf"{mark}r\r*\n".encode()), _PROBE_SECONDS)
            await self._send(value + b"\r")
            await self._until(re.compile(rf"{mark}k\r*\n".encode()), _PROBE_SECONDS)
        except TimeoutError:
            raise ShellError(f"a secret could not be handed to the board without echo{self._tail()}") from None

    async def _probe(self) -> bool:
        """Whether a shell answers; it is in the loop then."""
        mark = "jl" + secrets.token_hex(3)
        await self._send(_LOOP.encode() + b"\r")
        with suppress(TimeoutError):
            await self._until(re.compile(re.escape(_LOOP.encode())), _PROBE_SECONDS)
        self._seen = b""
        await self._send(f"echo {mark}'p'\r".encode())
        try:
            await self._until(re.compile(rf"{mark}p\r*\n".encode()), _PROBE_SECONDS)
        except TimeoutError:
            return False
        return True

    async def _answer(self, text: str) -> None:
        self._seen = b""
        await self._send(text.encode() + b"\r")

    async def require_prompt(self, timeout: float = 3.0) -> None:
        """Nothing to do: nobody else can have typed since `login`, and ``read`` has no line to drop."""

    async def _back_to_prompt(self) -> None:
        # End the line that was not understood; in the loop it is a command like any other.
        self._seen = b""
        await self._send(b"\x15")  # ^U: the terminal driver drops what was typed

    async def _more(self, timeout: float | None) -> None:
        before = self._at
        await super()._more(self._silence if timeout is None else timeout)
        if timeout is None and self._silence is not None and self._at == before:
            raise ShellError(f"the board has said nothing for {self._silence:g} s{self._tail()}")
        if self._watch is not None:
            self._watch(self._seen[-4096:].decode(errors="replace"))

    @staticmethod
    def _left(data: bytes) -> str | None:
        # The firmware's banner in the middle of a command: the board fell over and starts again.
        return "reset" if re.search(rb"\nU-Boot (?:SPL )?\d{4}\.\d{2}", data) else None
