# SPDX-License-Identifier: Apache-2.0
"""Protects the gpiod drivers on a /dev/gpiochip of the Linux kernel, with interrupts, in the guest.

The chip is an emulated CP2112: what the drivers write arrives there, and what it says is what they must read.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cp2112_board import Cp2112
from guest_exporter import GuestExporter, guest_exporter
from guest_machine import Guest
from mcp2221_board import Mcp2221
from usb_bus import Bus
from usb_guest import GuestUsb

from jumpstarter.common.exceptions import DriverError, DriverInvalidArgument
from jumpstarter_driver_gpiod.client import DigitalInputClient, DigitalOutputClient, PinState
from jumpstarter_driver_power.client import PowerClient

# The ports of the guest's virtual USB bus are one for everybody, and its exporter is started once.
pytestmark = pytest.mark.xdist_group("guest-usb")

TYPE = "jumpstarter_driver_gpiod.driver"
ROOT = Path(__file__).resolve().parents[2]

# What a user of Jumpstarter 0.9 writes; run with its packages only.
ORIGINAL = """
from jumpstarter.utils.env import env
with env() as client:
    client.plain.on()
    print(client.plain.read().name)
    client.plain.off()
    print(client.plain.read().name, client.button.read().name)
    client.power.on()
    client.button.wait_for_inactive(5)
    print("waiting", flush=True)
    client.button.wait_for_edge("rising", 20)
    client.button.wait_for_active(5)
    try:
        client.button.wait_for_inactive(0.2)
    except Exception as error:
        print(type(error).__name__)
    client.power.off()
"""
RELAY, PLAIN, DRAIN, LOW, BUTTON, INITIAL, FOREIGN, STUCK = range(8)


@dataclass
class Board:
    """The chip and an exporter whose drivers use its lines."""

    guest: Guest
    chip: Cp2112
    plain_chip: Mcp2221
    device: str
    exporter: GuestExporter
    client: Any


@pytest.fixture(scope="module")
def board(guest: Guest) -> Iterator[Board]:
    bus = Bus()
    usb = GuestUsb(guest, bus)
    chip, plain_chip = Cp2112(guest.name("gpio")), Mcp2221(guest.name("mcp"))
    try:
        guest.modprobe("hid-cp2112", "hid-mcp2221")
        usb.plug(chip.usb)
        usb.plug(plain_chip.usb)
        device = chip.device(guest)

        def line(kind: str, number: int, **more: Any) -> dict[str, Any]:
            return {"type": f"{TYPE}.{kind}", "config": {"device": device, "line": number, **more}}

        export = {
            "power": line("PowerSwitch", RELAY),
            "plain": line("DigitalOutput", PLAIN),
            "drain": line("DigitalOutput", DRAIN, drive="open_drain"),
            "low": line("DigitalOutput", LOW, active_low=True),
            "button": line("DigitalInput", BUTTON),
            "initial": line("DigitalOutput", INITIAL, initial_value="on"),
            "foreign": line("DigitalOutput", FOREIGN),
            "stuck": line("PowerSwitch", STUCK),
            "polled": {"type": f"{TYPE}.DigitalInput", "config": {"device": plain_chip.device(guest), "line": 1}},
            "other": {"type": f"{TYPE}.PowerSwitch", "config": {"device": plain_chip.device(guest), "line": 2}},
            "nowhere": line("DigitalInput", 64),
            "nochip": {"type": f"{TYPE}.DigitalInput", "config": {"device": "/dev/gpiochip99", "line": 0}},
        }
        with guest_exporter(guest, export) as exporter:
            assert chip.writes == [] or all(mask == 1 << INITIAL for _, mask in chip.writes)
            with exporter.client() as client:
                yield Board(guest, chip, plain_chip, device, exporter, client)
    finally:
        usb.unplug_all()
        bus.close()


def test_power_is_what_the_chip_drives_and_what_it_reads(board: Board) -> None:
    power = board.client.power
    assert isinstance(power, PowerClient)
    assert power.status() == "off"
    assert not board.chip.outputs & 1 << RELAY  # asking changed nothing
    power.on()
    board.chip.wait_for(RELAY, True)
    assert power.status() == "on"
    power.cycle(0)
    assert board.chip.writes[-2:] == [(0, 1 << RELAY), (1 << RELAY, 1 << RELAY)]
    power.off()
    board.chip.wait_for(RELAY, False)
    assert power.status() == "off"
    with pytest.raises(NotImplementedError, match="cannot measure"):
        list(power.read())


def test_a_relay_that_does_not_move_is_a_failure(board: Board) -> None:
    board.chip.stuck = 1 << STUCK
    try:
        with pytest.raises(DriverError, match='told to switch on and still reports "off"'):
            board.client.stuck.on()
        assert board.client.stuck.status() == "off"
    finally:
        board.chip.stuck = 0


def test_an_output_is_driven_without_a_wrong_level_first(board: Board) -> None:
    plain = board.client.plain
    assert isinstance(plain, DigitalOutputClient)
    before = len(board.chip.writes)
    plain.on()
    mine = [value for value, mask in board.chip.writes[before:] if mask == 1 << PLAIN]
    assert mine and all(mine)  # never low in between
    assert plain.read() is PinState.ACTIVE
    plain.off()
    assert plain.read() is PinState.INACTIVE


def test_active_low_and_open_drain_reach_the_chip(board: Board) -> None:
    low, drain = board.client.low, board.client.drain
    low.on()
    board.chip.wait_for(LOW, False)
    assert low.status() == "on"
    low.off()
    board.chip.wait_for(LOW, True)
    # An open drain that lets go has the level that others make; ours is no fault then.
    drain.off()
    assert board.chip.outputs & 1 << DRAIN and drain.read() is PinState.INACTIVE
    board.chip.drive(DRAIN, False)
    drain.on()
    assert not board.chip.outputs & 1 << DRAIN or not board.chip.push_pull & 1 << DRAIN
    assert drain.read() is PinState.INACTIVE
    board.chip.drive(DRAIN, True)
    assert drain.read() is PinState.ACTIVE


def test_an_initial_value_is_set_when_the_session_begins_and_only_where_configured(board: Board) -> None:
    board.chip.wait_for(INITIAL, True)
    assert board.chip.outputs & 1 << INITIAL
    assert not board.chip.outputs & 1 << FOREIGN


@contextmanager
def later(action: Callable[[], None], seconds: float = 0.3) -> Iterator[None]:
    """Do something in a moment: while the other thread waits."""
    timer = threading.Timer(seconds, action)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def test_waiting_for_levels_and_edges(board: Board) -> None:
    button, chip = board.client.button, board.chip
    assert isinstance(button, DigitalInputClient)
    chip.drive(BUTTON, False)
    assert button.read() is PinState.INACTIVE
    button.wait_for_inactive(5)  # it is
    with pytest.raises(DriverError, match="not active within 0.3 s") as caught:
        button.wait_for_active(0.3)
    assert caught.value.code == "DEADLINE_EXCEEDED"
    with later(lambda: chip.drive(BUTTON, True)):
        button.wait_for_active(10)
    chip.wait_polled()  # the edge is reported a moment after the level can be read
    with pytest.raises(DriverError, match="not rising edge within 0.3 s"):
        button.wait_for_edge("rising", 0.3)  # it rose before
    with later(lambda: chip.drive(BUTTON, False)):
        button.wait_for_edge("falling", 10)
    with later(lambda: chip.drive(BUTTON, True)):
        button.wait_for_edge("rising", 10)
    with pytest.raises(DriverInvalidArgument, match="must be rising or falling"):
        button.wait_for_edge("both", 1)


def test_a_chip_without_interrupts_is_polled_for_levels_and_refuses_edges(board: Board) -> None:
    button, chip = board.client.polled, board.plain_chip
    chip.drive(1, False)
    with pytest.raises(DriverError, match="not active within 0.3 s"):
        button.wait_for_active(0.3)
    with later(lambda: chip.drive(1, True)):
        button.wait_for_active(10)
    assert button.read() is PinState.ACTIVE
    with pytest.raises(NotImplementedError, match="the chip has no interrupts"):
        button.wait_for_edge("rising", 1)
    power = board.client.other
    power.on()
    assert (chip.outputs[2], chip.levels[2], power.status()) == (True, True, "on")
    power.off()
    assert (chip.levels[2], power.status()) == (False, "off")


def test_waiting_holds_up_nobody(board: Board) -> None:
    board.chip.drive(BUTTON, False)
    waiting = threading.Thread(target=lambda: board.client.button.wait_for_active(30))
    waiting.start()
    began = time.monotonic()
    while time.monotonic() - began < 0.5:
        board.client.power.status()
        board.client.button.read()
    board.chip.drive(BUTTON, True)
    waiting.join(10)
    assert not waiting.is_alive()


def test_what_cannot_be_had_is_told_and_who_has_it(board: Board) -> None:
    for name, why in {
        "nowhere": "line 64: .*there is no such line",
        "nochip": "gpiochip99 line 0: .*there is no such GPIO chip",
    }.items():
        with pytest.raises(DriverError, match=why) as caught:
            board.client.children[name].read()
        assert caught.value.code == "UNAVAILABLE"
    hold = (
        "import gpiod, sys; from gpiod.line import Direction\n"
        f"r = gpiod.request_lines({board.device!r}, consumer='someone else',"
        f" config={{{FOREIGN}: gpiod.LineSettings(direction=Direction.INPUT)}})\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    with board.guest.start([sys.executable, "-c", hold]) as holder:
        holder.wait_for("held", 20)
        with pytest.raises(DriverError, match="it is in use by 'someone else'"):
            board.client.foreign.on()
    board.client.foreign.on()
    board.chip.wait_for(FOREIGN, True)


def test_commands(board: Board) -> None:
    run = CliRunner()
    board.chip.drive(BUTTON, True)
    output, button = board.client.plain.cli(), board.client.button.cli()
    assert run.invoke(output, ["on"], catch_exceptions=False).exit_code == 0
    assert run.invoke(output, ["read"], catch_exceptions=False).output == "active\n"
    assert run.invoke(output, ["cycle", "-w", "0"], catch_exceptions=False).exit_code == 0
    assert run.invoke(output, ["off"], catch_exceptions=False).exit_code == 0
    assert run.invoke(button, ["read"], catch_exceptions=False).output == "active\n"
    assert run.invoke(button, ["wait-for-active", "-t", "5"], catch_exceptions=False).exit_code == 0
    assert run.invoke(button, ["wait-for-edge", "sideways"]).exit_code == 2
    j = Path(sys.executable).with_name("j")
    told = subprocess.run(
        [j, "power", "status"],
        env={**os.environ, **board.exporter.environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.stdout == "off\n", told.stderr


@pytest.fixture(scope="module")
def original() -> Path:
    """Interpreter of an environment with the real Jumpstarter 0.9."""
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        from original import original_python
    finally:
        sys.path.remove(str(ROOT / "bench"))
    python = original_python()
    assert python is not None, "jumpstarter 0.9.0 could not be installed from PyPI"
    return python


# The other direction has no test: an exporter of 0.9 needs more than a minute to start in the guest.
def test_a_client_of_the_original_uses_our_lines(original: Path, board: Board) -> None:
    board.chip.drive(BUTTON, False)
    env = {**os.environ, **board.exporter.environment, "TERM": "dumb"}
    with subprocess.Popen(
        [original, "-c", ORIGINAL], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as user:
        try:
            assert user.stdout is not None and user.stderr is not None
            lines = [user.stdout.readline() for _ in range(3)]
            assert lines == ["ACTIVE\n", "INACTIVE INACTIVE\n", "waiting\n"], user.stderr.read()
            board.chip.wait_for(RELAY, True)
            with later(lambda: board.chip.drive(BUTTON, True), 0.5):
                out, err = user.communicate(timeout=60)
            assert (user.returncode, out) == (0, "DriverError\n"), err
        finally:
            user.kill()
    board.chip.wait_for(RELAY, False)
