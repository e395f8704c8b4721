# SPDX-License-Identifier: Apache-2.0
"""Protects NoyitoPowerHID through a real kernel: usbhid, hidraw, hidapi of the guest; boards emulated over USB/IP."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from guest_exporter import GuestExporter, guest_exporter
from guest_machine import Guest
from usb_bus import Bus
from usb_guest import GuestUsb
from usbip import USBDevice
from usbip.classes.device.hid import HID, vendor_report_descriptor

from jumpstarter.common.exceptions import DriverError

# As the other boards in the guest: one worker does all of it.
pytestmark = pytest.mark.xdist_group("guest-usb")

DRIVER = "jumpstarter_driver_noyito_relay.driver.NoyitoPowerHID"
REPORT = 8  # bytes; an answer takes several


class FakeHidBoard:
    """Fake relay board at its USB interface: keeps the relays, checks sums, tells the state in several reports."""

    def __init__(self, serial: str, channels: int) -> None:
        self.relays = dict.fromkeys(range(1, channels + 1), False)
        self.stuck: set[int] = set()
        self.silent = False
        self.usb = USBDevice(5131, 2007, manufacturer="NOYITO", product="USBRelay", serial=serial)
        self._hid = HID(
            vendor_report_descriptor(REPORT, REPORT),
            in_mps=REPORT,
            out_ep=0x01,
            out_mps=REPORT,
            in_interval=1,
            out_interval=1,
            on_output=self._obey,
        )
        self.usb.add(self._hid)

    def _obey(self, report: bytes) -> None:
        start, channel, state, total = report[:4]
        if start != 0xA0 or (start + channel + state) & 0xFF != total:
            return
        if (channel, state) == (0x0F, 0x02):
            self._tell()
        elif channel in self.relays and channel not in self.stuck:
            self.relays[channel] = state == 1

    def _tell(self) -> None:
        if self.silent:
            return
        text = "".join(f"CH{n}:{'ON ' if on else 'OFF'}\r\n" for n, on in self.relays.items()).encode()
        for at in range(0, len(text), REPORT):
            self._hid.send_report(text[at : at + REPORT].ljust(REPORT, b"\0"))


@dataclass
class Lab:
    """Two boards and an exporter with drivers for them, in the guest."""

    small: FakeHidBoard
    large: FakeHidBoard
    exporter: GuestExporter


@pytest.fixture(scope="module")
def lab(guest: Guest) -> Iterator[Lab]:
    bus = Bus()
    usb = GuestUsb(guest, bus)
    guest.modprobe("usbhid")
    small, large = FakeHidBoard("N4", 4), FakeHidBoard("N8", 8)
    common = {"settle": 0.3, "timeout": 1}
    export = {
        "relay": {"type": DRIVER, "config": {"serial": "N4", "channel": 3, **common}},
        "eighth": {"type": DRIVER, "config": {"serial": "N8", "num_channels": 8, "channel": 8, **common}},
        "all": {"type": DRIVER, "config": {"serial": "N8", "num_channels": 8, "all_channels": True, **common}},
        "gone": {"type": DRIVER, "config": {"serial": "N0", **common}},
    }
    try:
        usb.plug(small.usb)
        usb.plug(large.usb)
        with guest_exporter(guest, export) as exporter:
            yield Lab(small, large, exporter)
    finally:
        usb.unplug_all()
        bus.close()


@pytest.fixture
def client(lab: Lab) -> Iterator[Any]:
    with lab.exporter.client() as made:
        yield made
        for board in (lab.small, lab.large):
            board.stuck, board.silent = set(), False


def test_one_channel_of_the_right_board(lab: Lab, client: Any) -> None:
    client.relay.on()
    assert lab.small.relays == {1: False, 2: False, 3: True, 4: False} and not any(lab.large.relays.values())
    assert client.relay.status() == "on"
    client.relay.off()
    assert not any(lab.small.relays.values()) and client.relay.status() == "off"


def test_all_channels_and_partial(lab: Lab, client: Any) -> None:
    client.all.on()
    assert all(lab.large.relays.values()) and client.all.status() == "on"
    client.eighth.off()
    assert client.all.status() == "partial"
    client.all.off()
    assert client.all.status() == "off"


def test_a_stuck_relay_is_an_error(lab: Lab, client: Any) -> None:
    lab.small.stuck = {3}
    with pytest.raises(DriverError, match='channel 3 of the HID relay board 140b:07d7 N4: .* still reports "off"'):
        client.relay.on()


def test_a_board_that_says_nothing_is_a_timeout(lab: Lab, client: Any) -> None:
    lab.small.silent = True
    with pytest.raises(DriverError, match="no answer within 1 s") as caught:
        client.relay.status()
    assert caught.value.code == "DEADLINE_EXCEEDED"


def test_a_board_that_is_not_plugged_in_is_named(client: Any) -> None:
    with pytest.raises(DriverError, match="140b:07d7 N0: cannot be opened"):
        client.gone.on()


def test_j(lab: Lab) -> None:
    told = subprocess.run(
        [Path(sys.executable).with_name("j"), "relay", "status"],
        env={**os.environ, **lab.exporter.environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (told.returncode, told.stdout) == (0, "off\n"), told
