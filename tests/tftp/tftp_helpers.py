# SPDX-License-Identifier: Apache-2.0
"""Single TFTP packets, and a relay that loses, repeats and reorders them."""

from __future__ import annotations

import random
import select
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

Fate = Callable[[bytes, bool], int]
"""How often a packet gets through; its second argument: whether it comes from the server."""


def request(path: str, *options: str, mode: str = "octet", write: bool = False) -> bytes:
    fields = [path, mode, *options]
    return struct.pack("!H", 2 if write else 1) + b"".join(field.encode() + b"\0" for field in fields)


def data(block: int, payload: bytes) -> bytes:
    return struct.pack("!HH", 3, block % 65536) + payload


def ack(block: int) -> bytes:
    return struct.pack("!HH", 4, block % 65536)


class Client:
    """A client that a test drives packet by packet."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((host, 0))
        self.socket.settimeout(10)
        self.server = (host, port)
        self.peer: tuple[str, int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def ask(self, packet: bytes) -> bytes:
        self.socket.sendto(packet, self.server)
        return self.receive()

    def send(self, packet: bytes) -> None:
        assert self.peer is not None
        self.socket.sendto(packet, self.peer)

    def receive(self) -> bytes:
        packet, self.peer = self.socket.recvfrom(70000)
        return packet

    def silent(self, seconds: float) -> bool:
        """Whether nothing comes for so long."""
        ready, _, _ = select.select([self.socket], [], [], seconds)
        return not ready


class Relay:
    """Between one client and the server: every packet goes through as often as ``fate`` says."""

    def __init__(self, port: int, fate: Fate) -> None:
        self._fate = fate
        self._server = ("127.0.0.1", port)
        self._front = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._back = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for sock in (self._front, self._back):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            sock.bind(("127.0.0.1", 0))
        self._stop, self._stopper = socket.socketpair()
        self._thread = threading.Thread(target=self._run)
        self.port: int = self._front.getsockname()[1]
        self.seen = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopper.close()
        self._thread.join()
        for sock in (self._front, self._back, self._stop):
            sock.close()

    def _run(self) -> None:
        client: tuple[str, int] | None = None
        transfer = self._server
        while True:
            ready, _, _ = select.select([self._stop, self._front, self._back], [], [])
            if self._stop in ready:
                return
            if self._front in ready:
                packet, client = self._front.recvfrom(70000)
                to = self._server if packet[1] in (1, 2) else transfer
                for _ in range(self._fate(packet, False)):
                    self._back.sendto(packet, to)
            if self._back in ready:
                packet, transfer = self._back.recvfrom(70000)
                self.seen += 1
                for _ in range(self._fate(packet, True)):
                    if client is not None:
                        self._front.sendto(packet, client)


def lossy(share: float, seed: int = 1) -> Fate:
    """Loses a share of the packets, and repeats a tenth of it."""
    noise = random.Random(seed)

    def fate(packet: bytes, from_server: bool) -> int:
        chance = noise.random()
        return 0 if chance < share else 2 if chance > 1 - share / 10 else 1

    return fate
