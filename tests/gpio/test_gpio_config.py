# SPDX-License-Identifier: Apache-2.0
"""Protects the configuration of GPIO drivers: mistakes are found without a chip, and nothing is touched."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_driver_gpiod.client import PinState
from jumpstarter_driver_gpiod.driver import DigitalInput, DigitalOutput, PowerSwitch
from jumpstarter_driver_gpiod.line import Line


@pytest.mark.parametrize(
    ("driver", "config", "why"),
    [
        (DigitalOutput, {"drive": "push"}, 'drive is "push", must be one of push_pull'),
        (DigitalOutput, {"bias": "up"}, 'bias is "up", must be one of as_is'),
        (DigitalOutput, {"initial_value": "high"}, "initial_value is 'high'"),
        (DigitalInput, {"line": -1}, "line is -1"),
        (PowerSwitch, {"mode": "loud"}, 'mode is "loud"'),
    ],
)
def test_mistakes_are_found_without_a_chip(driver: Any, config: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        driver(**{"device": "/dev/no-such-chip", "line": 1, **config})


def test_everything_that_0_9_takes_is_taken() -> None:
    for value in ("active", "on", True, "inactive", "off", False, "Active", None):
        DigitalOutput(line=1, initial_value=value)
    for drive in ("push_pull", "open_drain", "open_source", None):
        assert PowerSwitch(line=1, drive=drive).device == "/dev/gpiochip0"
    assert PowerSwitch(line=1, mode="open_drain").drive == "open_drain"
    assert [str(state) for state in PinState] == ["active", "inactive"]


def test_a_chip_that_was_unplugged_is_asked_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        released = False

        def get_value(self, line: int) -> None:
            raise OSError(errno.ENODEV, "No such device")

        def release(self) -> None:
            self.released = True

    line = Line("/dev/gpiochip77", 3, active_low=False, bias=None, drive=None)
    gone = Gone()
    monkeypatch.setattr(line, "_request", gone)
    with pytest.raises(ConnectionError, match="No such device"):
        line.get()
    with pytest.raises(ConnectionError, match="no such GPIO chip"):  # it looks for the chip again
        line.get()
    assert gone.released
