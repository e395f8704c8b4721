# SPDX-License-Identifier: Apache-2.0
"""Protects the HTTP and TCP models of Pdu, each against a fake of its device that enforces the login."""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_http_devices as web_fakes
import pytest
from aiohttp import web
from fake_http_devices import FakeDevice, FakeEnerGenie, FakeNetio, FakeShelly2, FakeTasmotaHttp, FakeUbus
from fake_tcp_devices import FakeEth008, FakeKasa, FakeSiglent, FakeTcpDevice

from jumpstarter.common.exceptions import ConfigurationError, DriverError, DriverMethodNotImplemented
from jumpstarter.common.utils import serve
from jumpstarter_driver_pdu.driver import MODELS, Pdu
from jumpstarter_driver_pdu.tcp_models import tplink_cipher, tplink_plain
from jumpstarter_driver_power.common import PowerReading
from jumpstarter_driver_power.switched import PowerError

LOGIN = {"user": "admin", "password": FakeDevice.password}
#: model: the fake, the outlet as configured, the fake's relay, what the configuration says besides.
WEB: dict[str, tuple[Callable[[], FakeDevice], int, int, dict[str, Any]]] = {
    "digital-loggers": (web_fakes.FakeDliRest, 8, 8, LOGIN),
    "digital-loggers-web": (web_fakes.FakeDliWeb, 7, 7, LOGIN),
    "energenie": (FakeEnerGenie, 2, 2, {"password": "1"}),
    "gude": (lambda: web_fakes.FakeGude(count=8, auth="basic"), 3, 3, LOGIN),
    "gude-statusjsn": (lambda: web_fakes.FakeGude(count=24), 24, 24, {}),
    "netio": (FakeNetio, 4, 4, LOGIN),
    "shelly-gen1": (lambda: web_fakes.FakeShelly1(count=4, auth="basic"), 0, 1, LOGIN),
    "shelly-gen2": (FakeShelly2, 3, 4, {"password": FakeDevice.password}),
    "tasmota": (lambda: FakeTasmotaHttp(count=4, auth="query"), 4, 4, LOGIN),
    "tinycontrol-6g10a": (web_fakes.FakeTinycontrol, 6, 6, LOGIN),
    "tinycontrol-tcpdu": (web_fakes.FakeTinycontrol, 1, 1, LOGIN),
    "ubus-poe": (FakeUbus, 5, 5, {"password": FakeDevice.password}),
}
TCP: dict[str, tuple[Callable[[], FakeTcpDevice], int, int, dict[str, Any]]] = {
    "devantech-eth": (lambda: FakeEth008(20, "apple"), 20, 20, {"password": "apple"}),
    "siglent-spd3000": (FakeSiglent, 2, 2, {}),
    "tplink": (lambda: FakeKasa(3), 3, 3, {}),
}
ALL = {**WEB, **TCP}


def pdu(name: str, device: Any, **more: Any) -> Pdu:
    _, outlet, _, config = ALL[name]
    return Pdu(
        **{"model": name, "host": "127.0.0.1", "port": device.port, "outlet": outlet, "settle": 0.1, **config, **more}
    )


def test_every_web_and_tcp_model_is_tested() -> None:
    assert set(WEB) == {name for name, model in MODELS.items() if model.kind == "http"}
    assert set(TCP) == {name for name, model in MODELS.items() if model.kind == "tcp"}


@pytest.mark.parametrize("name", ALL)
def test_model_switches_one_relay_and_reads_it_back(name: str) -> None:
    make, _, relay, _ = ALL[name]
    with make().running() as device, serve(pdu(name, device)) as client:
        client.on()
        assert [n for n, on in device.relays.items() if on] == [relay]
        assert client.status() == "on"
        client.off()
        assert not any(device.relays.values())
        assert client.status() == "off"


@pytest.mark.parametrize("name", ALL)
def test_a_stuck_relay_of_any_model_is_an_error(name: str) -> None:
    make, _, relay, _ = ALL[name]
    with make().running() as device, serve(pdu(name, device)) as client:
        device.stuck = {relay}
        with pytest.raises(DriverError, match=rf'{re.escape(name)}\): was told to switch on and still reports "off"'):
            client.on()


@pytest.mark.parametrize("name", [name for name, row in ALL.items() if row[3]])
def test_a_wrong_password_of_any_model_is_an_error_that_does_not_show_it(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    make, _, _, _ = ALL[name]
    with make().running() as device, serve(pdu(name, device, password="wr0ng")) as client:
        with pytest.raises(DriverError, match="refuses the (user or )?password|does not let us call") as caught:
            client.on()
        assert not any(device.relays.values())
    lines = [record.getMessage() for record in caplog.records if record.name != "aiohttp.access"]  # the fake's own log
    assert "wr0ng" not in str(caught.value) + "\n".join(lines)


@pytest.mark.parametrize(
    ("name", "outlet"), [("gude", 9), ("netio", 8), ("shelly-gen2", 7), ("tasmota", 8), ("digital-loggers", 9)]
)
def test_an_outlet_the_device_does_not_have_is_an_error(name: str, outlet: int) -> None:
    make, _, _, _ = WEB[name]
    with make().running() as device, serve(pdu(name, device, outlet=outlet)) as client:
        with pytest.raises(DriverError, match="answer|HTTP|no output|no relay"):
            client.on()
        assert not any(device.relays.values())


def test_password_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text(FakeDevice.password + "\n")
    with FakeShelly2().running() as device:
        driver = pdu("shelly-gen2", device, password=None, password_file=str(tmp_path / "password"))
        with serve(driver) as client:
            client.on()
            assert device.relays[4]


def test_meters() -> None:
    with FakeShelly2().running() as device, serve(pdu("shelly-gen2", device)) as client:
        assert list(client.read()) == [PowerReading(voltage=229.5, current=0.2)]
    with FakeNetio().running() as device, serve(pdu("netio", device)) as client:
        assert list(client.read()) == [PowerReading(voltage=230.1, current=1.5)]
    with FakeTasmotaHttp(count=4, auth="query").running() as device, serve(pdu("tasmota", device)) as client:
        assert list(client.read()) == [PowerReading(voltage=231, current=0.5)]
    with FakeKasa(3).running() as device, serve(pdu("tplink", device)) as client:
        assert list(client.read()) == [PowerReading(voltage=230.5, current=0.12)]
    with FakeSiglent().running() as device, serve(pdu("siglent-spd3000", device)) as client:
        client.on()
        assert list(client.read()) == [PowerReading(voltage=12.001, current=0.25)]
    with web_fakes.FakeGude(auth="basic").running() as device, serve(pdu("gude", device)) as client:
        with pytest.raises(DriverMethodNotImplemented, match="cannot measure"):
            list(client.read())


def test_a_plug_of_tp_link_has_the_outlet_0_and_no_other() -> None:
    with FakeKasa(0).running() as device:
        with serve(pdu("tplink", device, outlet=0)) as client:
            client.on()
            assert device.relays == {1: True} and client.status() == "on"
        with (
            serve(pdu("tplink", device, outlet=1)) as client,
            pytest.raises(DriverError, match="its relay is outlet 0"),
        ):
            client.on()


def test_tp_link_cipher_is_the_published_one() -> None:
    plain = b'{"system":{"set_relay_state":{"state":0}}}'
    published = bytes.fromhex("d0f281f88bff9af7d5ef94b6c5a0d48bf99cf091e8b7c4b0d1a5c0e2d8a381f286e793f6d4eedea3dea3")
    assert tplink_cipher(plain) == published
    assert tplink_plain(published) == plain


@pytest.mark.parametrize("name", TCP)
def test_an_answer_that_breaks_off_is_an_error(name: str) -> None:
    make, _, _, _ = TCP[name]
    with make().running() as device, serve(pdu(name, device, settle=0)) as client:
        device.cut = True
        with pytest.raises(DriverError, match="ended the connection in the middle|refuses") as caught:
            client.status()
        assert caught.value.code in ("UNAVAILABLE", "INTERNAL")


@pytest.mark.parametrize("name", TCP)
def test_a_device_that_says_nothing_is_a_timeout(name: str) -> None:
    make, _, _, _ = TCP[name]
    with make().running() as device, serve(pdu(name, device, settle=0, timeout=0.2)) as client:
        device.silent = True
        start = time.monotonic()
        with pytest.raises(DriverError, match=r"no answer within 0\.2 s") as caught:
            client.status()
        assert caught.value.code == "DEADLINE_EXCEEDED" and time.monotonic() - start < 60


@pytest.mark.parametrize("name", ["netio", "tplink"])
def test_a_device_that_is_gone_is_a_connection_error(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    driver = Pdu(model=name, host="127.0.0.1", port=port, outlet=1, settle=0)
    with serve(driver) as client, pytest.raises(DriverError, match="Connection refused") as caught:
        client.on()
    assert caught.value.code == "UNAVAILABLE"


@pytest.mark.parametrize("answer", ["[]", "7", '{"Outputs": 7}', '{"Outputs": [{"ID": 4, "State": {}}]}', "{"])
def test_an_answer_of_another_form_is_an_error_that_names_the_device(answer: str) -> None:
    with FakeNetio().running() as device:
        device.broken = web.Response(text=answer, content_type="application/json")
        driver = pdu("netio", device, verify=False)
        try:
            state = driver.state()
        except PowerError as error:
            assert "127.0.0.1" in str(error) and "\n" not in str(error)
        else:
            assert state == "unknown"


def test_sessions_of_ubus_are_given_back() -> None:
    device = FakeUbus()
    with device.running(), serve(pdu("ubus-poe", device)) as client:
        client.on()
        client.off()
    assert device.sessions == set()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model": "shelly-gen3"}, 'did you mean "shelly-gen2"'),
        ({"model": "abacus"}, "must be one of apc-easy"),
        ({"host": "http://x"}, "without http://"),
        ({"host": "192.0.2.8:8080"}, "the port has a field of its own"),
        ({"host": "[2001:db8::1]"}, "without http://, "),
        ({"outlet": "seven"}, "outlet is seven"),
        ({"outlet": 9}, "must be 0 to 7"),
        ({"model": "netio", "outlet": 0}, "must be 1 to 8"),
        ({"model": "sentry3", "outlet": "1.2", "community": "c"}, "must be a number or N.N.N"),
        ({"model": "apc-rpdu", "outlet": "1.2", "community": "c"}, "must be a number"),
        ({"model": "apc-rpdu"}, "user is required"),
        ({"model": "apc-rpdu", "community": "c", "tls": True}, "tls is for HTTP models"),
        ({"model": "apc-rpdu", "community": "c", "password": "x"}, "password is for other models"),
        ({"model": "apc-rpdu", "user": "u", "auth_protocol": "ROT13"}, "must be one of NONE, MD5"),
        ({"community": "c"}, "community is for SNMP models; shelly-gen2 speaks HTTP"),
        ({"tls_ca": "x"}, "tls_ca without tls"),
        ({"port": 70000}, "port is 70000"),
        ({"timeout": 0}, "timeout is 0"),
        ({"password": "a", "password_file": "b"}, "both given"),
    ],
)
def test_configuration_errors_are_found_at_construction(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Pdu(**{"model": "shelly-gen2", "host": "pdu.example", "outlet": 1, **config})


def test_the_page_names_every_model_with_its_source() -> None:
    page = (Path(__file__).parents[2] / "docs" / "drivers" / "pdu.md").read_text()
    for name, model in MODELS.items():
        row = next((line for line in page.splitlines() if line.startswith(f"| `{name}` |")), "")
        assert row == f"| `{name}` | {model.title} | {model.kind} | {model.outlets} | {model.source} |"
