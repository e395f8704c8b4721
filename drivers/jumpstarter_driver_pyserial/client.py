# SPDX-License-Identifier: Apache-2.0
"""Client of consoles: pexpect, raw streams, the log, and the `j serial ...` commands."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jumpstarter.client import DriverClient

if TYPE_CHECKING:
    import click
    from pexpect.fdpexpect import fdspawn

__all__ = ["PySerialClient"]


@dataclass(kw_only=True)
class PySerialClient(DriverClient):
    """Client of `PySerial` and other console drivers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._pexpects: list[AbstractContextManager[fdspawn[bytes]]] = []

    def open(self) -> fdspawn[bytes]:
        """Open a pexpect session without a context manager; `close` ends it."""
        context = self.pexpect()
        spawn = context.__enter__()
        self._pexpects.append(context)
        self.stack.callback(self._close_pexpect, context)
        return spawn

    def close(self) -> None:
        """End the sessions that `open` and `open_stream` began."""
        for context in list(self._pexpects):
            self._close_pexpect(context)
        super().close()

    def _close_pexpect(self, context: AbstractContextManager[fdspawn[bytes]]) -> None:
        if context in self._pexpects:
            self._pexpects.remove(context)
            context.__exit__(None, None, None)

    @contextmanager
    def pexpect(self) -> Iterator[fdspawn[bytes]]:
        """A pexpect object on the console while the context is open."""
        from jumpstarter.client.adapters import PexpectAdapter

        with PexpectAdapter(client=self) as spawn:
            yield spawn

    def log(self, since_seq: int = 0, max_bytes: int = 1 << 16) -> dict[str, Any]:
        """Read the console's log from an offset on (negative: the newest bytes); see `ConsoleDriver.log`."""
        result: dict[str, Any] = self.call("log", since_seq, max_bytes)
        return result

    def follow(self, since_seq: int = 0) -> Generator[dict[str, Any], None, None]:
        """Yield the console's log from an offset on (negative: from now), without end; see `ConsoleDriver.follow`."""
        return self.streamingcall("follow", since_seq)

    def write(self, data: bytes, owner: str = "") -> int:
        """Write bytes; returns the log's offset at that moment."""
        return int(self.call("write", data, owner))

    def send_break(self, seconds: float = 0.25) -> None:
        """Send a BREAK of that length."""
        self.call("send_break", seconds)

    def set_dtr(self, state: bool) -> None:
        """Set the DTR line."""
        self.call("set_dtr", state)

    def set_rts(self, state: bool) -> None:
        """Set the RTS line."""
        self.call("set_rts", state)

    def cli(self) -> click.Group:
        """Commands: start-console, pipe, log."""
        import click

        from jumpstarter.client.decorators import driver_click_group

        @driver_click_group(self)
        def serial() -> None:
            """Use the device's console."""

        @serial.command("start-console")
        def start_console() -> None:
            """Connect this terminal to the console. Ctrl-B three times leaves."""
            from jumpstarter_driver_pyserial.terminal import run_terminal

            if not (sys.stdin.isatty() and sys.stdout.isatty()):
                raise click.UsageError("start-console needs a terminal; `pipe` joins files and programs to the console")
            run_terminal(self)

        @serial.command("pipe")
        @click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write to this file instead of stdout.")
        @click.option("-a", "--append", is_flag=True, help="Append to the output file.")
        @click.option(
            "-i/ ",
            "--input/--no-input",
            "with_input",
            default=None,
            help="Send stdin to the console. Default: if stdin is no terminal.",
        )
        @click.option("--no-output", is_flag=True, help="Send only; end when stdin has been sent.")
        def pipe(output: str | None, append: bool, with_input: bool | None, no_output: bool) -> None:
            """Connect stdin and stdout, or a file, to the console."""
            from jumpstarter_driver_pyserial.pipe import run_pipe

            stdin = sys.stdin.buffer
            if with_input is None:
                with_input = not stdin.isatty()
            if append and not output:
                raise click.UsageError("--append needs --output")
            if no_output and output:
                raise click.UsageError("--no-output and --output exclude each other")
            if no_output and not with_input:
                raise click.UsageError("nothing to do: neither input nor output")
            source = stdin if with_input else None
            if output:
                with open(output, "ab" if append else "wb") as target:
                    run_pipe(self, source, target)
            else:
                run_pipe(self, source, None if no_output else sys.stdout.buffer)

        @serial.command("log")
        @click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
        def log(follow: bool) -> None:
            """Print what the console said since the session began, as far as it is kept."""
            out = sys.stdout.buffer
            position = 0
            while not follow:
                piece = self.log(position)
                if not piece["data"]:
                    return
                out.write(piece["data"])
                out.flush()
                position = piece["next_seq"]
            for item in self.follow(0):
                if item["dropped"]:
                    click.echo(f"[{item['dropped']} bytes lost]", err=True)
                out.write(item["data"])
                out.flush()

        return serial
