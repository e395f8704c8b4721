# SPDX-License-Identifier: Apache-2.0
"""Fake: a serial CAN adapter (LAWICEL's protocol, "slcan") on a pty, with state of its own.

It refuses what a real one refuses: frames while the channel is closed, a bitrate while it is open.
"""

from __future__ import annotations

import os
import select
import threading
import tty

BELL, OK = b"\a", b"\r"


class SlcanAdapter:
    """commands: what it was told, in order. sent: the frames among them. unplug: as pulling the plug."""

    def __init__(self) -> None:
        self._master, slave = os.openpty()
        tty.setraw(slave)
        self.path = os.ttyname(slave)
        self._slave: int | None = slave
        self.commands: list[bytes] = []
        self.sent: list[bytes] = []
        self.open = False
        self.bitrate: int | None = None
        self._wake, self._waker = os.pipe()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name="slcan adapter", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        buffer = b""
        while True:
            readable = select.select([self._master, self._wake], [], [])[0]
            if self._wake in readable:
                return
            buffer += os.read(self._master, 4096)
            while b"\r" in buffer:
                line, buffer = buffer.split(b"\r", 1)
                os.write(self._master, self._answer(line))

    def _answer(self, line: bytes) -> bytes:
        with self._changed:
            self.commands.append(line)
            self._changed.notify_all()  # who waits gets on when the lock is free again: after what it did to us
            match line[:1]:
                case b"O":
                    if self.open or self.bitrate is None:
                        return BELL
                    self.open = True
                    return OK
                case b"C":
                    was_open, self.open = self.open, False
                    return OK if was_open else BELL
                case b"S":
                    if self.open:
                        return BELL
                    self.bitrate = [10, 20, 50, 100, 125, 250, 500, 750, 1000][int(line[1:])] * 1000
                    return OK
                case b"t" | b"T" | b"r" | b"R":
                    if not self.open:
                        return BELL
                    self.sent.append(line)
                    return b"z\r" if line[:1] in b"tr" else b"Z\r"
                case b"V" | b"N":
                    return line[:1] + b"1013\r"
                case b"F":
                    return b"F00\r"
            return BELL

    def receive(self, line: bytes) -> None:
        """A frame came over the wire: "t1232AABB"."""
        assert self.open
        os.write(self._master, line + b"\r")

    def wait_for(self, line: bytes, timeout: float = 5) -> None:
        """Return when it was told this."""
        with self._changed:
            assert self._changed.wait_for(lambda: line in self.commands, timeout), self.commands

    def wait_until_closed(self, timeout: float = 5) -> None:
        """Return when its channel is closed. `wait_for` of C will not do: python-can closes before it opens, too."""
        with self._changed:
            assert self._changed.wait_for(lambda: not self.open, timeout), self.commands

    def unplug(self) -> None:
        """Close the master: the other end reads an error from now on."""
        if self._slave is not None:
            os.write(self._waker, b".")
            self._thread.join()  # as long as it reads, the pty is not closed
            for fd in (self._slave, self._master, self._wake, self._waker):
                os.close(fd)
            self._slave = None
