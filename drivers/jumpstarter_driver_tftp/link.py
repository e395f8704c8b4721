# SPDX-License-Identifier: Apache-2.0
"""The socket of one transfer, and how long to wait on it."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable

from jumpstarter_driver_tftp.packets import Code, Opcode, ProtocolError, error_packet

__all__ = ["ClientGone", "Link", "Stopped"]

_FIRST = 1.0
"""Seconds to the first repetition while the round trip is not known."""
_LEAST = 0.05
_PACE_MIN, _PACE_MAX = 0.00005, 0.0005
"""Seconds between packets of a window after losses: most are a receive buffer that was full."""


class Stopped(Exception):
    """The server was stopped."""


class ClientGone(Exception):
    """The client ended the transfer, or does not answer any more. ``told``: it said so itself."""

    def __init__(self, message: str, *, told: bool = False) -> None:
        super().__init__(message)
        self.told = told


class Link:
    """Packets from and to one client.

    Repetitions come after a few round trips and then ever later, up to ``timeout`` seconds; ``patience`` seconds
    without progress end the transfer. ``wake``: readable when the server stops.
    """

    def __init__(self, sock: socket.socket, wake: int, *, timeout: float, patience: float) -> None:
        self.socket = sock
        self._timeout = timeout
        self._patience = patience
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._poll.register(wake, select.POLLIN)
        self._wake = wake
        self._wait = min(_FIRST, timeout)
        self._round_trip: float | None = None
        self._progress = self._sent = time.monotonic()
        self._repeated = False
        self._pace = 0.0

    def set_timeout(self, seconds: float) -> None:
        """What the client negotiated: nothing is repeated later than that."""
        self._timeout = seconds
        self._patience = max(self._patience, 5 * seconds)
        self._wait = min(self._wait, seconds)

    def sent(self) -> None:
        """A window went out for the first time."""
        self._sent = time.monotonic()
        self._repeated = False

    def progressed(self, *, lost: bool = False) -> None:
        """The client answered what was sent, or a part of it: the rest was ``lost``."""
        now = time.monotonic()
        if lost or self._repeated:
            self._pace = min(max(_PACE_MIN, 2 * self._pace), _PACE_MAX)
        else:
            self._pace = self._pace / 2 if self._pace > _PACE_MIN else 0.0
        if not self._repeated:  # of a repeated packet nobody knows which one was answered
            trip = now - self._sent
            self._round_trip = trip if self._round_trip is None else 0.875 * self._round_trip + 0.125 * trip
        wait = _FIRST if self._round_trip is None else max(_LEAST, 4 * self._round_trip)
        self._wait = min(wait, self._timeout)
        self._progress = now

    def receive(self, size: int = 1024) -> bytes | None:
        """The next packet, None when it is time to repeat. Raises ClientGone, Stopped."""
        for descriptor, _ in self._poll.poll(self._wait * 1000):
            if descriptor == self._wake:
                raise Stopped
        try:
            packet = self.socket.recv(size, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._repeated = True
            self._wait = min(2 * self._wait, self._timeout)
            if time.monotonic() - self._progress > self._patience:
                raise ClientGone(f"it has not answered for {self._patience:g} s") from None
            return None
        except ConnectionRefusedError:
            raise ClientGone("nobody listens there any more") from None
        if packet[:2] == struct.pack("!H", Opcode.ERROR):
            text = packet[4:].split(b"\0")[0].decode(errors="replace")
            raise ClientGone(f"it says: {text[:200]!r}", told=True)
        return packet

    def send(self, *parts: bytes | memoryview) -> None:
        """Send a packet; one that cannot leave now counts as lost and is repeated like any other."""
        if self._pace:
            time.sleep(self._pace)
        try:
            self.socket.sendmsg(parts)
        except ConnectionRefusedError:
            raise ClientGone("nobody listens there any more") from None
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            raise ProtocolError(Code.UNDEFINED, f"cannot send to it: {error.strerror}") from None

    def refuse(self, error: ProtocolError) -> None:
        """Tell the client why there is nothing (more)."""
        try:
            self.socket.send(error_packet(error.code, str(error)))
        except OSError:
            pass  # it is not there to be told

    def wait_for_silence(self, answer: Callable[[bytes], None]) -> None:
        """The last word may be lost: answer what still comes, until nothing does for a moment."""
        deadline = time.monotonic() + self._timeout
        while time.monotonic() < deadline:
            try:
                packet = self.receive(1 << 16)
            except ClientGone:
                return
            if packet is None:
                return
            answer(packet)
