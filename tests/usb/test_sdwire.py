# SPDX-License-Identifier: Apache-2.0
"""SDWire: the card is where the pin says, is written while it is here, and is not pulled out while it is used."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from storage_helpers import MIB
from usb_boards import SDWire as Board
from usb_bus import Bridge, Bus
from usb_slots import Slot, slot

from jumpstarter.common.exceptions import ConfigurationError, DriverError
from jumpstarter.common.utils import serve
from jumpstarter_driver_sdwire.driver import SDWire


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slot]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with slot(tmp_path / "slot") as made:
        yield made


@pytest.fixture
def board(bridge: Bridge, bus: Bus, card: Slot) -> Board:
    made = Board("sd-wire_1", on_switch=card.switched)
    bus.plug(made.usb)
    return made


def driver(card: Slot, **more: Any) -> SDWire:
    return SDWire(**{"serial": "sd-wire_1", "storage_device": str(card.path), "storage_timeout": 20, **more})


def image(folder: Path, size: int = 3 * MIB + 512) -> Path:
    path = folder / "card.img"
    path.write_bytes(bytes(range(256)) * (size // 256))
    return path


def test_an_image_is_written_verified_and_given_to_the_dut(board: Board, card: Slot, tmp_path: Path) -> None:
    source = image(tmp_path)
    with serve(driver(card)) as client:
        assert client.state() == "dut"
        result = client.flash(source)
        assert result.changed and result.verified
        assert (client.state(), board.side, card.path.exists()) == ("dut", "dut", False)
        assert card.backing.read_bytes()[: source.stat().st_size] == source.read_bytes()

        client.dump(tmp_path / "dumped")
        assert (tmp_path / "dumped").read_bytes() == card.backing.read_bytes()
        assert board.side == "dut"


def test_the_same_image_again_is_compared_and_only_what_the_dut_changed_is_written(
    board: Board, card: Slot, tmp_path: Path
) -> None:
    source = image(tmp_path)
    with serve(driver(card)) as client:
        client.flash(source)
    with serve(driver(card)) as client:  # another session, another process as well
        looked = client.flash(source, check=True)
        assert (looked.changed, looked.verified, board.side) == (False, False, "dut")
        moves = len(board.moves)
        again = client.flash(source)
        assert (again.changed, again.verified, again.written_bytes) == (False, True, 0)
        assert (client.state(), board.moves[moves:]) == ("dut", ["host", "dut"]), (
            "it was not compared, or not given back"
        )
        with card.backing.open("r+b") as file:
            file.seek(2 * MIB + 17)
            file.write(b"the device was here")
        repaired = client.flash(source)
        assert (repaired.changed, repaired.verified, repaired.repaired_blocks) == (True, True, 1)
        assert card.backing.read_bytes()[: source.stat().st_size] == source.read_bytes()
        other = image(tmp_path, MIB)
        assert client.flash(other, check=True).changed
        assert client.state() == "dut"


def test_the_calls_of_jumpstarters_clients(board: Board, card: Slot, tmp_path: Path) -> None:
    """They write and read without asking for `host` first."""
    source = image(tmp_path)
    with serve(driver(card)) as client:
        client.dut()
        client.write_local_file(source)
        assert board.side == "host", "write leaves the switch where it needs it"
        client.dut()
        client.read_local_file(tmp_path / "read")
        assert (tmp_path / "read").read_bytes()[:MIB] == source.read_bytes()[:MIB]
        client.off()
        assert board.side == client.state() == "host"


def test_somebody_elses_switch_is_seen_and_undone(board: Board, card: Slot) -> None:
    with serve(driver(card)) as client:
        client.host()
        board.switch("dut")  # a button, another program
        assert client.state() == "dut"
        client.host()
        assert (board.side, client.state()) == ("host", "host")


def test_a_board_that_does_not_obey_is_no_success(board: Board, card: Slot, tmp_path: Path) -> None:
    board.gpio = False
    with serve(driver(card)) as client:
        with pytest.raises(DriverError, match='SDWire "sd-wire_1": was told to switch .* still reports dut.*CBUS0'):
            client.host()
        assert client.state() == "dut"
        with pytest.raises(Exception, match="CBUS0"):
            client.flash(image(tmp_path))


def test_no_card_is_told_in_time(board: Board, card: Slot) -> None:
    board._on_switch = None
    with serve(driver(card, storage_timeout=0.3)) as client:
        with pytest.raises(DriverError, match=r"storage is not there after 0\.3 s .*is a card or stick in it\?"):
            client.host()


def test_a_mounted_card_stays(board: Board, card: Slot, tmp_path: Path) -> None:
    subprocess.run(["mke2fs", "-q", card.loop], check=True)
    folder = tmp_path / "mounted"
    folder.mkdir()
    with serve(driver(card)) as client:
        client.host()
        subprocess.run(["mount", card.loop, folder], check=True)
        try:
            with pytest.raises(ValueError, match=f"in use on the exporter host: mounted on {folder}"):
                client.dut()
            assert board.side == "host"
            with pytest.raises(Exception, match="in use on the exporter host"):
                client.flash(image(tmp_path))
        finally:
            subprocess.run(["umount", folder], check=True)
        client.dut()
        assert board.side == "dut"


def test_another_disk_of_the_exporter_host_is_not_written(board: Board, card: Slot, tmp_path: Path) -> None:
    """A storage_device that can be read while the card is in the device is not the card."""
    source = image(tmp_path)
    before = card.backing.read_bytes()
    with serve(driver(card, storage_timeout=0.3, storage_device=card.loop)) as client:
        with pytest.raises(Exception, match="still reads .* is that the storage of this device"):
            client.flash(source)
        board.switch("host")
        with pytest.raises(Exception, match="still reads .* is that the storage of this device"):
            client.write_local_file(source)
    assert card.backing.read_bytes() == before, "another disk was written"


def test_unplugging_is_told(bridge: Bridge, bus: Bus, board: Board, card: Slot) -> None:
    with serve(driver(card)) as client:
        client.host()
        bus.unplug(board.usb)
        with pytest.raises(DriverError, match='SDWire "sd-wire_1" is not there .*04e8:6001, 0403:6015'):
            client.dut()
        bus.plug(board.usb)
        client.dut()
        assert board.side == "dut"


def test_only_boards_that_say_they_are_one(bridge: Bridge, bus: Bus, card: Slot) -> None:
    """04e8:6001 is Samsung's, for many things; a bare FT200X counts when its serial number is asked for."""
    other = Board("other")
    other.usb._strings[other.usb.iProduct] = "printer"
    bare = Board("DM001", on_switch=card.switched)
    bare.usb.vid, bare.usb.pid = 0x0403, 0x6015
    bare.usb._strings[bare.usb.iProduct] = "FT200X USB I2C"
    bus.plug(other.usb)
    bus.plug(bare.usb)
    with serve(driver(card, serial=None)) as client, pytest.raises(DriverError, match="SDWire is not there"):
        client.dut()
    with serve(driver(card, serial="DM001")) as client:
        client.host()
        assert bare.side == "host"
    for name in ("a", "b"):
        bus.plug(Board(name).usb)
    with serve(driver(card, serial=None)) as client:
        with pytest.raises(DriverError, match=r"2 devices are a SDWire \(a, b\)"):
            client.dut()


def test_targets_say_what_is_missing_without_touching_the_board(bridge: Bridge, bus: Bus) -> None:
    with serve(SDWire(serial="absent")) as client:
        (target,) = client.call("targets")
        assert 'no card reader beside SDWire "absent"' in target["problem"]
    assert bridge.opens == 0


@pytest.mark.parametrize("wrong", [{"storage_timeout": -1}, {"storage_leeway": 1e9}, {"storage_device": ""}])
def test_wrong_configuration_is_found_at_construction(wrong: dict[str, Any]) -> None:
    with pytest.raises((ConfigurationError, ValueError), match="storage_|path"):
        SDWire(**wrong)
