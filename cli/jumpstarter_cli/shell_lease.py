# SPDX-License-Identifier: Apache-2.0
"""`jmp shell` with an exporter that a controller leases.

The lease is held by a process of its own (`jumpstarter_cli.lease_holder`); this one shows what that tells, runs the
command, and ends it when the lease is lost.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from jumpstarter.common.exceptions import AuthenticationError, JumpstarterException
from jumpstarter.config import env
from jumpstarter_cli.launch import launch
from jumpstarter_cli.lease_holder import Wanted
from jumpstarter_cli.shell_session import Surroundings

if TYPE_CHECKING:
    from types import FrameType

    from jumpstarter.config.client import ClientConfigV1Alpha1

__all__ = ["EXIT_LEASE_LOST", "leased"]

#: The lease ended while the command ran.
EXIT_LEASE_LOST = 75
#: Seconds that the command has to end after SIGHUP when the lease is lost.
_HANGUP_SECONDS = 5.0
#: Seconds that giving the lease back may take when nobody waits for the exporter's hook.
_RELEASE_SECONDS = 15.0
#: Seconds after which a log gets a line that says what it waits for, though the controller has told nothing.
_PATIENCE_SECONDS = 5.0
#: Seconds between lines that say the same, while waiting without a terminal.
_REPEAT_SECONDS = 300.0


def leased(config: ClientConfigV1Alpha1, wanted: Wanted, command: Sequence[str]) -> int:
    """Run the command with a leased exporter. Returns its exit code, or EXIT_LEASE_LOST.

    wanted: without configuration and socket, which are filled in here.
    """
    with Surroundings() as around:
        address = str(around.directory / "lease.sock")
        again = True
        while True:
            wanted = replace(
                wanted,
                config=config.to_dict(),
                config_path=str(config.path) if config.path else None,
                socket=address,
            )
            try:
                return _run(wanted, config, around, command)
            except AuthenticationError as error:
                if not again or not _log_in(config, error):
                    raise
                again = False
            except _Choose as choose:
                wanted = replace(wanted, lease=choose.ask())


def _log_in(config: ClientConfigV1Alpha1, error: AuthenticationError) -> bool:
    from jumpstarter_cli.relogin import relogin

    return relogin(config, error)


def _run(wanted: Wanted, config: ClientConfigV1Alpha1, around: Surroundings, command: Sequence[str]) -> int:
    with _holder(wanted) as holder:
        held = holder.wait_until_ready()
        exporter = str(held["exporter"] or "")
        around.set(
            {
                env.JUMPSTARTER_HOST: wanted.socket,
                env.JMP_DRIVERS_ALLOW: _allowed(config),
                env.JMP_EXPORTER: exporter,
                env.JMP_EXPORTER_LABELS: ",".join(f"{key}={value}" for key, value in held["labels"].items()),
                env.JMP_LEASE: str(held["lease"]),
            }
        )
        motd = "" if command else str(around.probe().get("motd", ""))
        code = launch(command, around.environment, exporter, motd, holder.guard)
        lost = holder.lost
        holder.end()
        return EXIT_LEASE_LOST if lost else code


def _allowed(config: ClientConfigV1Alpha1) -> str:
    """Which client classes the shell's programs may import: the configuration's choice, else what is installed here."""
    drivers = config.drivers
    if drivers.unsafe:
        return "UNSAFE"
    if drivers.allow:
        return ",".join(drivers.allow)
    from jumpstarter.common.importlib import registered_patterns

    return ",".join(registered_patterns())


class _Choose(Exception):
    """The client has several leases."""

    def __init__(self, text: str, leases: list[dict[str, str]]) -> None:
        super().__init__(text)
        self.text, self.leases = text, leases

    def ask(self) -> str:
        """The one that the user wants. Raises UsageError where nobody can be asked."""
        lines = [f"  {lease['name']}  {lease['text']}" for lease in self.leases]
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise click.UsageError("\n".join([f"{self.text}:", *lines]))
        click.echo("\n".join(["You have several leases:", *lines]), err=True)
        names = [lease["name"] for lease in self.leases]
        chosen: str = click.prompt("Which one", type=click.Choice(names), err=True)
        return chosen


class _Status:
    """What one waits for: a line that changes on a terminal, lines in a log."""

    def __init__(self) -> None:
        quiet = env.is_true(os.environ.get("NONINTERACTIVE"))
        self._terminal = sys.stderr.isatty() and not quiet
        self._since = self._told = time.monotonic()
        self._text = ""
        self._shown = False
        self._lock = threading.Lock()

    def show(self, text: str) -> None:
        """It waits for this (still)."""
        with self._lock:
            now = time.monotonic()
            if self._terminal:
                self._shown = True
                click.echo(f"\r\x1b[K{text} ({now - self._since:.0f} s)", nl=False, err=True)
            elif text != self._text or now - self._told > _REPEAT_SECONDS:
                self._told = now
                click.echo(text, err=True)
            self._text = text

    def tick(self, text: str) -> None:
        """A second has passed and it still waits for this; in a log that is worth a line after some of them only."""
        if self._terminal or self._text or time.monotonic() - self._since > _PATIENCE_SECONDS:
            self.show(text)

    def line(self, text: str) -> None:
        """A line for good."""
        with self._lock:
            self._clear()
            click.echo(text, err=True)

    def clear(self) -> None:
        """It does not wait any more."""
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        if self._shown:
            click.echo("\r\x1b[K", nl=False, err=True)
            self._shown = False


class _Holder:
    """The process that holds the lease, and what it told."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.lost = ""
        self._process = process
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._status = _Status()
        self._command: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, name="lease", daemon=True)
        self._reader.start()

    # --- in the reader's thread --------------------------------------------------------------------------------

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            kind = event["event"]
            if kind == "log":
                self._status.line(event["text"])
            elif kind == "notice":
                self._status.line(_warning(event["text"]))
            elif kind == "lost":
                self._lose(event["text"])
            else:
                self._events.put(event)
        self._process.wait()
        self._events.put(None)
        if not self.lost:
            self._lose("", quiet=True)

    def _lose(self, text: str, *, quiet: bool = False) -> None:
        with self._lock:
            command = self._command
            running = command is not None and command.poll() is None
            if quiet and not running:
                return  # it has ended because it was told to
            self.lost = text or f"the process that held the lease is gone (exit code {self._process.returncode})"
        self._status.line(click.style(f"Error: {self.lost}", fg="red"))
        if running:
            assert command is not None
            self._hang_up(command)

    def _hang_up(self, command: subprocess.Popen[bytes]) -> None:
        click.echo("The command is ended: its exporter is not ours any more.", err=True)
        command.send_signal(signal.SIGHUP)
        timer = threading.Timer(_HANGUP_SECONDS, command.kill)
        timer.daemon = True
        timer.start()

    # --- in the main thread ------------------------------------------------------------------------------------

    def guard(self, command: subprocess.Popen[bytes]) -> None:
        """End this command when the lease is lost."""
        with self._lock:
            self._command = command
            lost = self.lost
        if lost:
            self._hang_up(command)

    def wait_until_ready(self) -> dict[str, Any]:
        """Show what it waits for until the exporter is ready; the event that told which one it is."""
        text, held = "connecting to the controller", dict[str, Any]()
        try:
            while True:
                try:
                    event = self._events.get(timeout=1.0)
                except queue.Empty:
                    self._status.tick(text)
                    continue
                if event is None:
                    raise JumpstarterException(self.lost or "the process that leases the exporter is gone")
                kind = event["event"]
                if kind in ("asking", "waiting"):
                    text = event["text"]
                    if kind == "waiting":
                        self._status.show(text)
                elif kind == "held":
                    held = event
                    text = f"exporter {event['exporter']} is getting ready"
                elif kind == "ready":
                    if event["warning"]:
                        self._status.line(_warning(event["warning"]))
                    return held
                elif kind == "failed":
                    raise _failure(event)
        finally:
            self._status.clear()

    def end(self) -> None:
        """End the session in order and wait for it, the exporter's afterLease hook included."""
        self.say(b"end\n")
        while (event := self._events.get()) is not None:
            if event["event"] == "done" and event["warning"]:
                self._status.line(_warning(event["warning"]))
            elif event["event"] == "failed" and not self.lost:
                self._status.line(_warning(event["text"]))

    def say(self, line: bytes) -> None:
        """Send it a line."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has gone, and the end of its stdout says so

    def close(self) -> None:
        """Let it give back what it holds, and wait for that."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._lock:
            self._command = None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it has gone
        try:
            self._process.wait(_RELEASE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self._status.line(_warning("the lease could not be given back; it ends when its heartbeat is missed"))
        self._reader.join()
        self._process.stdout.close()


def _warning(text: str) -> str:
    return click.style(f"Warning: {text}", fg="yellow")


def _failure(event: dict[str, Any]) -> Exception:
    text = event["text"]
    if event["kind"] == "authentication":
        return AuthenticationError(text)
    if event["kind"] == "choose":
        return _Choose(text, event["leases"])
    if event["kind"] == "usage":
        return click.UsageError(text)
    return JumpstarterException(text)


@contextmanager
def _holder(wanted: Wanted) -> Iterator[_Holder]:
    with _ended_by_signals():
        process = subprocess.Popen(
            [sys.executable, "-m", "jumpstarter_cli.lease_holder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the shell is for the command
        )
        holder = _Holder(process)
        try:
            holder.say(wanted.to_json().encode())
            yield holder
        finally:
            holder.close()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """While no command runs, SIGTERM and SIGHUP end this one in order."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
