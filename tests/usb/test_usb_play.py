# SPDX-License-Identifier: GPL-3.0-or-later
"""One play over a YKUSH, an SDWire and a DUTLink: flash, switch, power, console, as a user writes it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from playing import Stage
from usb_boards import MIB
from usb_lab import UsbLab

pytestmark = pytest.mark.xdist_group("guest-usb")


def test_a_play_flashes_a_card_and_a_stick_and_the_device_boots_it(usb_lab: UsbLab, tmp_path: Path) -> None:
    image = tmp_path / "board.img"
    image.write_bytes(hashlib.shake_128(b"play").digest(MIB))
    stage = Stage(tmp_path, {"board": {"jumpstarter_endpoint": usb_lab.exporter.address, "jumpstarter_insecure": True}})
    booting = f"booting {hashlib.sha256(image.read_bytes()).hexdigest()}"
    tasks = [
        {"jumpstarter.lab.power": {"driver": "ykush", "state": "on"}},
        {"jumpstarter.lab.flash": {"driver": "card", "src": str(image)}},
        {"jumpstarter.lab.storage": {"driver": "card", "state": "status"}},
        {"jumpstarter.lab.flash": {"driver": "dut.storage", "src": str(image)}},
        {"jumpstarter.lab.console": {"driver": "dut.console", "action": "log"}},  # listens from here on
        {"jumpstarter.lab.power": {"driver": "dut.power", "state": "on"}},
        {
            "jumpstarter.lab.console": {
                "driver": "dut.console",
                "action": "send",
                "send": "hello",
                "pattern": "said hello",
            }
        },
        {"jumpstarter.lab.console": {"driver": "dut.console", "action": "log"}},
        {"jumpstarter.lab.call": {"driver": "dut.power", "method": "rescue"}},
    ]
    usb_lab.ykush.ports[1] = False
    switched, told = len(usb_lab.ykush.commands), len(usb_lab.dutlink.requests)
    try:
        played = stage.run(tasks)
    finally:
        stage.close()
    assert played.rc == 0, played.output
    results = [played.result("board", index) for index in range(len(tasks))]
    assert results[1]["changed"] and results[3]["changed"]
    assert results[2]["state"] == "dut"
    assert booting in str(results[7])
    assert 0x11 in usb_lab.ykush.commands[switched:]
    assert bytes(usb_lab.sdwire.card.data[:MIB]) == bytes(usb_lab.stick.reader.luns[0].store.data[:MIB])
    assert [value for request, value in usb_lab.dutlink.requests[told:] if request == 1][:2] == [1, 4]
