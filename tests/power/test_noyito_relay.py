# SPDX-License-Identifier: Apache-2.0
"""Protects the NOYITO relay drivers: frames, answers that come in pieces, and boards that do not do what they say."""

from __future__ import annotations

import os
import threading
import time
import tty
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from jumpstarter.common.exceptions import ConfigurationError, DriverError, DriverMethodNotImplemented
from jumpstarter.common.utils import serve
from jumpstarter_driver_composite.driver import Composite
from jumpstarter_driver_noyito_relay.client import NoyitoPowerClient
from jumpstarter_driver_noyito_relay.driver import NoyitoPowerHID, NoyitoPowerSerial


class FakeSerialBoard:
    """Fake two-channel board on a pseudo terminal: keeps its relays, checks sums, speaks a few bytes at a time."""

    def __init__(self) -> None:
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        self.port = os.ttyname(self._slave)
        self.relays = {1: False, 2: False}
        self.stuck: set[int] = set()
        self.silent = False
        self.frames: list[bytes] = []
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        held = b""
        while not self._ends.is_set():
            try:
                held += os.read(self._master, 64)
            except OSError:
                return
            while held:
                if held[0] == 0xFF:
                    held = held[1:]
                    self._tell()
                elif held[0] == 0xA0:
                    if len(held) < 4:
                        break
                    frame, held = held[:4], held[4:]
                    self._obey(frame)
                else:
                    held = held[1:]

    def _obey(self, frame: bytes) -> None:
        self.frames.append(frame)
        if sum(frame[:3]) & 0xFF == frame[3] and frame[1] in self.relays and frame[1] not in self.stuck:
            self.relays[frame[1]] = frame[2] == 1

    def _tell(self) -> None:
        if self.silent:
            return
        text = "".join(f"CH{n}: {'ON ' if on else 'OFF'}\r\n" for n, on in self.relays.items()).encode()
        for start in range(0, len(text), 3):
            os.write(self._master, text[start : start + 3])
            time.sleep(0.002)  # the pace of 9600 baud

    def close(self) -> None:
        self._ends.set()
        if self._slave >= 0:
            os.write(self._slave, b"\x00")  # wakes the reader
            os.close(self._slave)
            self._slave = -1
        self._thread.join(5)
        os.close(self._master)


@pytest.fixture
def board() -> Iterator[FakeSerialBoard]:
    made = FakeSerialBoard()
    yield made
    made.close()


def relay(board: FakeSerialBoard, **config: Any) -> NoyitoPowerSerial:
    return NoyitoPowerSerial(port=board.port, **{"settle": 0.2, **config})


def test_switches_one_channel_and_reads_it_back(board: FakeSerialBoard) -> None:
    with serve(relay(board, channel=2)) as client:
        assert isinstance(client, NoyitoPowerClient)
        client.on()
        assert board.relays == {1: False, 2: True} and client.status() == "on"
        client.off()
        assert board.relays == {1: False, 2: False} and client.status() == "off"
        assert board.frames[:2] == [bytes.fromhex("a00201a3"), bytes.fromhex("a00200a2")]
        with pytest.raises(DriverMethodNotImplemented, match="cannot measure"):
            list(client.read())


def test_all_channels_together_and_partial(board: FakeSerialBoard) -> None:
    with serve(relay(board, all_channels=True)) as client:
        client.on()
        assert board.relays == {1: True, 2: True} and client.status() == "on"
        board.relays[2] = False
        assert client.status() == "partial"


def test_a_stuck_relay_is_an_error(board: FakeSerialBoard) -> None:
    board.stuck = {1}
    with serve(relay(board)) as client, pytest.raises(DriverError, match='channel 1 of .* still reports "off"'):
        client.on()


def test_one_of_all_channels_stuck_is_an_error(board: FakeSerialBoard) -> None:
    board.stuck = {2}
    with serve(relay(board, all_channels=True)) as client, pytest.raises(DriverError, match='still reports "partial"'):
        client.on()


def test_a_board_that_says_nothing_is_a_timeout(board: FakeSerialBoard) -> None:
    board.silent = True
    with serve(relay(board, timeout=0.2, settle=0)) as client:
        with pytest.raises(DriverError, match="no answer within 0.2 s") as caught:
            client.on()
        assert caught.value.code == "DEADLINE_EXCEEDED"


def test_a_board_that_is_not_there_is_named() -> None:
    with serve(NoyitoPowerSerial(port="/dev/no-such-relay")) as client:
        with pytest.raises(DriverError, match="/dev/no-such-relay") as caught:
            client.on()
        assert caught.value.code == "UNAVAILABLE"


def test_a_board_that_is_unplugged_in_the_middle_is_a_connection_error() -> None:
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    driver = NoyitoPowerSerial(port=os.ttyname(theirs), timeout=2)

    def unplug() -> None:
        os.read(ours, 1)
        os.close(ours)

    thread = threading.Thread(target=unplug)
    thread.start()
    try:
        with pytest.raises(ConnectionError, match="channel 1 of the relay board at .*unplugged"):
            driver.state()
    finally:
        thread.join(5)
        os.close(theirs)


def test_drivers_of_both_channels_share_the_board(board: FakeSerialBoard) -> None:
    drivers = {f"ch{n}": relay(board, channel=n, settle=3) for n in (1, 2)}
    with serve(Composite(children=dict(drivers))) as client, ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            list(pool.map(lambda name: getattr(client, name).on(), drivers))
            assert board.relays == {1: True, 2: True}
            list(pool.map(lambda name: getattr(client, name).off(), drivers))
            assert board.relays == {1: False, 2: False}


def test_a_port_that_another_process_holds_is_waited_for_and_then_an_error(board: FakeSerialBoard) -> None:
    import fcntl

    with open(board.port, "rb+", buffering=0) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with serve(relay(board, timeout=0.2)) as client:
            with pytest.raises(DriverError, match="is used by another process"):
                client.on()
            fcntl.flock(other, fcntl.LOCK_UN)
            client.on()
            assert board.relays[1]


@pytest.mark.parametrize(
    ("driver", "config", "says"),
    [
        (NoyitoPowerSerial, {"port": "x", "channel": 3}, "channel is 3, must be 1 or 2"),
        (NoyitoPowerSerial, {"port": "x", "timeout": 0}, "timeout is 0"),
        (NoyitoPowerHID, {"num_channels": 6}, "num_channels is 6"),
        (NoyitoPowerHID, {"num_channels": 4, "channel": 5}, "must be 1 to 4"),
    ],
)
def test_configuration_errors_are_found_at_construction(driver: Any, config: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        driver(**config)
