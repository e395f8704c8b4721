# SPDX-License-Identifier: Apache-2.0
"""Protects flashing of Espressif chips: Espressif's own esptool against a fake chip that speaks its protocol."""

from __future__ import annotations

import gzip
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fake_esp32 import FakeEsp32Board, FakeEsp32OnPty, wait_for

from jumpstarter.client.imaging import ImagingError
from jumpstarter.common.exceptions import ConfigurationError, DriverError, DriverInvalidArgument
from jumpstarter.common.utils import serve
from jumpstarter_driver_esp32.driver import Esp32Flasher
from jumpstarter_driver_pyserial.driver import PySerial
from jumpstarter_testing import eventually

HELD = {"before": "no-reset", "after": "no-reset"}


def driver(url: str, folder: Path, **config: Any) -> Esp32Flasher:
    settings = {"state_dir": str(folder / "state"), "staging_dir": str(folder / "staged"), "connect_attempts": 1}
    return Esp32Flasher(children={"serial": PySerial(url=url, check_present=False)}, **{**settings, **config})


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "app.bin"
    path.write_bytes(b"\xe9" + os.urandom(50_000) + bytes(30_000) + os.urandom(7))
    return path


# --- flashing -------------------------------------------------------------------------------------------------------


def test_image_is_written_verified_and_then_left_alone(pty_board: FakeEsp32OnPty, image: Path, tmp_path: Path) -> None:
    chip = pty_board.chip
    with serve(driver(pty_board.url, tmp_path, **HELD)) as client:
        first = client.flash(image, target="65536")
        data = image.read_bytes()
        assert chip.flash[0x10000 : 0x10000 + len(data)] == data
        assert (first.changed, first.verified, first.target, first.size) == (True, True, "0x10000", len(data))
        again = client.flash(image, target="0x10000")
        assert (again.changed, again.verified, again.reason) == (False, True, "the target already holds this image")
        chip.flash[0x10005] ^= 0xFF
        repaired = client.flash(image, target="0x10000")
        assert repaired.changed and "differed" in repaired.reason
        assert chip.flash[0x10000 : 0x10000 + len(data)] == data


def test_packed_images_are_unpacked_and_the_rom_alone_will_do(
    pty_board: FakeEsp32OnPty, image: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "app.bin.gz"
    packed.write_bytes(gzip.compress(image.read_bytes()))
    with serve(driver(pty_board.url, tmp_path, stub=False, **HELD)) as client:
        client.flash(packed)
        assert pty_board.chip.flash.startswith(image.read_bytes())
        assert 0xD0 not in pty_board.chip.commands and 0x05 not in pty_board.chip.commands, "no stub was loaded"


def test_an_image_elsewhere_makes_what_is_known_doubtful(
    pty_board: FakeEsp32OnPty, image: Path, tmp_path: Path
) -> None:
    with serve(driver(pty_board.url, tmp_path, **HELD)) as client:
        client.flash(image, target="0x0")
        client.flash(image, target="0x8000")
        assert client.flash(image, target="0x0", verify=False).changed, "the second image lies over the first"
        client.erase()
        assert client.flash(image, target="0x0", verify=False).changed


def test_damaged_writes_are_an_error_and_not_remembered(pty_board: FakeEsp32OnPty, image: Path, tmp_path: Path) -> None:
    pty_board.chip.faults.add("bad-write")
    with serve(driver(pty_board.url, tmp_path, **HELD)) as client:
        with pytest.raises(ImagingError, match="MD5 of file does not match") as caught:
            client.flash(image)
        assert "the flash is incomplete" in str(caught.value)
        pty_board.chip.faults.clear()
        assert client.flash(image, verify=False).changed
        assert pty_board.chip.flash.startswith(image.read_bytes())


def test_a_chip_that_dies_on_the_way_is_an_error(pty_board: FakeEsp32OnPty, image: Path, tmp_path: Path) -> None:
    pty_board.chip.faults.add("dies")
    with serve(driver(pty_board.url, tmp_path, timeout=1.5, **HELD)) as client:
        with pytest.raises(ImagingError, match="incomplete"):
            client.flash(image)


def test_esptool_ends_with_the_session(pty_board: FakeEsp32OnPty, image: Path, tmp_path: Path) -> None:
    pty_board.chip.faults.add("dies")
    made = driver(pty_board.url, tmp_path, **HELD)
    ended: list[Exception] = []

    def flash(client: Any) -> None:
        try:
            client.flash(image)
        except Exception as error:  # noqa: BLE001  it is looked at below
            ended.append(error)

    with serve(made) as client:
        thread = threading.Thread(target=flash, args=(client,))
        thread.start()
        wait_for(lambda: pty_board.chip.commands.count(0x11) + pty_board.chip.commands.count(0x03) > 1)
        (process,) = made._running
        made.close()
        assert not process.running
        thread.join(10)
    assert ended and "incomplete" in str(ended[0])


def test_no_chip_is_an_error_before_anything_is_written(pty_board: FakeEsp32OnPty, image: Path, tmp_path: Path) -> None:
    pty_board.chip.faults.add("silent")
    with serve(driver(pty_board.url, tmp_path, **HELD)) as client:
        with pytest.raises(ImagingError, match="Failed to connect.*nothing was written"):
            client.flash(image)
        with pytest.raises(DriverError, match="failed: Failed to connect.*[^.]$"):
            client.get_chip_info()


def test_flash_is_read_back(pty_board: FakeEsp32OnPty, tmp_path: Path) -> None:
    content = os.urandom(5000)
    pty_board.chip.flash[0x9000 : 0x9000 + 5000] = content
    with serve(driver(pty_board.url, tmp_path, **HELD)) as client:
        client.dump(tmp_path / "out.bin", target="0x9000:5000")
        assert (tmp_path / "out.bin").read_bytes() == content
        for wrong in ("elsewhere", "0x400000", "0x0:0", "-1:4"):
            with pytest.raises((ImagingError, DriverInvalidArgument)):
                client.dump(tmp_path / "no.bin", target=wrong)


def test_chip_info_and_erase(pty_board: FakeEsp32OnPty, tmp_path: Path) -> None:
    pty_board.chip.flash[:4] = b"data"
    with serve(driver(pty_board.url, tmp_path, **HELD)) as client:
        info = client.get_chip_info()
        assert info["chip"].startswith("ESP32-D0WDQ6")
        assert (info["mac"], info["crystal"]) == ("a4:cf:12:34:56:78", "40MHz")
        assert "Wi-Fi" in info["features"]
        client.enter_bootloader()
        client.erase()
        assert pty_board.chip.flash == b"\xff" * len(pty_board.chip.flash)


def test_commands_of_j(pty_board: FakeEsp32OnPty, image: Path, tmp_path: Path) -> None:
    with serve(driver(pty_board.url, tmp_path, **HELD)) as client:
        runner = CliRunner()
        flashed = runner.invoke(client.cli(), ["flash", "-a", "0x20000", str(image)])
        assert flashed.exit_code == 0 and "verified" in flashed.output, flashed.output
        data = image.read_bytes()
        assert pty_board.chip.flash[0x20000 : 0x20000 + len(data)] == data
        assert "mac: a4:cf:12:34:56:78" in runner.invoke(client.cli(), ["chip-info"]).output
        dumped = runner.invoke(client.cli(), ["dump", "-a", "0x20000:16", str(tmp_path / "d")])
        assert dumped.exit_code == 0 and (tmp_path / "d").read_bytes() == data[:16]
        assert runner.invoke(client.cli(), ["erase"]).exit_code == 0


# --- modem lines ----------------------------------------------------------------------------------------------------


def test_dtr_and_rts_lead_into_the_bootloader_and_back(
    net_board: FakeEsp32Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("quick_esptool.py")} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr("jumpstarter_driver_esp32.driver._PYTHON", str(python))
    chip = net_board.chip
    with serve(driver(net_board.url, tmp_path, stub=False)) as client:
        client.hard_reset()
        assert chip.resets[-2:] == ["loader", "app"]
        assert 0x08 in chip.commands, "the loader answered"


def test_a_reset_that_does_not_happen_is_an_error(pty_board: FakeEsp32OnPty, image: Path, tmp_path: Path) -> None:
    with serve(driver(pty_board.url, tmp_path, before="no-reset")) as client:
        with pytest.raises(DriverError, match="chip was not reset: .* has no DTR and RTS"):
            client.hard_reset()
        with pytest.raises(ImagingError, match="holds the image at 0x0, the chip was not reset"):
            client.flash(image)


def test_the_console_gives_the_port_away_and_takes_it_back(pty_board: FakeEsp32OnPty, tmp_path: Path) -> None:
    made = driver(pty_board.url, tmp_path, **HELD)
    chip = pty_board.chip
    with serve(made) as client:
        console = client.children["serial"]
        events: list[str] = []
        heard = bytearray()

        def follow() -> None:
            for item in console.streamingcall("follow", 0):
                events.append(item["event"])
                heard.extend(item["data"])
                if b"bye" in heard:
                    return

        thread = threading.Thread(target=follow)
        thread.start()
        chip.say(b"hello\n")
        wait_for(lambda: b"hello" in heard)
        client.get_chip_info()
        eventually(lambda: events.index("lost: in use by esptool"))
        wait_for(lambda: console.call("position")["open"])
        chip.say(b"bye\n")
        thread.join(10)
        assert not thread.is_alive()
        assert b"\xc0" not in heard, "what esptool and the chip said to one another is none of the console's"


# --- configuration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"children": {}}, "child serial is missing"),
        ({"baudrate": 0}, "baudrate"),
        ({"chip": "stm32; rm"}, "chip"),
        ({"timeout": 0}, "timeout"),
        ({"connect_attempts": 0}, "connect_attempts"),
    ],
)
def test_wrong_configuration_is_found_at_construction(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Esp32Flasher(**{"children": {"serial": PySerial(url="loop://")}, **config})


def test_targets_are_addresses(tmp_path: Path, image: Path) -> None:
    with serve(driver("loop://", tmp_path)) as client:
        assert [target.name for target in client.targets()] == ["0x0"]
        for wrong in ("bootloader", "0x1ffffffff", "-4", "../x"):
            with pytest.raises(ImagingError, match="not an address in flash"):
                client.flash(image, target=wrong)
