# SPDX-License-Identifier: Apache-2.0
"""DUTLink: every call reaches the board, and storage is where it is seen, not where it was last told to be."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from storage_helpers import MIB
from usb_boards import Dutlink as Board
from usb_bus import Bridge, Bus
from usb_slots import Slot, slot

from jumpstarter.common.exceptions import ConfigurationError, DriverError
from jumpstarter.common.utils import serve
from jumpstarter_driver_dutlink.driver import Dutlink, DutlinkPower


@pytest.fixture
def stick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slot]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with slot(tmp_path / "slot") as made:
        yield made


@pytest.fixture
def board(bridge: Bridge, bus: Bus, stick: Slot) -> Board:
    made = Board("dl-1", on_storage=stick.switched)
    bus.plug(made.usb)
    return made


def driver(stick: Slot, **more: Any) -> Dutlink:
    return Dutlink(**{"serial": "dl-1", "storage_device": str(stick.path), "storage_timeout": 20, **more})


def test_power(board: Board, stick: Slot) -> None:
    with serve(driver(stick)) as client:
        for call, state in (("on", "on"), ("off", "off"), ("rescue", "rescue"), ("off", "off")):
            getattr(client.power, call)()
            assert board.power == state
        assert client.power.status() == "unknown", "the board does not tell, so nobody may claim"
        # The board was switched by other means: the same call again must reach it.
        board.switch_power("on")
        client.power.off()
        assert board.power == "off"


def test_readings_are_fresh_and_go_on(board: Board, stick: Slot) -> None:
    with serve(driver(stick)) as client:
        client.power.on()
        readings = client.power.read()
        first = next(readings)
        assert (first.voltage, first.current, round(first.apparent_power, 2)) == (5.0, 0.42, 2.1)
        assert next(readings) == first, "an unchanged reading is a reading"
        board.volts = 4.75
        assert next(readings).voltage == 4.75
        readings.close()
        assert len(list(itertools.islice(client.power.monitor(count=1), 5))) == 1


def test_a_slow_request_does_not_hold_up_the_exporter(board: Board, stick: Slot, monkeypatch: Any) -> None:
    begun, go_on = threading.Event(), threading.Event()
    switch = board.switch_power

    def slow(action: str) -> None:
        begun.set()
        assert go_on.wait(20)
        switch(action)

    monkeypatch.setattr(board, "switch_power", slow)
    with serve(driver(stick)) as client:
        switching = threading.Thread(target=client.power.on)
        switching.start()
        assert begun.wait(10)
        assert client.storage.state() == "unknown", "another driver of the same exporter answers meanwhile"
        go_on.set()
        switching.join(20)
        assert board.power == "on"


def test_requests_end_in_time(board: Board, stick: Slot, monkeypatch: Any) -> None:
    never = threading.Event()
    monkeypatch.setattr(board, "switch_power", lambda action: never.wait(20))
    with serve(driver(stick, timeout_s=0.5)) as client:
        with pytest.raises(DriverError, match=r"cannot switch the power to on: no answer within 0\.5 s"):
            client.power.on()
    never.set()


def test_an_image_is_written_verified_and_given_to_the_dut(board: Board, stick: Slot, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"linux" * MIB)
    with serve(driver(stick)) as client:
        result = client.storage.flash(image)
        assert result.changed and result.verified
        assert (board.storage, client.storage.state(), stick.path.exists()) == ("dut", "dut", False)
        assert stick.backing.read_bytes()[: 5 * MIB] == image.read_bytes()
        client.storage.off()
        assert (board.storage, client.storage.state()) == ("off", "off")
        board.switch_storage("host")  # by other means
        deadline = time.monotonic() + 20
        while client.storage.state() != "host":
            assert time.monotonic() < deadline
        client.storage.dut()
        assert board.storage == "dut"


def test_storage_that_does_not_come_or_go_is_no_success(board: Board, stick: Slot, tmp_path: Path) -> None:
    with serve(driver(stick, storage_timeout=0.3)) as client:
        board.stuck_storage = True
        with pytest.raises(DriverError, match="storage of DUTLink .*not there after 0.3 s"):
            client.storage.host()
    # A storage_device that is something else on the exporter host: never hand out success for it.
    with serve(driver(stick, storage_timeout=0.3, storage_device=stick.loop)) as client:
        with pytest.raises(DriverError, match="the exporter host still reads .* is that the storage of this device"):
            client.storage.dut()
        assert client.storage.state() == "host"


def test_another_disk_of_the_exporter_host_is_not_written(board: Board, stick: Slot, tmp_path: Path) -> None:
    """A storage_device that names the wrong disk: it does not move with the switch, which is seen before the write."""
    image = tmp_path / "image"
    image.write_bytes(b"linux" * MIB)
    before = stick.backing.read_bytes()
    with serve(driver(stick, storage_timeout=0.3, storage_device=stick.loop)) as client:
        for write in (client.storage.flash, client.storage.write_local_file):
            with pytest.raises(Exception, match="still reads .* is that the storage of this device"):
                write(image)
    assert stick.backing.read_bytes() == before, "another disk was written"


def test_storage_that_was_here_already_shows_that_it_is_on_the_switch(
    board: Board, stick: Slot, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"linux" * MIB)
    stick.switched("host")
    with serve(driver(stick)) as client:
        client.storage.write_local_file(image)
        storage = [value for request, value in board.requests if request == 2]
        assert storage == [0, 1], "off, to see it go, then host"
        client.storage.flash(image)
    assert [value for request, value in board.requests if request == 2][2:] == [1, 2], "it was shown once"
    assert stick.backing.read_bytes()[: 5 * MIB] == image.read_bytes()


def test_storage_that_does_not_come_is_given_back_and_the_first_failure_is_told(
    board: Board, stick: Slot, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    board._on_storage = None
    with serve(driver(stick, storage_timeout=0.3)) as client:
        with pytest.raises(Exception, match="is a card or stick in it"):
            client.storage.flash(image)
        assert board.storage == "dut"


def test_a_file_is_no_storage(board: Board, stick: Slot, tmp_path: Path) -> None:
    """The node below /dev/disk/by-id is missing while the stick is away: an image must not be written into a file."""
    plain = tmp_path / "by-id"
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    with serve(driver(stick, storage_device=str(plain), storage_timeout=0.3)) as client:
        with pytest.raises(Exception, match="not there"):
            client.storage.flash(image)
    assert not plain.exists()


def test_refused_requests_and_other_firmware_are_errors(
    bridge: Bridge, bus: Bus, stick: Slot, monkeypatch: Any
) -> None:
    board = Board("dl-1")
    bus.plug(board.usb)
    monkeypatch.setattr(board, "reading", lambda key: b"out of order")
    with serve(DutlinkPower(serial="dl-1")) as power, pytest.raises(DriverError, match="out of order"):
        next(power.read())
    from usbip import Stall

    def refuse(side: str) -> None:
        raise Stall

    monkeypatch.setattr(board, "switch_storage", refuse)
    with serve(driver(stick)) as client:
        with pytest.raises(DriverError, match='"dl-1": refused to switch the storage to dut'):
            client.storage.dut()


def test_two_boards_need_a_serial_number(bridge: Bridge, bus: Bus) -> None:
    for name in ("dl-1", "dl-2"):
        bus.plug(Board(name).usb)
    with serve(DutlinkPower()) as power, pytest.raises(DriverError, match=r"2 devices are a DUTLink \(dl-1, dl-2\)"):
        power.on()


def test_the_fields_of_the_board_reach_its_parts() -> None:
    whole = Dutlink(
        serial="7", timeout_s=5, storage_device="/dev/disk/by-id/x", baudrate=9600, storage_timeout=1,
        storage_leeway=2, storage_fsync_timeout=3, alternate_console="/dev/serial/by-id/none",
    )  # fmt: skip
    storage: Any = whole.children["storage"]
    assert (storage.storage_timeout, storage.storage_leeway, storage.storage_fsync_timeout) == (1, 2, 3)
    assert (storage.serial, storage.timeout_s, whole.children["power"].timeout_s) == ("7", 5, 5)  # type: ignore[attr-defined]
    console: Any = whole.children["console"]
    assert (console.url, console.baudrate) == ("/dev/serial/by-id/none", 9600)
    assert Dutlink(storage_device="/dev/x", baudrate=9600).children["console"].baudrate == 9600  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrong", [{"timeout_s": 0}, {"storage_timeout": -1}, {"baudrate": -1}])
def test_wrong_configuration_is_found_at_construction(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Dutlink(storage_device="/dev/x", **wrong)
