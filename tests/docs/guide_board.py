# SPDX-License-Identifier: Apache-2.0
"""A board without hardware for the guides: boots over a serial port when its power is switched on.

`Board` is the board. It listens on a unix socket for power, and speaks on a pseudo-terminal. `Supply` is its power
driver, which takes the place of a real one in the exporter configurations of the guides.
"""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import socket
import termios
import threading
import tty
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

from jumpstarter.driver import Driver, export
from jumpstarter_driver_power.common import PowerReading, PowerState
from jumpstarter_driver_power.driver import PowerInterface

_BOOT = b"""U-Boot 2023.01 (Jan 09 2023 - 16:07:33 +0000)

DRAM:  512 MiB
Hit any key to stop autoboot:  0
## Loading kernel
Starting kernel ...

[    0.000000] Booting Linux on physical CPU 0x0000000000 [0x411fd070]
[    0.000000] Linux version 6.1.0-board (builder@lab) #1 SMP
[    1.204519] Run /sbin/init as init process
"""


@dataclass(kw_only=True)
class Supply(PowerInterface, Driver):
    """Switches the `Board` whose power socket the environment names."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._state: PowerState = "unknown"

    def _ask(self, what: bytes) -> None:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(os.environ["GUIDE_BOARD"])
            line.sendall(what)
            line.recv(1)

    @export
    async def on(self) -> None:
        self._ask(b"on")
        self._state = "on"

    @export
    async def off(self) -> None:
        self._ask(b"off")
        self._state = "off"

    @export
    async def read(self) -> AsyncGenerator[PowerReading, None]:
        yield PowerReading(5.0, 0.4)

    @export(readonly=True)
    def status(self) -> PowerState:
        """What was asked last."""
        return self._state


class Board:
    """The board; `serial` is its serial port and `power` its power socket."""

    def __init__(self, directory: Path) -> None:
        self.power = directory / "power.sock"
        self._far, near = pty.openpty()
        tty.setraw(near, termios.TCSANOW)
        self.serial = os.ttyname(near)
        self._near = near  # kept open, so that the line does not hang up between two users
        self._switch = socket.socket(socket.AF_UNIX)
        self._switch.bind(str(self.power))
        self._switch.listen()
        self._wake, self._ended = os.pipe()
        self._shell = self._terminal = -1
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the board."""
        os.close(self._ended)
        self._thread.join(10)
        self._off()
        self._switch.close()
        for fd in (self._far, self._near, self._wake):
            os.close(fd)

    def _work(self) -> None:
        while True:
            sources = [self._wake, self._far, self._switch, *([self._terminal] if self._terminal >= 0 else [])]
            readable, _, _ = select.select(sources, [], [])
            if self._wake in readable:
                return
            if self._switch in readable:
                with self._switch.accept()[0] as peer:
                    self._on() if peer.recv(10) == b"on" else self._off()
                    peer.sendall(b".")
                continue
            if self._far in readable:
                typed = os.read(self._far, 4096)
                if self._terminal >= 0:
                    os.write(self._terminal, typed)
            if self._terminal >= 0 and self._terminal in readable:
                try:
                    os.write(self._far, os.read(self._terminal, 4096))
                except OSError:  # the shell has ended
                    self._off()

    def _on(self) -> None:
        if self._terminal >= 0:
            return
        os.write(self._far, _BOOT.replace(b"\n", b"\r\n"))
        self._shell, self._terminal = pty.fork()
        if self._shell == 0:
            os.execvpe("sh", ["sh", "-i"], {"PATH": os.environ["PATH"], "PS1": "board# ", "TERM": "vt100", "HOME": "/"})

    def _off(self) -> None:
        if self._terminal < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._shell, signal.SIGKILL)
        os.waitpid(self._shell, 0)
        os.close(self._terminal)
        self._shell = self._terminal = -1
