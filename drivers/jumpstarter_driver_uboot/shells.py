# SPDX-License-Identifier: Apache-2.0
"""Two ways to U-Boot's command line from a client: calls to the exporter, or the bytes of the console."""

from __future__ import annotations

import re
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pexpect.fdpexpect import fdspawn

__all__ = ["ExporterShell", "PexpectShell", "Shell"]

_ESCAPE = "\x1b"


class Shell(Protocol):
    """What the client needs of either way."""

    def reboot(self, timeout: float) -> None:
        """Power-cycle and come to the prompt. Raises RuntimeError."""

    def run(self, command: str, timeout: float) -> tuple[int | None, list[str]]:
        """Exit status and output lines of a command. Raises TimeoutError."""


class ExporterShell:
    """The exporter talks to U-Boot; one call for a command."""

    def __init__(self, client: Any) -> None:
        self._client = client

    @classmethod
    @contextmanager
    def open(cls, client: Any, debug: bool) -> Iterator[ExporterShell]:
        """client: that of the U-Boot driver. debug: copy the console to stdout meanwhile."""
        shell = cls(client)
        if not debug:
            yield shell
            return
        with client.children["serial"].stream("tap") as stream:
            ended = threading.Event()
            copier = threading.Thread(target=_copy_out, args=(stream, ended), daemon=True)
            copier.start()
            try:
                yield shell
            finally:
                ended.set()

    def reboot(self, timeout: float) -> None:
        """Power-cycle and come to the prompt."""
        from jumpstarter.common.exceptions import DriverError

        try:
            self._client.call("reboot_to_prompt", 2.0, timeout)
        except DriverError as error:
            raise RuntimeError(f"Failed to get U-Boot prompt: {error}") from error

    def run(self, command: str, timeout: float) -> tuple[int | None, list[str]]:
        """Exit status (None when the command left U-Boot) and output lines."""
        from jumpstarter.common.exceptions import DriverError

        try:
            result = self._client.call("run", command, timeout)
        except DriverError as error:
            if error.code == "DEADLINE_EXCEEDED":
                raise TimeoutError(error.details) from error
            raise RuntimeError(str(error)) from error
        return result["rc"], result["lines"]


class PexpectShell:
    """This client talks to U-Boot, with exporters that cannot."""

    def __init__(self, power: Any, console: fdspawn[bytes], prompt: str) -> None:
        self._power = power
        self._console = console
        self._prompt = prompt.strip()

    @classmethod
    @contextmanager
    def open(cls, power: Any, serial: Any, prompt: str, debug: bool) -> Iterator[PexpectShell]:
        """power, serial: clients of the board's power switch and console. debug: copy the console to stdout."""
        with serial.pexpect() as console:
            console.delaybeforesend = None
            if debug:
                console.logfile_read = sys.stdout.buffer
            yield cls(power, console, prompt)

    def reboot(self, timeout: float) -> None:
        """Power-cycle and come to the prompt."""
        import pexpect

        self._power.cycle()
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self._console.send(_ESCAPE)
            try:
                self._console.expect_exact(self._prompt, timeout=0.1)
            except pexpect.TIMEOUT:
                continue
            return
        raise RuntimeError(f"Failed to get U-Boot prompt within {timeout:g} s")

    def run(self, command: str, timeout: float) -> tuple[int | None, list[str]]:
        """Exit status and output lines, between marks that cannot be mistaken for their own echo."""
        import pexpect

        mark = "jl" + secrets.token_hex(3)
        # An own line first: it takes the stray escapes of the interruption with it.
        self._console.sendline("#")
        self._console.sendline(f"echo {mark}'b'; {command}; echo {mark}'e'$?")
        deadline = time.monotonic() + timeout
        try:
            self._console.expect(rf"{mark}b\r*\n".encode(), timeout=timeout)
            self._console.expect(rf"{mark}e(\d+)\r*\n".encode(), timeout=max(0.1, deadline - time.monotonic()))
            output, match = self._console.before, self._console.match
            self._console.expect_exact(self._prompt, timeout=max(0.1, deadline - time.monotonic()))
        except pexpect.TIMEOUT as error:
            raise TimeoutError(f"U-Boot command {command!r} did not end within {timeout:g} s") from error
        assert isinstance(output, bytes) and isinstance(match, re.Match)  # both are set after a match
        text = re.sub(r"\r+", "", output.decode(errors="replace"))
        return int(match.group(1)), text.split("\n")[:-1] if text.endswith("\n") else text.split("\n") if text else []


def _copy_out(stream: Any, ended: threading.Event) -> None:
    from anyio import BrokenResourceError, ClosedResourceError, EndOfStream

    try:
        while not ended.is_set():
            sys.stdout.buffer.write(stream.receive())
            sys.stdout.buffer.flush()
    except (EndOfStream, BrokenResourceError, ClosedResourceError):
        return  # the console's end is the end of the copy
