# SPDX-License-Identifier: Apache-2.0
"""Protects EnerGenie: HTTP 200 is no success, a session is always given back, and only one is asked for at a time."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fake_http_devices import FakeEnerGenie

from jumpstarter.common.exceptions import ConfigurationError, DriverError, DriverMethodNotImplemented
from jumpstarter.common.utils import serve
from jumpstarter_driver_composite.driver import Composite
from jumpstarter_driver_energenie.driver import EnerGenie
from jumpstarter_driver_power.client import PowerClient


def socket(device: FakeEnerGenie, slot: int = 1, **more: Any) -> EnerGenie:
    return EnerGenie(host=device.address, slot=slot, **{"settle": 0.3, **more})


def test_switches_reads_back_and_logs_out() -> None:
    with FakeEnerGenie().running() as device, serve(socket(device, 3)) as client:
        assert isinstance(client, PowerClient)
        client.on()
        assert device.relays == {1: False, 2: False, 3: True, 4: False}
        assert client.status() == "on"
        client.off()
        assert client.status() == "off"
        assert device.holder is None and device.logins == device.logouts > 0
        with pytest.raises(DriverMethodNotImplemented, match="cannot measure"):
            list(client.read())


def test_a_wrong_password_is_an_error_although_the_device_says_200(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with FakeEnerGenie().running() as device, serve(socket(device, password="wr0ng")) as client:
        with pytest.raises(DriverError, match="refuses the password") as caught:
            client.on()
        assert not device.relays[1]
    assert "wr0ng" not in str(caught.value) + caplog.text


def test_the_password_may_be_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("other\n")
    with FakeEnerGenie().running() as device:
        device.password = "other"
        with serve(socket(device, password_file=str(tmp_path / "password"))) as client:
            client.on()
            assert device.relays[1]


def test_a_stuck_relay_is_an_error_and_the_session_is_given_back() -> None:
    with FakeEnerGenie().running() as device, serve(socket(device, 2)) as client:
        device.stuck = {2}
        with pytest.raises(DriverError, match='socket 2 of .* still reports "off"'):
            client.on()
        assert device.holder is None


def test_a_session_of_somebody_else_is_waited_for() -> None:
    with FakeEnerGenie().running() as device, serve(socket(device, timeout=5)) as client:
        device.holder = "10.0.0.9"
        asked = threading.Event()
        routes = device.requests

        def leave() -> None:
            while not routes:
                asked.wait(0.02)
            device.holder = None

        leaver = threading.Thread(target=leave)
        leaver.start()
        client.on()
        leaver.join()
        assert device.relays[1] and device.holder is None


def test_a_session_that_somebody_else_keeps_is_a_timeout_with_a_way_out() -> None:
    with FakeEnerGenie().running() as device, serve(socket(device, timeout=0.4)) as client:
        device.holder = "10.0.0.9"
        with pytest.raises(DriverError, match="takes one session; log out in the browser") as caught:
            client.on()
        assert caught.value.code == "DEADLINE_EXCEEDED"
        assert device.holder == "10.0.0.9"


def test_the_sockets_of_one_strip_take_turns() -> None:
    with FakeEnerGenie(latency=0.005).running() as device:
        drivers = {f"s{n}": socket(device, n) for n in range(1, 5)}
        with serve(Composite(children=dict(drivers))) as client, ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda name: getattr(client, name).on(), drivers))
            assert all(device.relays.values())
        assert device.holder is None and device.logins == device.logouts


def test_a_strip_that_is_gone_is_an_error() -> None:
    with FakeEnerGenie().running() as device:
        pass
    with serve(socket(device)) as client, pytest.raises(DriverError, match="Connection refused"):
        client.on()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"host": None}, "host is required"),
        ({"slot": 0}, "slot is 0"),
        ({"slot": 5}, "slot is 5"),
        ({"host": "a b:c"}, "host must be"),
        ({"password": "a", "password_file": "b"}, "both given"),
        ({"timeout": -1}, "timeout is -1"),
    ],
)
def test_configuration_errors_are_found_at_construction(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        EnerGenie(**{"host": "strip.example", **config})
