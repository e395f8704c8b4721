# SPDX-License-Identifier: Apache-2.0
"""YKUSH, SDWire and DUTLink on a real kernel: libusb, usbhid, card reader, terminal, udev. The client is on this side.

One worker does all of it: the guest's USB host controller and its disks are one for everybody.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from usb_boards import MIB, Card, Stick
from usb_lab import UsbLab

from jumpstarter.common.exceptions import DriverError

pytestmark = pytest.mark.xdist_group("guest-usb")


@pytest.fixture
def lab(usb_lab: UsbLab) -> UsbLab:
    return usb_lab


@pytest.fixture
def client(lab: UsbLab) -> Iterator[Any]:
    with lab.exporter.client() as made:
        yield made


def image(folder: Path, size: int = MIB + 4096) -> Path:
    path = folder / "disk.img"
    path.write_bytes(hashlib.shake_128(b"image").digest(size))
    return path


def eventually(true: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_the_guests_kernel_knows_the_boards(lab: UsbLab) -> None:
    """What the other tests stand on: drivers bound, and udev's names there."""
    bound = lab.guest.shell("cd /sys/bus/usb/drivers && ls usbhid usb-storage cdc_acm")
    assert len([line for line in bound.splitlines() if ":1." in line]) >= 4, bound
    assert "dl1" in lab.guest.shell("ls /dev/serial/by-id")


def test_ykush_switches_also_while_the_kernel_holds_it(lab: UsbLab, client: Any) -> None:
    """Linux has the first two models on its list of devices that usbhid leaves alone. It takes the others."""
    held = "ls /sys/bus/usb/drivers/usbhid"
    before = lab.guest.shell(held)
    assert before.count(":1.0") == 1
    for board, power in ((lab.ykush, client.ykush), (lab.ykush3, client.ykush3)):
        power.off()
        assert (board.ports, power.status()) == ({1: False, 2: True, 3: True}, "off")
    told = lab.j("ykush3", "on")
    assert told.returncode == 0, told
    assert lab.ykush3.ports[1] and lab.j("ykush3", "status").stdout == "on\n"
    assert lab.guest.shell(held) == before, "usbhid did not get the board back"


def test_sdwire_flashes_the_card_in_its_reader(lab: UsbLab, client: Any, tmp_path: Path) -> None:
    source = image(tmp_path)
    assert client.card.state() == lab.sdwire.side == "dut"
    result = client.card.flash(source)
    assert result.changed and result.verified
    assert lab.sdwire.side == "dut"
    assert bytes(lab.sdwire.card.data[: MIB + 4096]) == source.read_bytes()
    reader = lab.guest.shell(f"readlink -f {lab.sdwire.stick.by_id}").strip()
    missing = lab.guest.run(["dd", f"if={reader}", "of=/dev/null", "count=1"], check=False)
    assert missing.rc != 0 and "No medium" in missing.stderr, "the exporter host can still read the card"
    client.card.dump(tmp_path / "dumped")
    assert (tmp_path / "dumped").read_bytes() == bytes(lab.sdwire.card.data)


def test_sdwire_takes_its_own_reader_and_no_other_disk(lab: UsbLab, client: Any) -> None:
    stranger = Stick(Card(MIB), "stranger")
    twin = Stick(Card(MIB), "twin", ids=(0x0424, 0x4050))
    lab.usb.plug_disk(stranger)
    try:
        (target,) = client.card.call("targets")
        assert target["path"] == lab.guest.shell(f"readlink -f {lab.sdwire.stick.by_id}").strip()
        lab.usb.plug_disk(twin)
        with pytest.raises(ValueError, match="2 disks beside SDWire, name one with storage_device: /dev/sd"):
            client.card.host()
        with pytest.raises(Exception, match="2 disks beside SDWire"):
            client.card.flash(__file__)
    finally:
        lab.usb.unplug(stranger.usb)
        lab.usb.unplug(twin.usb)
    assert stranger.reader.luns[0].store.writes == twin.reader.luns[0].store.writes == 0
    eventually(lambda: len(client.card.call("targets")[0]["path"]) == len("/dev/sda"), "the sticks are still there")


def test_sdwire_leaves_a_mounted_card(lab: UsbLab, client: Any) -> None:
    client.card.host()
    (target,) = client.card.call("targets")
    lab.guest.shell(f"mke2fs -q {target['path']} && mkdir -p /run/card && mount {target['path']} /run/card")
    try:
        with pytest.raises(ValueError, match="in use on the exporter host: mounted on /run/card"):
            client.card.dut()
        assert lab.sdwire.side == "host"
    finally:
        lab.guest.shell("umount /run/card")
    told = lab.j("card", "dut")
    assert (told.returncode, lab.sdwire.side) == (0, "dut"), told


def test_dutlink_from_image_to_console(lab: UsbLab, client: Any, tmp_path: Path) -> None:
    """The whole way: the device under test boots what was flashed, and says so on its console."""
    source = image(tmp_path)
    result = client.dut.storage.flash(source)
    assert result.changed and result.verified
    assert lab.dutlink.storage == client.dut.storage.state() == "dut"
    assert lab.guest.run(["test", "-e", lab.stick.by_id], check=False).rc == 1, "the block device is still there"
    with client.dut.console.pexpect() as console:
        client.dut.power.on()
        console.expect_exact(f"booting {hashlib.sha256(source.read_bytes()[:MIB]).hexdigest()}", timeout=20)
        console.send("hello\r")
        console.expect_exact("you said hello", timeout=20)
        reading = next(client.dut.power.monitor(count=1))
        assert (reading.voltage, reading.current) == (5.0, 0.42)
        told = lab.j("dut", "power", "read")
        assert told.stdout == "5 V, 0.42 A, 2.1 VA\n", told
        client.dut.power.off()
    assert lab.dutlink.power == "off"
    client.dut.storage.host()
    seen = lab.guest.shell(f"head -c {MIB + 4096} {lab.stick.by_id} | sha256sum").split()[0]
    assert seen == hashlib.sha256(source.read_bytes()).hexdigest()
    client.dut.storage.off()
    assert (lab.dutlink.storage, client.dut.storage.state()) == ("off", "off")


def test_boards_may_be_plugged_in_anew(lab: UsbLab, client: Any) -> None:
    for board in (lab.dutlink, lab.ykush):
        lab.usb.unplug(board.usb)
    with pytest.raises(DriverError, match="YK1.* is not there|unplugged"):
        client.ykush.off()
    for board in (lab.dutlink, lab.ykush):
        lab.usb.plug(board.usb)
    client.ykush.off()
    assert not lab.ykush.ports[1]
    client.dut.power.on()
    eventually(lambda: client.dut.console.call("position")["open"], "the console did not come back")
    with client.dut.console.pexpect() as console:
        console.send("again\r")
        console.expect_exact("you said again", timeout=20)
    client.dut.power.off()
