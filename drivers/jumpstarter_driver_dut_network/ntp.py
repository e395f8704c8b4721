# SPDX-License-Identifier: Apache-2.0
"""A time server for devices without another one: this host's clock, by SNTP (RFC 4330)."""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
from typing import Final

__all__ = ["NtpServer"]

_SINCE_1900: Final = 2_208_988_800
"""Seconds between the beginnings of NTP's time and of Unix's."""
_POLL: Final = 0.5


class NtpServer:
    """Answers on a free UDP port of one address, from `start` to `stop`.

    Port 123 may be that of a time server of the host, and is root's; what is sent there gets redirected.
    """

    def __init__(self, address: str, logger: logging.Logger) -> None:
        self._address = address
        self._logger = logger
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether it answers."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> int:
        """Begin to answer; the port. Raises OSError when there is no such address."""
        peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            peer.bind((self._address, 0))
        except OSError as error:
            peer.close()
            raise OSError(f"local_ntp: cannot listen on {self._address}: {error.strerror or error}") from None
        peer.settimeout(_POLL)
        self._stopping.clear()
        self._thread = threading.Thread(target=self._serve, args=(peer,), name="ntp", daemon=True)
        self._thread.start()
        return int(peer.getsockname()[1])

    def stop(self) -> None:
        """Answer no more."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stopping.set()
            thread.join()

    def _serve(self, peer: socket.socket) -> None:
        with peer:
            while not self._stopping.is_set():
                try:
                    request, client = peer.recvfrom(512)
                    if len(request) >= 48 and request[0] & 7 == 3:  # mode 3: a client
                        peer.sendto(_answer(request), client)
                except TimeoutError:
                    continue
                except OSError as error:
                    self._logger.warning("NTP: %s", error)


def _answer(request: bytes) -> bytes:
    now = struct.pack("!II", *_parts(time.time()))
    version = request[0] & 0x38
    # Mode 4 (server), stratum 10 (a local clock), precision 2**-20 s; root delay and dispersion are not known.
    head = struct.pack("!BBbb", version | 4, 10, request[2] % 128, -20) + bytes(8) + b"LOCL"
    return head + now + request[40:48] + now + now


def _parts(seconds: float) -> tuple[int, int]:
    whole = int(seconds)
    return whole + _SINCE_1900 & 0xFFFFFFFF, int((seconds - whole) * (1 << 32))
