# SPDX-License-Identifier: Apache-2.0
"""Protects the power interface: state that can be asked, readings as a stream, cycles on the exporter."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass, field

import pytest
from click.testing import CliRunner

from jumpstarter.common.exceptions import DriverError, DriverInvalidArgument, DriverMethodNotImplemented
from jumpstarter.common.utils import serve
from jumpstarter.driver import Driver, export
from jumpstarter_driver_power.client import PowerClient, VirtualPowerClient
from jumpstarter_driver_power.common import PowerReading
from jumpstarter_driver_power.driver import MockPower, PowerInterface, SyncMockPower, VirtualPowerInterface


@dataclass(kw_only=True)
class RecordingPower(PowerInterface, Driver):
    """Remembers when it was switched; reads once, as a plain call (what some drivers of others do)."""

    switches: list[tuple[str, float]] = field(default_factory=list)

    @export
    def on(self) -> None:
        self.switches.append(("on", time.monotonic()))

    @export
    def off(self) -> None:
        self.switches.append(("off", time.monotonic()))

    @export
    def read(self) -> PowerReading:
        return PowerReading(voltage=12.0, current=0.5)


@dataclass(kw_only=True)
class BlindPower(PowerInterface, Driver):
    """Cannot measure."""

    @export
    async def on(self) -> None:
        pass

    @export
    async def off(self) -> None:
        pass

    @export
    def read(self) -> Generator[PowerReading, None, None]:
        raise NotImplementedError("this relay has no meter")
        yield


@dataclass(kw_only=True)
class VirtualPower(VirtualPowerInterface, Driver):
    destroyed: list[bool] = field(default_factory=list)

    @export
    async def on(self) -> None:
        pass

    @export
    async def off(self, destroy: bool = False) -> None:
        self.destroyed.append(destroy)

    @export
    async def read(self):
        yield PowerReading(voltage=1, current=1)


@pytest.mark.parametrize("driver_class", [MockPower, SyncMockPower])
def test_switching_is_seen_in_status(driver_class: type[MockPower]) -> None:
    with serve(driver_class()) as client:
        assert isinstance(client, PowerClient)
        assert client.status() == "off"
        client.on()
        assert client.status() == "on"
        client.off()
        assert client.status() == "off"


@pytest.mark.parametrize("driver_class", [MockPower, SyncMockPower])
def test_readings_come_as_objects_with_their_product(driver_class: type[MockPower]) -> None:
    with serve(driver_class()) as client:
        readings = list(client.read())
    assert readings == [PowerReading(voltage=0.0, current=0.0), PowerReading(voltage=5.0, current=2.0)]
    assert readings[1].apparent_power == 10.0


def test_status_and_read_are_read_only_and_switching_is_not() -> None:
    from jumpstarter.driver.decorators import mark_of

    for name, readonly in {"status": True, "read": True, "on": False, "off": False, "cycle": False}.items():
        mark = mark_of(getattr(MockPower, name))
        assert mark is not None and mark.readonly is readonly, name


def test_cycle_runs_on_the_exporter_and_stays_off_for_the_time() -> None:
    driver = RecordingPower()
    with serve(driver) as client:
        assert client.has_method("cycle")
        client.cycle(0.2)
        (first, off_at), (second, on_at) = driver.switches
    assert (first, second) == ("off", "on")
    assert on_at - off_at >= 0.2


def test_cycle_is_done_from_the_client_when_the_exporter_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = RecordingPower()
    with serve(driver) as client:
        monkeypatch.setattr(type(client), "has_method", lambda self, name: False)
        client.cycle(0.05)
        assert client.status() == "unknown"
    # The session's end adds an "off": the device is given back switched off.
    assert [name for name, _ in driver.switches][:2] == ["off", "on"]


def test_cycle_refuses_a_negative_pause_before_switching() -> None:
    driver = RecordingPower()
    with serve(driver) as client, pytest.raises(DriverInvalidArgument, match="wait is -1"):
        client.cycle(-1)
    assert driver.switches == []


def test_read_accepts_drivers_that_answer_with_one_value() -> None:
    with serve(RecordingPower()) as client:
        assert list(client.read()) == [PowerReading(voltage=12, current=0.5)]


def test_a_driver_that_cannot_measure_says_so() -> None:
    with serve(BlindPower()) as client, pytest.raises(DriverMethodNotImplemented, match="no meter"):
        list(client.read())


def test_status_of_hardware_that_cannot_tell_is_unknown() -> None:
    with serve(BlindPower()) as client:
        client.on()
        assert client.status() == "unknown"


def test_monitor_asks_again_when_the_readings_end() -> None:
    with serve(MockPower()) as client:
        assert [r.voltage for r in client.monitor(5, 0)] == [0, 5, 0, 5, 0]


def test_monitor_of_a_driver_that_gives_nothing_ends_with_an_error() -> None:
    @dataclass(kw_only=True)
    class Silent(MockPower):
        @export
        def read(self) -> Generator[PowerReading, None, None]:
            yield from ()

    with serve(Silent()) as client, pytest.raises(DriverError, match="gave no power reading"):
        list(client.monitor(1, 0))


def test_virtual_power_can_be_destroyed() -> None:
    driver = VirtualPower()
    with serve(driver) as client:
        assert isinstance(client, VirtualPowerClient)
        client.off()
        client.off(destroy=True)
        assert driver.destroyed == [False, True]
        CliRunner().invoke(client.cli(), ["off", "--destroy"], catch_exceptions=False)
        assert driver.destroyed == [False, True, True]


def test_rescue_of_a_driver_without_one_is_refused() -> None:
    with serve(MockPower()) as client, pytest.raises(DriverMethodNotImplemented, match="rescue"):
        client.rescue()


def test_commands() -> None:
    driver = MockPower()
    with serve(driver) as client:
        run = CliRunner()
        assert run.invoke(client.cli(), ["on"], catch_exceptions=False).exit_code == 0
        assert run.invoke(client.cli(), ["status"], catch_exceptions=False).output == "on\n"
        assert run.invoke(client.cli(), ["cycle", "-w", "0"], catch_exceptions=False).exit_code == 0
        out = run.invoke(client.cli(), ["read", "--count", "2", "--interval", "0"], catch_exceptions=False).output
        assert out == "0 V, 0 A, 0 VA\n5 V, 2 A, 10 VA\n"
        assert run.invoke(client.cli(), ["off"], catch_exceptions=False).exit_code == 0
        assert client.status() == "off"
        assert run.invoke(client.cli(), ["read", "-n", "0"]).exit_code == 2


def test_help_texts_of_the_configuration_are_shown() -> None:
    with serve(MockPower(description="Main supply", methods_description={"on": "Give it 12 V"})) as client:
        text = CliRunner().invoke(client.cli(), ["--help"]).output
    assert "Main supply" in text and "Give it 12 V" in text


def test_what_was_switched_on_is_off_after_the_session() -> None:
    driver = MockPower()
    with serve(driver) as client:
        client.cycle(0)
        assert client.status() == "on"
    assert driver.status() == "off"
