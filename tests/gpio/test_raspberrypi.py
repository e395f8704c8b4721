# SPDX-License-Identifier: Apache-2.0
"""Protects the gpiozero drivers on gpiozero's own mock pins: a fake of the hardware, the library is the real one."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import gpiozero
import pytest
from click.testing import CliRunner
from gpiozero.pins.mock import MockFactory

from jumpstarter.common.exceptions import DriverError
from jumpstarter.common.utils import serve
from jumpstarter_driver_gpiod.client import PinState
from jumpstarter_driver_raspberrypi.driver import DigitalInput, DigitalOutput


@pytest.fixture
def pins() -> Iterator[MockFactory]:
    before = gpiozero.Device.pin_factory
    factory = MockFactory()
    gpiozero.Device.pin_factory = factory
    try:
        yield factory
    finally:
        factory.reset()
        gpiozero.Device.pin_factory = before


def test_an_output_is_only_read_until_it_is_used(pins: MockFactory) -> None:
    driver = DigitalOutput(pin="GPIO17")
    assert not pins.pins  # constructing touches nothing
    with serve(driver) as output:
        pin = pins.pin(17)
        pin.drive_high()
        assert (output.read(), output.status(), pin.function) == (PinState.ACTIVE, "on", "input")
        pin.drive_low()
        pin.clear_states()
        output.on()
        output.off()
        output.on()
        assert pin.function == "output"
        assert [state.state for state in pin.states] == [False, True, False, True]
        output.cycle(0)
        assert output.read() is PinState.ACTIVE
        run = CliRunner()
        assert run.invoke(output.cli(), ["off"], catch_exceptions=False).exit_code == 0
        assert run.invoke(output.cli(), ["read"], catch_exceptions=False).output == "inactive\n"
    assert pin.function == "input"  # given back


def test_active_low_pins(pins: MockFactory) -> None:
    with serve(DigitalOutput(pin=4, active_high=False)) as output:
        output.on()
        assert pins.pin(4).state == 0
        assert output.status() == "on"


def test_an_output_that_does_not_follow_is_a_failure(pins: MockFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(DigitalOutput(pin=4)) as output:
        output.off()
        monkeypatch.setattr(type(pins.pin(4)), "_set_state", lambda self, value: None)
        with pytest.raises(DriverError, match='told to switch on and still reports "off"'):
            output.on()


def test_inputs_wait_for_levels(pins: MockFactory) -> None:
    with serve(DigitalInput(pin=5)) as button:
        pin = pins.pin(5)
        pin.drive_low()
        assert button.read() is PinState.INACTIVE
        button.wait_for_inactive(1)
        with pytest.raises(DriverError, match="pin 5: not active within 0.2 s") as caught:
            button.wait_for_active(0.2)
        assert caught.value.code == "DEADLINE_EXCEEDED"
        timer = threading.Timer(0.3, pin.drive_high)
        timer.start()
        button.wait_for_active(10)
        timer.join()
        run = CliRunner()
        assert run.invoke(button.cli(), ["read"], catch_exceptions=False).output == "active\n"
        assert run.invoke(button.cli(), ["wait-for-active", "-t", "1"], catch_exceptions=False).exit_code == 0
        assert "wait-for-edge" not in run.invoke(button.cli(), ["--help"]).output


def test_a_pin_that_is_in_use_or_does_not_exist_is_told(pins: MockFactory) -> None:
    with (
        serve(DigitalInput(pin=6)) as first,
        serve(DigitalOutput(pin=6)) as second,
        serve(DigitalInput(pin=99)) as none,
    ):
        first.read()
        with pytest.raises(DriverError, match="pin 6: .*in use") as caught:
            second.on()
        assert caught.value.code == "UNAVAILABLE"
        with pytest.raises(DriverError, match="pin 99: "):
            none.read()
