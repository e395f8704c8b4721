# SPDX-License-Identifier: Apache-2.0
"""Protects copying firmware to UF2 bootloaders: what counts as taken, what as failed, and the ways there."""

from __future__ import annotations

import asyncio
import termios
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fake_pico import RP2350, FakePico, FakePort, make_uf2

from jumpstarter.client.imaging import ImagingError
from jumpstarter.common.exceptions import ConfigurationError, DriverError, DriverMethodNotImplemented
from jumpstarter.common.utils import serve
from jumpstarter.driver import Driver
from jumpstarter_driver_pi_pico.driver import PiPicoFlasher
from jumpstarter_driver_pyserial.driver import PySerial


def driver(pico: FakePico, folder: Path, **config: Any) -> PiPicoFlasher:
    settings = {
        "volume": str(pico.mount), "state_dir": str(folder / "state"), "staging_dir": str(folder / "staged"),
        "bootloader_wait_seconds": 1.0, "settle_seconds": 0.1, "gpio_reset_hold_seconds": 0.02,
    }  # fmt: skip
    return PiPicoFlasher(**{**settings, **config})


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "blink.uf2"
    path.write_bytes(make_uf2(200))
    return path


def taken(pico: FakePico, image: Path) -> bool:
    data = image.read_bytes()
    return pico.flash == {0x10000000 + 256 * n: data[512 * n + 32 : 512 * n + 288] for n in range(len(data) // 512)}


def test_a_board_that_took_the_firmware_and_left_is_success(pico: FakePico, image: Path, tmp_path: Path) -> None:
    pico.enter_bootloader()
    with serve(driver(pico, tmp_path)) as client:
        assert client.bootloader_info() == {
            "bootloader": "UF2 Bootloader v3.0", "Model": "Raspberry Pi RPI-RP2", "Board-ID": "RPI-RP2",
            "mount": str(pico.mount),
        }  # fmt: skip
        result = client.flash(image)
        assert taken(pico, image) and pico.file == "Firmware.uf2"
        assert (result.changed, result.verified, result.size) == (True, False, image.stat().st_size)
        pico.enter_bootloader()
        assert client.flash(image, target="other.uf2").changed, "what cannot be read cannot be known to be there"
        assert pico.file == "other.uf2"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("ignores", "still in its bootloader 1 s after the copy"),
        ("refuses", "refuses the image: flash write failed"),
        ("small", "No space left on device; the board holds half a program"),
        ("comes-back", "came back into its bootloader"),
    ],
)
def test_a_copy_alone_is_no_success(pico: FakePico, image: Path, tmp_path: Path, fault: str, words: str) -> None:
    pico.faults.add(fault)
    pico.enter_bootloader()
    with serve(driver(pico, tmp_path, settle_seconds=0.6)) as client, pytest.raises(ImagingError, match=words):
        client.flash(image)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x7fELF" + bytes(508), "block 0 has not its magic numbers"),
        (make_uf2(4)[:-1], "no multiple of 512"),
        (make_uf2(4)[:-512], "incomplete: 3 of 4 blocks"),
        (make_uf2(4)[:512] + bytes(512) + make_uf2(4)[1024:], "block 1 has not its magic"),
        (make_uf2(4, RP2350), "another chip: block 0 has family rp2350-arm-s, the board takes .*rp2040"),
        (make_uf2(4, 0x12345678), "another chip: block 0 has family 0x12345678"),
    ],
)
def test_what_is_no_firmware_for_the_board_is_refused(
    pico: FakePico, tmp_path: Path, content: bytes, words: str
) -> None:
    image = tmp_path / "bad.uf2"
    image.write_bytes(content)
    pico.enter_bootloader()
    with serve(driver(pico, tmp_path)) as client, pytest.raises(ImagingError, match=words) as caught:
        client.flash(image)
    assert "nothing was written" in str(caught.value)
    assert sorted(path.name for path in pico.mount.iterdir()) == ["INFO_UF2.TXT"]


def test_families_of_other_boards_can_be_named(tmp_path: Path) -> None:
    image = tmp_path / "other.uf2"
    image.write_bytes(make_uf2(4, 0x12345678))
    other = FakePico(tmp_path / "OTHER", "SAMD21")
    try:
        other.enter_bootloader()
        with serve(driver(other, tmp_path, families=["0x12345678"])) as client:
            assert client.flash(image).changed
    finally:
        other.close()


def test_opening_the_port_with_1200_baud_leads_into_the_bootloader(pico: FakePico, image: Path, tmp_path: Path) -> None:
    port = FakePort(pico, tmp_path / "ttyACM0")
    try:
        children = {"serial": PySerial(url=str(tmp_path / "ttyACM0"))}
        with serve(driver(pico, tmp_path, children=children)) as client:
            assert client.flash(image).changed
            assert taken(pico, image)
        assert termios.B1200 in port.speeds
    finally:
        port.close()


@dataclass(kw_only=True)
class Pin(Driver):
    """An output that pulls a pin low, and the board that notices."""

    pico: FakePico = field(repr=False)
    low: dict[str, bool] = field(default_factory=dict)

    @classmethod
    def client(cls) -> str:
        return "jumpstarter.client.DriverClient"


class Bootsel(Pin):
    async def on(self) -> None:
        self.low["bootsel"] = True

    async def off(self) -> None:
        self.low["bootsel"] = False


class Run(Pin):
    def on(self) -> None:
        self.low["run"] = True

    def off(self) -> None:
        if self.low["run"] and self.low["bootsel"]:
            self.pico.enter_bootloader()
        self.low["run"] = False


def test_pins_lead_into_the_bootloader_and_are_released(pico: FakePico, tmp_path: Path) -> None:
    low: dict[str, bool] = {}
    children = {"bootsel": Bootsel(pico=pico, low=low), "run": Run(pico=pico, low=low)}
    with serve(driver(pico, tmp_path, children=children)) as client:
        client.enter_bootloader()
        assert client.bootloader_info()["Board-ID"] == "RPI-RP2"
    assert low == {"bootsel": False, "run": False}


@pytest.mark.parametrize("which", ["bootsel", "run"])
def test_no_pin_stays_low_when_the_caller_leaves_while_it_is_being_pulled(
    pico: FakePico, tmp_path: Path, which: str
) -> None:
    low: dict[str, bool] = {}
    begun, go_on = threading.Event(), threading.Event()

    @dataclass(kw_only=True)
    class Slow(Pin):
        pin: str

        def on(self) -> None:
            if self.pin == which:
                begun.set()
                assert go_on.wait(20)
            self.low[self.pin] = True

        def off(self) -> None:
            self.low[self.pin] = False

    children = {pin: Slow(pico=pico, low=low, pin=pin) for pin in ("bootsel", "run")}
    made = driver(pico, tmp_path, children=children, gpio_reset_hold_seconds=0.01)

    async def test() -> None:
        task = asyncio.ensure_future(made.enter_bootloader())
        assert await asyncio.to_thread(begun.wait, 20)
        task.cancel()
        for _ in range(20):
            await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(test())
    assert low["bootsel"] is False and low.get("run", False) is False


def test_a_board_that_does_not_come_is_an_error(pico: FakePico, image: Path, tmp_path: Path) -> None:
    port = FakePort(pico, tmp_path / "ttyACM0", touch=termios.B300)
    try:
        serial = {"serial": PySerial(url=str(tmp_path / "ttyACM0"))}
        with serve(driver(pico, tmp_path, children=serial, bootloader_wait_seconds=0.3)) as client:
            with pytest.raises(ImagingError, match="no bootloader volume within 0.3 s.*nothing was written"):
                client.flash(image)
    finally:
        port.close()
    with serve(driver(pico, tmp_path)) as client:
        with pytest.raises(ImagingError, match="hold BOOTSEL"):
            client.flash(image)
        with pytest.raises(DriverError, match="not in its bootloader: no volume with INFO_UF2.TXT$"):
            client.bootloader_info()
        with pytest.raises(DriverMethodNotImplemented, match="cannot be read"):
            client.call("dump", {}, None)


def test_two_boards_are_not_mistaken_for_one_another(pico: FakePico, image: Path, tmp_path: Path) -> None:
    other = FakePico(tmp_path / "OTHER")
    try:
        pico.enter_bootloader()
        other.enter_bootloader()
        with serve(driver(pico, tmp_path, volume=None)) as client:
            with pytest.raises(ImagingError, match="several boards.*set volume"):
                client.flash(image)
        with serve(driver(other, tmp_path)) as client:
            client.flash(image)
        assert taken(other, image) and not pico.flash
    finally:
        other.close()


def test_commands_of_j(pico: FakePico, image: Path, tmp_path: Path) -> None:
    pico.enter_bootloader()
    with serve(driver(pico, tmp_path)) as client:
        runner = CliRunner()
        assert "Board-ID: RPI-RP2" in runner.invoke(client.cli(), ["bootloader-info"]).output
        assert runner.invoke(client.cli(), ["bootloader"]).exit_code == 0
        done = runner.invoke(client.cli(), ["flash", "-n", "x.uf2", str(image)])
        assert done.exit_code == 0, done.output
        assert pico.file == "x.uf2"
        assert "dump" not in runner.invoke(client.cli(), ["--help"]).output


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"bootloader_touch_baudrate": 0}, "touch_baudrate"),
        ({"bootloader_wait_seconds": 0}, "wait_seconds"),
        ({"settle_seconds": -1}, "settle_seconds"),
        ({"families": ["pico"]}, "'pico' is no UF2 family"),
        ({"children": {"run": PySerial(url="loop://")}}, "bootsel and run"),
    ],
)
def test_wrong_configuration_is_found_at_construction(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        PiPicoFlasher(**config)


@pytest.mark.parametrize("name", ["../x.uf2", "a/b", "..", "/etc/x"])
def test_files_stay_on_the_volume(pico: FakePico, image: Path, tmp_path: Path, name: str) -> None:
    pico.enter_bootloader()
    with serve(driver(pico, tmp_path)) as client, pytest.raises(ImagingError, match="not a file's name"):
        client.flash(image, target=name)
