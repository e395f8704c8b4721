# SPDX-License-Identifier: Apache-2.0
"""One run of QEMU: from power on to power off."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jumpstarter.common.process import Process, spawn
from jumpstarter_driver_qemu.errors import MachineError
from jumpstarter_driver_qemu.qmp import ControlError, ControlSocket

__all__ = ["VirtualMachine"]

_QUIT_SECONDS = 3.0
# What `info usernet` prints for a forwarded port: "TCP[HOST_FORWARD]  14  127.0.0.1 42921  10.0.2.15  22  0  0".
_FORWARD = re.compile(r"^\s*(TCP|UDP)\[HOST_FORWARD\]\s+\d+\s+(\S+)\s+(\d+)\s+\S+\s+(\d+)", re.MULTILINE)
_QUIET_EVENTS = {"RTC_CHANGE", "NIC_RX_FILTER_CHANGED", "VNC_CONNECTED", "VNC_INITIALIZED", "VNC_DISCONNECTED"}


class VirtualMachine:
    """A QEMU process and its control socket.

    The process is started with its CPUs stopped; `go` lets them run. on_exit is called once, from another thread, when
    the process has ended, for whatever reason.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        logger: logging.Logger,
        start_timeout: float,
        on_exit: Callable[[VirtualMachine], None],
    ) -> None:
        """Start QEMU (``argv`` without the control socket) and wait until it takes commands.

        Raises FileNotFoundError when it is not installed, MachineError with its last line on stderr when it ends or
        does not answer within ``start_timeout`` seconds.
        """
        self._logger = logger
        self._stopping = False
        self._lock = threading.Lock()
        self._settled = threading.Event()
        self._wake = threading.Event()
        ours, theirs = socket.socketpair()
        try:
            # An inherited descriptor instead of a path: nothing to wait for, to guess, to hijack or to leave behind.
            # This end of it is closed at once below, so that the end of QEMU is the end of the connection.
            self.process: Process = spawn(
                [
                    *argv,
                    *("-S", "-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control"),
                ],
                pass_fds=(theirs.fileno(),),
                on_stderr=self._hear,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._control = ControlSocket(ours, name=self.process.name, on_event=self._on_event)
        try:
            self._control.connect(start_timeout)
        except BaseException as error:
            reason = self._failure(error)
            self.process.stop(0)
            self._control.close()
            if isinstance(error, ControlError):
                raise MachineError(reason) from None  # that the socket was closed is no news
            raise
        self._on_exit = on_exit
        self.process.on_exit(self._ended)

    @property
    def running(self) -> bool:
        """True while the QEMU process lives."""
        return self.process.running

    @property
    def why_off(self) -> str:
        """Why the machine is off, for messages; empty while it runs."""
        code = self.process.returncode
        if code is None:
            return ""
        if self._stopping:
            return "switched off"
        if code == 0 and "terminating on signal" not in self.process.last_line:
            return "the guest powered itself off"
        return self._last_words()

    @property
    def crashed(self) -> bool:
        """True when QEMU ended, and neither we nor the guest asked for it."""
        return not self.running and self.why_off == self._last_words()

    def forwards(self) -> list[tuple[str, str, int, int]]:
        """The forwarded ports as QEMU has them: protocol ("tcp"), host address, host port, guest port."""
        text = str(self.execute("human-monitor-command", {"command-line": "info usernet"}))
        return [(p.lower(), address, int(hp), int(gp)) for p, address, hp, gp in _FORWARD.findall(text)]

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run a QMP command. Raises MachineError with QEMU's reason."""
        try:
            return self._control.execute(command, arguments)
        except ControlError as error:
            raise MachineError(self._failure(error)) from None

    def go(self) -> None:
        """Let the CPUs run."""
        self.execute("cont")

    def stop(self, graceful: float = 0.0) -> None:
        """End the machine: press its power button and wait ``graceful`` seconds, then quit, then kill.

        Returns when the process is gone and on_exit was called. For a machine that is off it does nothing. A call
        without patience ends the patience of one that waits.
        """
        if graceful <= 0:
            self._wake.set()
        with self._lock:
            self._stopping = self._stopping or self.process.running
            if graceful > 0 and self._asked("system_powerdown"):
                self._wake.wait(graceful)
            if not (self._asked("quit") and self._gone_within(_QUIT_SECONDS)):
                self.process.stop(_QUIT_SECONDS)
        self._settled.wait()

    def _asked(self, command: str) -> bool:
        """Send a command to a machine that may be gone or hang: False when it did not take it."""
        if not self.process.running:
            return False
        try:
            self._control.execute(command, timeout=_QUIT_SECONDS)
        except ControlError as error:
            self._logger.debug("%s: %s", command, error)
            # `quit` may close the socket before it answers.
            return command == "quit"
        return True

    def _gone_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            self.process.wait(seconds)
        return not self.process.running

    def _ended(self, _: Process) -> None:
        self._wake.set()
        try:
            self._control.close()
            if self.crashed:
                self._logger.error("the virtual machine crashed: %s", self.why_off)
            else:
                self._logger.info("the virtual machine is off: %s", self.why_off)
            self._on_exit(self)
        finally:
            self._settled.set()

    def _failure(self, error: BaseException) -> str:
        """One line: QEMU's own words when it ended, the control error when it did not."""
        with contextlib.suppress(TimeoutError):
            self.process.wait(1.0 if isinstance(error, ControlError) else 0)
        if self.process.running:
            said = self._complaint()
            return f"{self.process.name}: {error}{': ' + said if said else ''}"
        return self._last_words()

    def _last_words(self) -> str:
        """How QEMU ended, in one line."""
        code = self.process.returncode
        said = self._complaint()
        if code is not None and code > 0 and said:
            return f"{self.process.name} ended with an error: {said}"
        return self.process.describe()

    def _complaint(self) -> str:
        """The line on stderr that says what is wrong: the first error, hints follow it."""
        prefix = f"{self.process.name}: "
        lines = [line.strip() for line in self.process.stderr_tail.splitlines() if line.strip()]
        errors = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
        errors = [line for line in errors if not line.startswith(("warning:", "info:"))]
        return errors[0] if errors else self.process.last_line

    def _hear(self, line: str) -> None:
        self._logger.log(logging.INFO if self._stopping else logging.WARNING, "%s", line)

    def _on_event(self, name: str, data: Mapping[str, Any]) -> None:
        if name not in _QUIET_EVENTS:
            level = logging.WARNING if name in {"BLOCK_IO_ERROR", "GUEST_PANICKED"} else logging.DEBUG
            self._logger.log(level, "event %s %s", name, dict(data))
