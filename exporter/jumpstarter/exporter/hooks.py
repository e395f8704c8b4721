# SPDX-License-Identifier: Apache-2.0
"""Scripts that run before and after a lease.

Every hook ends in a definite outcome (`HookOutcome`), whatever happens: the script succeeds, fails, runs out of time,
cannot be started, or something unexpected goes wrong here. The caller never has to guess whether a lease may go on.

A hook runs in a process group of its own. Whatever is left of the group when the script ends is killed; out of time
means SIGTERM to the group, five seconds of grace, SIGKILL to the group. It also dies with the exporter. Its
environment is small and listed here: an exporter's environment may hold secrets that are no business of a script that
a client can make run.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pty
import stat
import sys
import tempfile
import tty
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jumpstarter.common.enums import LogSource
from jumpstarter.common.process import Process, spawn
from jumpstarter.config import env

if TYPE_CHECKING:
    from jumpstarter.config.exporter import HookInstanceConfigV1Alpha1
    from jumpstarter.exporter.session import Session

__all__ = ["LOGGER_NAME", "HookAction", "HookContext", "HookOutcome", "run_hook"]

#: While a hook runs, log streams show this logger as the hook.
LOGGER_NAME = "jumpstarter.exporter.hooks"

logger = logging.getLogger(LOGGER_NAME)
# As the loggers of drivers: what a hook says is for the client, however quiet the exporter itself was told to be.
logger.setLevel(logging.INFO)

Moment = Literal["beforeLease", "afterLease"]

_SOURCES = {"beforeLease": LogSource.BEFORE_LEASE_HOOK, "afterLease": LogSource.AFTER_LEASE_HOOK}
_MOTD_LIMIT = 64 * 1024
_LINE_LIMIT = 8 * 1024
_DRAIN_SECONDS = 2.0
_GRACE_SECONDS = 5.0

#: What a hook sees of the exporter's own environment. More by the hook's `passEnv` (names or globs).
_INHERITED = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LC_*",
    "TZ",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "VIRTUAL_ENV",
    "PYTHONPATH",
    "SSL_CERT_FILE",
)


class HookAction(Enum):
    """What the exporter does next: go on, go on but tell the client, end the lease, or stop altogether."""

    CONTINUE = "continue"
    WARN = "warn"
    END_LEASE = "endLease"
    EXIT = "exit"


@dataclass(frozen=True)
class HookContext:
    """What a hook is told about the lease.

    host: JUMPSTARTER_HOST for `j` inside the hook, the path of a socket of the session. details: further variables
    ("LEASE_SELECTOR", ...); names that a hook sets itself are not replaced.
    """

    host: str
    lease_name: str = ""
    client_name: str = ""
    exporter_name: str = ""
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class HookOutcome:
    """How a hook ended.

    action: what to do now. message: "" for success, else one line for the user. motd: what a beforeLease hook wants
    shown to interactive users. returncode: None when the script was not started or was killed for time.
    """

    action: HookAction
    message: str = ""
    motd: str = ""
    returncode: int | None = None

    @property
    def ok(self) -> bool:
        """Whether the script succeeded."""
        return self.action is HookAction.CONTINUE

    @property
    def status_message(self) -> str:
        """The exporter's status message: warnings are marked the way clients expect them."""
        return f"[HOOK_WARNING] {self.message}" if self.action is HookAction.WARN else self.message


async def run_hook(
    hook: HookInstanceConfigV1Alpha1 | None, moment: Moment, context: HookContext, session: Session | None = None
) -> HookOutcome:
    """Run `hook` to its end and return its outcome; a hook that is None succeeds at once.

    session: its log streams show the output, line by line, with the hook as source. Raises nothing but
    `asyncio.CancelledError`, after the script's process group has been killed.
    """
    if hook is None:
        return HookOutcome(HookAction.CONTINUE)
    if session is not None:
        session.logs.sources[LOGGER_NAME] = _SOURCES[moment]
    motd_file: Path | None = None
    try:
        if moment == "beforeLease":
            handle, name = tempfile.mkstemp(prefix="jumpstarter-motd-")
            os.close(handle)
            motd_file = Path(name)
        outcome = await _run(hook, moment, context, motd_file)
        motd = _read_motd(motd_file) if motd_file is not None and outcome.action in _GOING_ON else ""
        return HookOutcome(outcome.action, outcome.message, motd, outcome.returncode)
    except Exception as error:  # the outcome must be definite, also for what nobody thought of
        logger.exception("%s hook", moment)
        return _failure(hook, f"{moment} hook failed: {type(error).__name__}: {error}", None)
    finally:
        if motd_file is not None:
            motd_file.unlink(missing_ok=True)
        if session is not None:
            session.logs.sources.pop(LOGGER_NAME, None)


_GOING_ON = (HookAction.CONTINUE, HookAction.WARN)


def _failure(hook: HookInstanceConfigV1Alpha1, message: str, returncode: int | None) -> HookOutcome:
    action = {"warn": HookAction.WARN, "endLease": HookAction.END_LEASE, "exit": HookAction.EXIT}[hook.on_failure]
    logger.log(logging.WARNING if action is HookAction.WARN else logging.ERROR, "%s", message)
    return HookOutcome(action, message, "", returncode)


async def _run(
    hook: HookInstanceConfigV1Alpha1, moment: Moment, context: HookContext, motd_file: Path | None
) -> HookOutcome:
    argv = command_of(hook)
    environment = environment_of(hook, context, os.environ)
    if motd_file is not None:
        environment[env.JMP_MOTD_FILE] = str(motd_file)
    # A terminal, so that programs write line by line and the client sees them work.
    master, slave = pty.openpty()
    tty.setraw(slave)
    output = _Output(master)
    try:
        try:
            # `sh` joins stderr with stdout, in order, and becomes the script.
            process = await asyncio.to_thread(
                spawn, ["/bin/sh", "-c", 'exec "$@" 2>&1', "hook", *argv], name=argv[0], env=environment, stdout=slave
            )
        except OSError as error:
            return _failure(hook, f"{moment} hook cannot be started: {error}", None)
        finally:
            os.close(slave)
        output.start()
        return await _wait(hook, moment, process, output)
    finally:
        output.close()


async def _wait(hook: HookInstanceConfigV1Alpha1, moment: Moment, process: Process, output: _Output) -> HookOutcome:
    try:
        returncode = await asyncio.wait_for(process.wait_async(), hook.timeout)
    except TimeoutError:
        await asyncio.to_thread(process.stop, _GRACE_SECONDS)
        await output.drain()
        return _failure(hook, f"{moment} hook timed out after {hook.timeout:g} seconds", None)
    except asyncio.CancelledError:
        await asyncio.shield(asyncio.to_thread(process.stop, 0))
        raise
    await output.drain()
    if returncode == 0:
        return HookOutcome(HookAction.CONTINUE, "", "", 0)
    how = f"exit code {returncode}" if returncode > 0 else f"killed by signal {-returncode}"
    if returncode in (126, 127):
        how += f": {hook.exec_ or 'interpreter'} cannot be run"
    return _failure(hook, f"{moment} hook failed ({how})", returncode)


def command_of(hook: HookInstanceConfigV1Alpha1) -> list[str]:
    """The command line of a hook.

    A script of one line that is the path of a file is run as that file, anything else is inline text. The interpreter
    is `exec`, else this Python for a .py file, else /bin/sh.
    """
    script = hook.script
    line = script.strip()
    if "\n" not in line and len(line) < 4096 and Path(line).is_file():
        interpreter = hook.exec_ or (sys.executable if line.endswith(".py") else "/bin/sh")
        return [interpreter, line]
    return [hook.exec_ or "/bin/sh", "-c", script]


def environment_of(
    hook: HookInstanceConfigV1Alpha1, context: HookContext, environ: Mapping[str, str]
) -> dict[str, str]:
    """The complete environment of a hook."""
    patterns = (*_INHERITED, *hook.pass_env)
    found = {k: v for k, v in environ.items() if any(fnmatchcase(k, p) for p in patterns)}
    found.update(context.details)
    # `j` of this installation comes first, also when the exporter was started by its full path.
    here = str(Path(sys.executable).parent)
    found["PATH"] = os.pathsep.join([here, found.get("PATH", os.defpath)])
    found.update(
        {
            env.JUMPSTARTER_HOST: context.host,
            env.JMP_DRIVERS_ALLOW: "UNSAFE",  # the exporter's own drivers, on the exporter's own host
            env.LEASE_NAME: context.lease_name,
            env.CLIENT_NAME: context.client_name,
            env.JMP_EXPORTER: context.exporter_name,
            "TERM": "dumb",
            "DEBIAN_FRONTEND": "noninteractive",
            "GIT_TERMINAL_PROMPT": "0",
        }
    )
    return found


class _Output:
    """Reads the terminal's end of a hook and logs it line by line."""

    def __init__(self, master: int) -> None:
        self._fd = master
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._reading = False
        os.set_blocking(master, False)

    def start(self) -> None:
        """Begin to read."""
        self._loop.add_reader(self._fd, self._readable)
        self._reading = True

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # Linux says EIO when the last writer of a terminal is gone
        if not data:
            self._stop()
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._log(line)
        if len(self._rest) > _LINE_LIMIT:
            self._log(self._rest)
            self._rest = b""

    def _log(self, line: bytes) -> None:
        text = line.rstrip(b"\r").decode(errors="replace")
        if text:
            logger.info("%s", text)

    def _stop(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)
        self._ended.set()

    async def drain(self) -> None:
        """Read what is left. Something that left the group may keep the terminal open: not longer than 2 s."""
        try:
            await asyncio.wait_for(self._ended.wait(), _DRAIN_SECONDS)
        except TimeoutError:
            logger.warning("a process left by the hook still holds its output; not waiting for it")

    def close(self) -> None:
        """Log an unfinished last line and give the terminal up."""
        self._stop()
        if self._rest:
            self._log(self._rest)
            self._rest = b""
        os.close(self._fd)


def _read_motd(path: Path) -> str:
    """What the hook wrote to JMP_MOTD_FILE: a regular file of at most 64 KiB, else "" with a warning."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        logger.warning("motd of the hook is not used: %s", error.strerror)
        return ""
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            logger.warning("motd of the hook is not used: it is no regular file")
            return ""
        data = stream.read(_MOTD_LIMIT + 1)
    if len(data) > _MOTD_LIMIT:
        logger.warning("motd of the hook is cut to 64 KiB")
    return data[:_MOTD_LIMIT].decode(errors="replace")
