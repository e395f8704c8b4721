# SPDX-License-Identifier: Apache-2.0
"""The guides about boards and lab hosts do what they say, on a board without hardware."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import disk_images as images
from guide_board import Board
from guide_pages import Reader
from storage_helpers import MIB, loop_device

MOCK = "jumpstarter_driver_power.driver.MockPower"
HERE = str(Path(__file__).parent)


def test_your_first_board(reader: Callable[..., Reader], board: Board, tmp_path: Path) -> None:
    with loop_device(tmp_path / "card", 16 * MIB) as card:
        made = reader(
            replace={
                "/dev/serial/by-id/usb-FTDI_TTL232R-3V3_FT9XYZ12-if00-port0": board.serial,
                "/dev/disk/by-id/usb-Generic_MassStorageClass_000000001206-0:0": card,
                "model: MassStorageClass": f"backing_file: {tmp_path / 'card'}",
                MOCK: "guide_board.Supply",
            },
            environ={"GUIDE_BOARD": str(board.power), "PYTHONPATH": HERE},
        )
        image = images.patterned(made.directory / "board.img", 12)
        made.read("your-first-board.md")
        with open(card, "rb") as medium:
            assert medium.read(12 * MIB) == image.read_bytes()


def test_exporter_on_a_lab_host(reader: Callable[..., Reader], tmp_path: Path) -> None:
    made = reader(replace={"bench-3.lab": "localhost", "/srv/bench-3": str(tmp_path)})
    made.read("exporter-on-a-lab-host.md")
    hooked = made.running[0]
    made.stop()
    assert "the board is given back" in hooked.printed
    unit = made.directory / "jumpstarter-exporter@.service"
    instance = made.directory / "jumpstarter-exporter@bench-3.service"
    # The program is not installed here; everything else has to be right.
    instance.write_text(unit.read_text().replace("/opt/jumpstarter/bin/jmp", "/bin/true"))
    checked = subprocess.run(
        ["systemd-analyze", "verify", str(instance)], capture_output=True, text=True, timeout=60, check=False
    )
    assert checked.returncode == 0 and instance.name not in checked.stderr, checked.stderr


def test_flashing(reader: Callable[..., Reader]) -> None:
    reader().read("flashing.md")


def test_when_something_goes_wrong(reader: Callable[..., Reader]) -> None:
    reader().read("when-something-goes-wrong.md")
