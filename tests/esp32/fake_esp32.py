# SPDX-License-Identifier: Apache-2.0
"""Fake: an ESP32 with its ROM loader, esptool's stub, 4 MiB of flash, and an app that talks, behind an RFC 2217 server.

What is spoken is Espressif's serial protocol (docs.espressif.com, esptool, "Serial Protocol"): SLIP frames with a
request ``00 command size checksum data`` and an answer ``01 command size value data status``. DTR and RTS drive EN and
GPIO0 through the two transistors of a development board, so only a reset with GPIO0 low leads to the loader.
"""

from __future__ import annotations

import hashlib
import os
import select
import socket
import struct
import threading
import time
import tty
import zlib
from typing import Any

FLASH_SIZE = 4 << 20
MAC = bytes.fromhex("a4cf12345678")

_MAGIC, _CLKDIV, _EFUSE, _SPI = 0x40001000, 0x3FF40014, 0x3FF5A000, 0x3FF42000
_SPI_USR2, _SPI_W0 = _SPI + 0x24, _SPI + 0x80
_CHECKED = {0x03, 0x07, 0x11}


class FakeEsp32:
    """The chip. ``flash``: its content; ``resets``: "app" or "loader" for each; ``faults``: what shall go wrong:
    "silent" (no chip), "bad-write" (writes are damaged), "dies" (no answer after the first block)."""

    def __init__(self) -> None:
        self.flash = bytearray(b"\xff" * FLASH_SIZE)
        self.resets: list[str] = []
        self.faults: set[str] = set()
        self.commands: list[int] = []
        self._registers: dict[int, int] = {
            _MAGIC: 0x00F01D83, _CLKDIV: 347,
            _EFUSE + 4: int.from_bytes(MAC[2:], "big"), _EFUSE + 8: int.from_bytes(MAC[:2], "big"),
        }  # fmt: skip
        self.dtr = self.rts = self._held = False
        self._loader = self._stub = False
        self._frame: bytearray | None = None
        self._escaped = False
        self._out = bytearray()
        self._ready = threading.Condition()
        self._write: dict[str, Any] = {}

    # --- the board's wiring -------------------------------------------------------------------------------------

    def lines(self, dtr: bool, rts: bool) -> None:
        """New state of the modem lines: EN is low while RTS and not DTR, GPIO0 while DTR and not RTS.

        With both set neither is low, but EN's capacitor still charges: GPIO0 is sampled by what comes next.
        """
        self.dtr, self.rts = dtr, rts
        if rts and not dtr:
            self._held = True
        elif self._held and not rts:
            self._held = False
            self._reset(loader=dtr)

    def hold_button(self) -> None:
        """Reset it by hand, into the loader."""
        self._reset(loader=True)

    def _reset(self, *, loader: bool) -> None:
        self.resets.append("loader" if loader else "app")
        self._loader, self._stub, self._frame = loader, False, None
        self.say(
            b"waiting for download\r\n" if loader else b"ets Jul 29 2019\r\nhello from flash " + self.app() + b"\r\n"
        )

    def app(self) -> bytes:
        """What the app says: a digest of the flash's first bytes."""
        return hashlib.sha256(self.flash[:4096]).hexdigest()[:8].encode()

    # --- the UART -----------------------------------------------------------------------------------------------

    def say(self, data: bytes) -> None:
        """Bytes to the host."""
        if "silent" in self.faults:
            return
        with self._ready:
            self._out += data
            self._ready.notify_all()

    def read(self, timeout: float) -> bytes:
        """What was said, waiting for it."""
        with self._ready:
            self._ready.wait_for(lambda: self._out, timeout)
            data = bytes(self._out)
            self._out.clear()
            return data

    def hear(self, data: bytes) -> None:
        """Bytes from the host; an app does not listen."""
        if not self._loader or "silent" in self.faults:
            return
        for byte in data:
            if byte == 0xC0:
                if self._frame:
                    self._request(bytes(self._frame))
                    self._frame = None
                else:
                    self._frame = bytearray()
                self._escaped = False
            elif self._frame is not None:
                if byte == 0xDB:
                    self._escaped = True
                else:
                    self._frame.append({0xDC: 0xC0, 0xDD: 0xDB}[byte] if self._escaped else byte)
                    self._escaped = False

    def _send(self, packet: bytes) -> None:
        self.say(b"\xc0" + packet.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc") + b"\xc0")

    # --- the loader ---------------------------------------------------------------------------------------------

    def _request(self, frame: bytes) -> None:
        if len(frame) < 8 or frame[0] != 0:
            return
        command, size, checksum = frame[1], int.from_bytes(frame[2:4], "little"), int.from_bytes(frame[4:8], "little")
        data = frame[8:]
        self.commands.append(command)
        if "dies" in self.faults and command in (0x03, 0x11) and self.commands.count(command) > 1:
            return
        value, answer, status = 0, b"", 0
        if len(data) != size:
            status = 5
        elif command in _CHECKED and checksum != _checksum(data[16:]):
            status = 7
        else:
            try:
                value, answer = self._do(command, data)
            except KeyError:
                status = 5
        ended = struct.pack("BB", 1 if status else 0, status) + (b"" if self._stub else b"\0\0")
        body = answer + ended
        repeat = 8 if command == 0x08 else 1
        for _ in range(repeat):
            self._send(struct.pack("<BBHI", 1, command, len(body), value) + body)
        if command == 0x06 and not self._stub:  # the stub runs, and greets
            self._stub = True
            self._send(b"OHAI")
        elif command == 0xD2:
            self._read_flash(*struct.unpack("<IIII", data))

    def _do(self, command: int, data: bytes) -> tuple[int, bytes]:
        words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
        if command == 0x0A:  # READ_REG
            return self._registers.get(words[0], 0), b""
        if command == 0x09:  # WRITE_REG
            self._registers[words[0]] = words[1]
            if words[0] == _SPI:  # a command of the flash chip is carried out at once
                self._registers[_SPI] = 0
                if self._registers.get(_SPI_USR2, 0) & 0xFF == 0x9F:
                    self._registers[_SPI_W0] = 0x1640EF  # W25Q32
            return 0, b""
        if command == 0x08:  # SYNC: the ROM answers with a value, the stub with none
            return 0 if self._stub else 0x20120707, b""
        if command in (0x05, 0x06, 0x07, 0x0B, 0x0D, 0x0F):
            return 0, b""
        if command in (0x02, 0x10):  # FLASH_BEGIN, FLASH_DEFL_BEGIN
            size, _, block, offset = words[:4]
            # the stub's deflate gives the bytes to write, the ROM's what they take in blocks
            self._write = {"at": offset, "block": block, "inflate": zlib.decompressobj() if command == 0x10 else None}
            self.flash[offset : offset + size] = b"\xff" * min(size, FLASH_SIZE - offset)
            return 0, b""
        if command in (0x03, 0x11):  # FLASH_DATA, FLASH_DEFL_DATA
            payload = data[16 : 16 + words[0]]
            if self._write["inflate"] is not None:
                payload = self._write["inflate"].decompress(payload)
            if "bad-write" in self.faults and payload:
                payload = bytes([payload[0] ^ 0x55]) + payload[1:]
            at = self._write["at"]
            self.flash[at : at + len(payload)] = payload
            self._write["at"] = at + len(payload)
            return 0, b""
        if command in (0x04, 0x12):  # FLASH_END, FLASH_DEFL_END
            return 0, b""
        if command == 0x13:  # SPI_FLASH_MD5
            digest = hashlib.md5(self.flash[words[0] : words[0] + words[1]])
            return 0, digest.digest() if self._stub else digest.hexdigest().encode()
        if command == 0x0E and not self._stub:  # READ_FLASH_SLOW
            return 0, bytes(self.flash[words[0] : words[0] + words[1]]).ljust(64, b"\0")
        if self._stub and command == 0xD0:  # ERASE_FLASH
            self.flash[:] = b"\xff" * FLASH_SIZE
            return 0, b""
        if self._stub and command == 0xD1:  # ERASE_REGION
            self.flash[words[0] : words[0] + words[1]] = b"\xff" * words[1]
            return 0, b""
        if self._stub and command == 0xD2:  # READ_FLASH: the data follows
            return 0, b""
        raise KeyError(command)

    def _read_flash(self, offset: int, size: int, block: int, _: int) -> None:
        data = bytes(self.flash[offset : offset + size])
        for start in range(0, size, block):
            self._send(data[start : start + block])
        self._send(hashlib.md5(data).digest())
        self._frame = None


def _checksum(data: bytes) -> int:
    value = 0xEF
    for byte in data:
        value ^= byte
    return value


class _SerialSide:
    """What pyserial's `PortManager` takes for a serial port: the chip's UART and its lines."""

    def __init__(self, chip: FakeEsp32) -> None:
        self.chip = chip
        self.baudrate, self.bytesize, self.parity, self.stopbits = 115200, 8, "N", 1
        self.rtscts = self.xonxoff = False
        self.break_condition = False
        self.cts = self.dsr = True
        self.ri = self.cd = False

    @property
    def dtr(self) -> bool:
        return self.chip.dtr

    @dtr.setter
    def dtr(self, value: bool) -> None:
        self.chip.lines(bool(value), self.chip.rts)

    @property
    def rts(self) -> bool:
        return self.chip.rts

    @rts.setter
    def rts(self, value: bool) -> None:
        self.chip.lines(self.chip.dtr, bool(value))

    def reset_input_buffer(self) -> None:
        """Nothing is kept here."""

    def reset_output_buffer(self) -> None:
        """Nothing is kept here."""


class FakeEsp32Board:
    """The chip behind an RFC 2217 server on a free port; one connection at a time, as with a real port."""

    def __init__(self) -> None:
        self.chip = FakeEsp32()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"rfc2217://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self._closed = False
        self._client: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._client = client
                self._talk(client)
                self._client = None

    def _talk(self, client: socket.socket) -> None:
        import serial.rfc2217

        turn = threading.Lock()

        class Connection:
            def write(self, data: bytes) -> None:
                with turn:
                    client.sendall(data)

        manager = serial.rfc2217.PortManager(_SerialSide(self.chip), Connection())
        ended = threading.Event()

        def speak() -> None:
            while not ended.is_set():
                data = self.chip.read(0.1)
                if data:
                    try:
                        Connection().write(b"".join(manager.escape(data)))
                    except OSError:
                        return

        speaker = threading.Thread(target=speak, daemon=True)
        speaker.start()
        try:
            while data := client.recv(65536):
                self.chip.hear(b"".join(manager.filter(data)))
        except OSError:
            pass  # the client is gone
        ended.set()
        speaker.join(5)

    def close(self) -> None:
        """End the server."""
        for one in (self._listener, self._client):
            if one is not None:
                try:
                    one.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # not connected
        self._listener.close()
        self._thread.join(5)


class FakeEsp32OnPty:
    """The chip on a pseudo terminal, which has no modem lines: somebody has pressed its boot button."""

    def __init__(self, link: str) -> None:
        self.chip = FakeEsp32()
        self.chip.hold_button()
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.symlink(os.ttyname(self._slave), link)
        self.url = link
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._listen, self._speak)]
        for thread in self._threads:
            thread.start()

    def _listen(self) -> None:
        while not self._closed.is_set():
            if select.select([self._master], [], [], 0.1)[0]:
                self.chip.hear(os.read(self._master, 65536))

    def _speak(self) -> None:
        while not self._closed.is_set():
            view = memoryview(self.chip.read(0.1))
            while view:
                view = view[os.write(self._master, view) :]

    def close(self) -> None:
        """Pull the plug."""
        self._closed.set()
        for thread in self._threads:
            thread.join(5)
        os.close(self._slave)
        os.close(self._master)


def wait_for(condition: Any, seconds: float = 5) -> None:
    """Until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
