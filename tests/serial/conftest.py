# SPDX-License-Identifier: Apache-2.0
"""Devices for console tests: pseudo terminals that can be pulled and plugged, and an RFC 2217 server."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest


class Device:
    """The device's end of a serial line. ``url`` is a link that goes away with `unplug`."""

    def __init__(self, folder: Path) -> None:
        self.url = str(folder / "ttyDUT")
        self.master = -1
        self.plug()

    def plug(self) -> None:
        self.master, self._slave = os.openpty()
        tty.setraw(self._slave)
        link = f"{self.url}.new"
        os.symlink(os.ttyname(self._slave), link)
        os.rename(link, self.url)

    def unplug(self) -> None:
        if self.master >= 0:
            os.unlink(self.url)
            os.close(self._slave)
            os.close(self.master)
            self.master = -1

    def say(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.master, view) :]

    def wait_until_full(self) -> None:
        """Wait until the line holds as many unread bytes as it can, so that whoever writes has to wait."""
        waiting, before = 0, -1
        deadline = time.monotonic() + 60
        while waiting < 4000 or waiting != before:
            assert time.monotonic() < deadline, f"only {waiting} bytes after 60 s"
            time.sleep(0.05)
            before, waiting = (
                waiting,
                int.from_bytes(fcntl.ioctl(self.master, termios.FIONREAD, b"\0" * 4), sys.byteorder),
            )

    def hear(self, size: int) -> bytes:
        """Exactly that many bytes of what was sent to the device."""
        data = b""
        while len(data) < size:
            data += os.read(self.master, size - len(data))
        return data


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    device = Device(tmp_path)
    yield device
    device.unplug()


class Rfc2217Server:
    """A serial port on the network: pyserial's protocol engine in front of a loop:// port."""

    def __init__(self) -> None:
        import serial

        self.port = serial.serial_for_url("loop://", timeout=0.1)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"rfc2217://127.0.0.1:{self.listener.getsockname()[1]}"
        self.client: socket.socket | None = None
        self.closed = threading.Event()
        self.threads = [threading.Thread(target=self._serve, daemon=True)]
        self.threads[0].start()

    def _serve(self) -> None:
        import serial.rfc2217

        try:
            client, _ = self.listener.accept()
        except OSError:
            return

        self.client = client

        class Connection:
            def write(self, data: bytes) -> None:
                client.sendall(data)

        manager = serial.rfc2217.PortManager(self.port, Connection())

        def from_port() -> None:
            while not self.closed.is_set():
                data = self.port.read(self.port.in_waiting or 1)
                if data:
                    client.sendall(b"".join(manager.escape(data)))

        back = threading.Thread(target=from_port, daemon=True)
        back.start()
        self.threads.append(back)
        with client:
            while data := client.recv(1024):
                self.port.write(b"".join(manager.filter(data)))

    def hang_up(self) -> None:
        assert self.client is not None
        self.client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.closed.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(5)
        self.port.close()


@pytest.fixture
def rfc2217() -> Iterator[Rfc2217Server]:
    server = Rfc2217Server()
    yield server
    server.close()
