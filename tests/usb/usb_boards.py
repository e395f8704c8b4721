# SPDX-License-Identifier: Apache-2.0
"""Fakes: emulated YKUSH, SDWire and DUTLink boards, byte for byte at their USB interfaces, with state of their own.

Written from the makers' public sources (Yepkit/ykush, jumpstarter-dev/dutlink-firmware, FTDI's vendor requests). What
is connected to a board is emulated too: a card in a reader, a device under test that boots from it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import Any

from usbip import Interface, USBDevice
from usbip.classes.device import CDCACM
from usbip.classes.device.hid import HID
from usbip.classes.device.msc import MSC, SENSE_NOT_READY
from usbip.core import SPEED_HIGH, Stall

MIB = 1 << 20
_NEEDS_MEDIUM = {0x00, 0x1B, 0x25, 0x28, 0x2A, 0x35, 0x9E, 0xA8, 0xAA}  # SCSI commands: ready?, capacity, read, write
_CHANGED = (0x06, 0x28, 0x00)  # unit attention: the medium may have changed


def raw_reports(size: int) -> bytes:
    """A report descriptor: vendor-defined reports of *size* bytes both ways."""
    begin = bytes.fromhex("0600ff0901a101150026ff007508") + bytes([0x95, size])
    return begin + bytes.fromhex("09018102") + bytes.fromhex("09019102") + b"\xc0"


class Ykush:
    """A switchable hub. ports: state by number; stuck: ports whose relay no longer moves; mute: does not answer."""

    def __init__(self, serial: str, product: int = 0xF2F7, ports: int = 3, report: int = 64) -> None:
        self.ports = dict.fromkeys(range(1, ports + 1), True)
        self.stuck: set[int] = set()
        self.mute = False
        self.garbled = False
        self.commands: list[int] = []
        self._report = report
        self.usb = USBDevice(0x04D8, product, manufacturer="Yepkit Lda.", product="YKUSH", serial=serial)
        self._hid = HID(
            raw_reports(report), in_mps=report, out_ep=0x01, out_mps=report, in_interval=1, out_interval=1,
            on_output=self._obey,
        )  # fmt: skip
        self.usb.add(self._hid)

    def _obey(self, report: bytes) -> None:
        command, port = report[0] & 0xF0, report[0] & 0x0F
        self.commands.append(report[0])
        if self.mute:
            return
        chosen = list(self.ports) if port == 0x0A else [port]
        answer = bytes([1, report[0]])
        if any(one not in self.ports for one in chosen) or len(report) != self._report or command > 0x20:
            answer = b"\0\0"
        elif command == 0x20:
            answer = bytes([1, port | (0x10 if self.ports[port] else 0)])
        else:
            for one in chosen:
                if one not in self.stuck:
                    self.ports[one] = command == 0x10
        self._hid.send_report((b"\xff\xff" if self.garbled else answer).ljust(self._report, b"\0"))


class Card:
    """An SD card or a USB stick's memory: a block store of the library usbip."""

    block_size = 512

    def __init__(self, size: int = 4 * MIB) -> None:
        self.data = bytearray(size)
        self.num_blocks = size // self.block_size
        self.writes = 0

    def read(self, lba: int, count: int) -> bytes:
        return bytes(self.data[lba * 512 : (lba + count) * 512])

    def write(self, lba: int, count: int, data: bytes) -> None:
        self.writes += 1
        self.data[lba * 512 : (lba + count) * 512] = data


class Reader(MSC):
    """Mass storage with a slot: `inserted` says whether the card is in it."""

    def __init__(self, card: Card, *, serial: str, inserted: bool = True) -> None:
        super().__init__(card, vendor="Fake", product="Reader", serial=serial)
        self.inserted = inserted
        self._told = inserted

    def _dispatch(self, lun: int, tag: bytes, dlen: int, cdb: bytes) -> None:
        if cdb[0] in _NEEDS_MEDIUM and not self.inserted:
            self._told = False
            self._fail(lun, tag, dlen, SENSE_NOT_READY, "no medium")
        elif cdb[0] in _NEEDS_MEDIUM and not self._told:
            self._told = True
            self._fail(lun, tag, dlen, _CHANGED, "new medium")
        else:
            super()._dispatch(lun, tag, dlen, cdb)


class Stick:
    """A USB mass storage device."""

    def __init__(self, card: Card, serial: str, ids: tuple[int, int] = (0x0951, 0x1666), inserted: bool = True) -> None:
        self.usb = USBDevice(*ids, manufacturer="Fake", product="Storage", serial=serial)
        self.usb.set_speed(SPEED_HIGH)
        self.by_id = f"/dev/disk/by-id/usb-Fake_Reader_{serial}-0:0"  # udev's name for it
        self.reader = Reader(card, serial=serial, inserted=inserted)
        self.usb.add(self.reader)


class SDWire:
    """An SDWire: an FT200X whose CBUS0 drives the card's switch, and a card reader beside it.

    gpio: False for a board whose EEPROM does not let CBUS0 be driven. on_switch: called with "host" or "dut".
    """

    def __init__(
        self, serial: str, *, card: Card | None = None, on_switch: Callable[[str], None] | None = None
    ) -> None:
        self.card = card or Card()
        self.side = "dut"
        self.moves: list[str] = []
        self.gpio = True
        self.usb = USBDevice(0x04E8, 0x6001, manufacturer="SRPOL", product="sd-wire", serial=serial)
        self.usb.add(_Ftdi(self))
        self.stick = Stick(self.card, f"{serial}-reader", (0x0424, 0x4050), inserted=False)
        self._on_switch = on_switch

    def switch(self, side: str) -> None:
        """The switch moves, whoever moved it."""
        if self.gpio:
            self.side = side
            self.moves.append(side)
            self.stick.reader.inserted = side == "host"
            if self._on_switch is not None:
                self._on_switch(side)


class _Ftdi(Interface):
    bInterfaceClass = 0xFF
    bInterfaceSubClass = 0xFF
    bInterfaceProtocol = 0xFF

    def __init__(self, board: SDWire) -> None:
        super().__init__()
        self._board = board

    def on_control(self, setup: Any, data: bytes = b"") -> bytes:
        if (setup.bmRequestType, setup.bRequest) == (0x40, 0x0B):  # set bit mode
            mode, mask = setup.wValue >> 8, setup.wValue & 0xFF
            if mode == 0x20 and mask & 0x10:  # CBUS bit bang with CBUS0 as output
                self._board.switch("host" if mask & 1 else "dut")
            return b""
        if (setup.bmRequestType, setup.bRequest) == (0xC0, 0x0C):  # read pins
            return bytes([0xF0 | (self._board.side == "host")])
        raise Stall


class Dutlink:
    """A DUTLink: control interface, console, and switches for the power and the storage of a device under test.

    on_storage: called with "off", "host" or "dut" when the storage is switched. The device under test is the smallest
    there is: with power and the storage on its side, it prints the digest of its first MiB, and echoes lines.
    """

    def __init__(
        self, serial: str, *, card: Card | None = None, on_storage: Callable[[str], None] | None = None
    ) -> None:
        self.card = card or Card()
        self.power = "off"
        self.storage = "off"
        self.volts, self.amperes = 5.0, 0.42
        self.requests: list[tuple[int, int]] = []
        self.stuck_storage = False
        self._latched = (0.0, 0.0)
        self._on_storage = on_storage
        self.usb = USBDevice(0x2B23, 0x1012, manufacturer="Red Hat", product="Jumpstarter", serial=serial)
        self.usb.set_composite()
        self.console = self.usb.add(CDCACM(on_rx=self._typed))
        self.usb.add(_Control(self))
        self._line = b""

    def switch_power(self, action: str) -> None:
        self.power = {"force-off": "off", "force-on": "on"}.get(action, action)
        if self.power != "off":
            self._boot()

    def switch_storage(self, side: str) -> None:
        """The switch moves, whoever moved it."""
        if self.stuck_storage:
            return
        self.storage = side
        if self._on_storage is not None:
            # As the real one, which answers the request before the switch has settled.
            threading.Thread(target=self._on_storage, args=(side,), daemon=True).start()

    def refresh(self) -> None:
        self._latched = (self.volts, self.amperes if self.power != "off" else 0.0)

    def reading(self, key: int) -> bytes:
        volts, amperes = self._latched
        texts = ("1.05", f"{volts * amperes:.2f}W {volts:.2f}V {amperes:.2f}A", f"{volts:.2f}V", f"{amperes:.2f}A")
        if key >= len(texts):
            raise Stall
        return texts[key].encode()

    def _boot(self) -> None:
        if self.power == "rescue":
            self.say("rescue mode\r\n")
        elif self.storage != "dut":
            self.say("no boot medium\r\n")
        else:
            self.say(f"booting {hashlib.sha256(self.card.data[:MIB]).hexdigest()}\r\n")

    def say(self, text: str) -> None:
        """The device under test writes to its console."""
        self.console.write(text.encode())

    def _typed(self, port: Any, data: bytes) -> None:
        self._line += bytes(data)
        while b"\r" in self._line:
            line, _, self._line = self._line.partition(b"\r")
            if self.power != "off":
                self.say(f"you said {line.decode(errors='replace').strip()}\r\n")


class _Control(Interface):
    bInterfaceClass = 0xFF
    bInterfaceSubClass = 0x01
    bInterfaceProtocol = 0x01

    def __init__(self, board: Dutlink) -> None:
        super().__init__()
        self._board = board

    def on_control(self, setup: Any, data: bytes = b"") -> bytes:
        board = self._board
        if setup.bmRequestType == 0xC1 and setup.bRequest == 4:
            return board.reading(setup.wValue)
        if setup.bmRequestType != 0x41:
            raise Stall
        board.requests.append((setup.bRequest, setup.wValue))
        match setup.bRequest:
            case 0:
                board.refresh()
            case 1 if setup.wValue < 5:
                board.switch_power(("off", "on", "force-off", "force-on", "rescue")[setup.wValue])
            case 2 if setup.wValue < 3:
                board.switch_storage(("off", "host", "dut")[setup.wValue])
            case _:
                raise Stall
        return b""
