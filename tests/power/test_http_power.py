# SPDX-License-Identifier: Apache-2.0
"""Protects HttpPower: the configured requests, logins that are enforced, and no success that the device denies."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cli_harness import Authority
from fake_http_devices import FakeDevice, FakeShelly1, FakeShelly2, FakeTasmotaHttp

from jumpstarter.common.exceptions import ConfigurationError, DriverError, DriverMethodNotImplemented
from jumpstarter.common.utils import serve
from jumpstarter_driver_http_power.driver import HttpPower
from jumpstarter_driver_power.client import PowerClient
from jumpstarter_driver_power.common import PowerReading


def shelly1(device: FakeDevice, **more: Any) -> HttpPower:
    """What existing configurations for a first generation Shelly look like."""
    return HttpPower(
        **{
            "name": "bench plug",
            "power_on": {"url": f"{device.url}/relay/0?turn=on"},
            "power_off": {"url": f"{device.url}/relay/0?turn=off"},
            **more,
        }
    )


def shelly2(device: FakeDevice, **more: Any) -> HttpPower:
    rpc = "http://{host}/rpc/Switch"
    return HttpPower(
        **{
            "power_on": {"url": f"{rpc}.Set?id={{id}}&on=true", "expect": "was_on"},
            "power_off": {"url": f"{rpc}.Set?id={{id}}&on=false", "expect": "was_on"},
            "power_read": {"url": f"{rpc}.GetStatus?id={{id}}"},
            "power_status": {"url": f"{rpc}.GetStatus?id={{id}}", "path": "output"},
            "variables": {"host": device.address, "id": "1"},
            "auth": {"digest": {"user": "admin", "password": device.password}},
            "settle": 0.3,
            **more,
        }
    )


def test_configuration_of_before_works_without_asking_back() -> None:
    with FakeShelly1(auth="basic").running() as device:
        driver = shelly1(device, auth={"basic": {"user": "admin", "password": device.password}})
        with serve(driver) as client:
            assert isinstance(client, PowerClient)
            client.on()
            assert device.relays[1] and client.status() == "unknown"
            client.off()
            assert not device.relays[1]
            with pytest.raises(DriverMethodNotImplemented, match="power_read is not configured"):
                list(client.read())


def test_switches_reads_back_and_measures_with_digest_login() -> None:
    with FakeShelly2().running() as device, serve(shelly2(device)) as client:
        client.on()
        assert device.relays[2] and client.status() == "on"
        assert list(client.read()) == [PowerReading(voltage=229.5, current=0.2)]
        client.off()
        assert client.status() == "off" and not device.relays[2]


def test_a_stuck_relay_is_an_error() -> None:
    with FakeShelly2().running() as device, serve(shelly2(device)) as client:
        device.stuck = {2}
        with pytest.raises(DriverError, match='told to switch on and still reports "off"'):
            client.on()


def test_a_slow_relay_is_waited_for() -> None:
    with FakeShelly2().running() as device, serve(shelly2(device, settle=5)) as client:
        device.lag = {2: 3}
        client.on()
        assert device.relays[2]


def test_a_wrong_password_is_an_error_that_does_not_show_it() -> None:
    login = {"digest": {"user": "admin", "password": "wr0ng-one"}}
    with FakeShelly2().running() as device, serve(shelly2(device, auth=login)) as client:
        with pytest.raises(DriverError, match="refuses the user or password") as caught:
            client.on()
    assert "wr0ng" not in str(caught.value)


def test_a_page_with_200_that_is_no_success_is_an_error() -> None:
    """Tasmota answers strangers with 200 and a warning."""
    with FakeTasmotaHttp(count=1, auth="query").running() as device:
        url = f"{device.url}/cm?user=admin&password={{password}}&cmnd=Power1%20"
        driver = HttpPower(
            power_on={"url": f"{url}On", "expect": '"POWER1?":"ON"'},
            power_off={"url": f"{url}Off", "expect": '"POWER1?" ?: ?"OFF"'},
            variables={"password": "wrong"},
        )
        with serve(driver) as client, pytest.raises(DriverError, match="does not match"):
            client.on()
        assert not device.relays[1]


def test_secrets_in_the_query_come_from_files_and_are_never_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with FakeTasmotaHttp(count=1, auth="query").running() as device:
        (tmp_path / "password").write_text(device.password + "\n")
        url = f"{device.url}/cm?user=admin&password={{password}}&cmnd=Power1"
        driver = HttpPower(
            power_on={"url": f"{url}%20On"},
            power_off={"url": f"{url}%20Off"},
            power_status={"url": url, "pattern": r'"POWER1?":\s*"(\w+)"'},
            variable_files={"password": str(tmp_path / "password")},
        )
        with serve(driver) as client:
            client.on()
            assert client.status() == "on"
            client.off()
            device.broken = web.Response(status=500)
            with pytest.raises(
                DriverError, match=r"GET http://127\.0\.0\.1:\d+/cm: the device answered HTTP 500"
            ) as caught:
                client.on()
            (tmp_path / "password").unlink()
            with pytest.raises(DriverError, match="variable_files.password_file: .*No such file|variable_files"):
                client.status()
    lines = [record.getMessage() for record in caplog.records if record.name != "aiohttp.access"]  # the fake's own log
    assert "s3cret" not in "\n".join(lines) + str(caught.value) + repr(driver)


def test_a_bad_header_and_a_repr_do_not_show_the_query(caplog: pytest.LogCaptureFixture) -> None:
    """urllib3 warns of such headers with the whole URL."""
    caplog.set_level(logging.DEBUG)

    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nno header at all\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        url = {"url": f"http://127.0.0.1:{listener.getsockname()[1]}/on?pw=s3cret", "method": "POST", "data": "s3cret"}
        driver = HttpPower(power_on=url, power_off=url, variables={"x": "s3cret"}, timeout=3)
        try:
            driver.on()
        finally:
            thread.join(5)
    assert "s3cret" not in caplog.text + repr(driver)


def test_bearer_token_post_data_and_headers() -> None:
    class Recorder(FakeDevice):
        def routes(self) -> list[web.RouteDef]:
            async def put(request: web.Request) -> web.Response:
                self.switch(1, (await request.json())["on"])
                return web.Response(status=202, headers={"X-Lab": request.headers["X-Lab"]})

            async def get(request: web.Request) -> web.Response:
                return web.Response(text="ENERGISED" if self.look(1) else "IDLE")

            return [web.put("/relay", put), web.get("/relay", get)]

    with Recorder(auth="bearer").running() as device:
        put = {"url": f"{device.url}/relay", "method": "put", "headers": {"X-Lab": "{bench}"}, "expect_status": [202]}
        driver = HttpPower(
            power_on={**put, "data": '{"on": true}'},
            power_off={**put, "data": '{"on": false}'},
            power_status={"url": f"{device.url}/relay", "is_on": ["energised"], "is_off": ["idle"]},
            auth={"bearer": {"token": device.password}},
            variables={"bench": "7"},
        )
        with serve(driver) as client:
            client.on()
            assert client.status() == "on"
            client.off()
            assert client.status() == "off"


def test_a_device_that_is_slower_than_the_timeout_is_a_timeout() -> None:
    with FakeShelly1(latency=600).running() as device, serve(shelly1(device, timeout=0.2)) as client:
        start = time.monotonic()
        with pytest.raises(DriverError, match="no answer within 0.2 s") as caught:
            client.on()
        assert caught.value.code == "DEADLINE_EXCEEDED"
        assert time.monotonic() - start < 60


@pytest.mark.parametrize("where", ["header", "body"])
def test_an_answer_that_comes_drop_by_drop_is_a_timeout(where: str) -> None:
    ends = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n"
            connection.sendall(head if where == "header" else head + b"\r\n")
            while not ends.wait(0.05):
                try:
                    connection.sendall(b"X")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            driver = HttpPower(power_on={"url": url}, power_off={"url": url}, timeout=0.3)
            start = time.monotonic()
            with pytest.raises(TimeoutError, match="not complete after 0.3 s"):
                driver.on()
            assert time.monotonic() - start < 30  # all of it would take 50
        finally:
            ends.set()
            thread.join()


def test_a_device_that_is_gone_is_a_connection_error() -> None:
    with FakeShelly1().running() as device:
        pass
    with serve(shelly1(device)) as client:
        with pytest.raises(DriverError, match="Connection refused") as caught:
            client.on()
        assert caught.value.code == "UNAVAILABLE"


def test_https_trusts_only_the_authority_that_is_named(tmp_path: Path) -> None:
    ca, context = own_authority(tmp_path)
    with FakeShelly1().running(tls=context) as device:
        with serve(shelly1(device)) as client, pytest.raises(DriverError, match="certificate verify failed"):
            client.on()
        assert not device.relays[1]
        with serve(shelly1(device, tls_ca=str(ca))) as client:
            client.on()
            assert device.relays[1]


def own_authority(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 from an authority nobody else knows."""
    authority = Authority(folder)
    certificate, key = authority.issue("device")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return authority.ca, context


def test_an_endless_answer_is_cut_off() -> None:
    class Endless(FakeDevice):
        def routes(self) -> list[web.RouteDef]:
            async def flood(request: web.Request) -> web.StreamResponse:
                response = web.StreamResponse()
                await response.prepare(request)
                try:
                    while True:
                        await response.write(bytes(65536))
                except ConnectionError:
                    return response

            return [web.get("/relay/0", flood)]

    with Endless().running() as device, serve(shelly1(device)) as client:
        with pytest.raises(DriverError, match="larger than 1 MiB"):
            client.on()


def test_state_that_is_not_in_the_answer_is_an_error_and_not_off() -> None:
    with FakeShelly1().running() as device:
        status = {"url": f"{device.url}/relay/0", "path": "relays.0.ison"}
        with serve(shelly1(device, power_status=status)) as client:
            with pytest.raises(DriverError, match='no "relays.0.ison" in the answer'):
                client.status()
        status = {"url": f"{device.url}/relay/0", "path": "has_timer", "is_on": ["x"], "is_off": ["y"]}
        with serve(shelly1(device, power_status=status)) as client:
            assert client.status() == "unknown"


@pytest.mark.parametrize(
    ("reading", "says"),
    [
        ({"voltage_path": "nope"}, 'no "nope"'),
        ({"voltage_path": "source"}, "is no number"),
        ({}, "neither voltage nor current"),
    ],
)
def test_a_reading_that_is_not_there_is_an_error_and_not_zero(reading: dict[str, str], says: str) -> None:
    with FakeShelly1().running() as device:
        driver = shelly1(device, power_read={"url": f"{device.url}/relay/0", **reading})
        with serve(driver) as client, pytest.raises(DriverError, match=says):
            list(client.read())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"power_on": {"url": "ftp://x"}}, "power_on.url must be http"),
        ({"power_on": {"url": "http://{host}/"}, "variables": {"host": ""}}, "power_on.url must be http"),
        ({"power_on": {"url": "http://x", "method": "SEND"}}, "power_on.method"),
        ({"power_on": {"url": "http://x", "expect": "("}}, "power_on.expect is no regular expression"),
        ({"power_on": {"url": "http://x", "methd": "GET"}}, "methd"),
        ({"power_status": {"url": "http://x", "path": "a", "pattern": "b"}}, "keep one"),
        ({"power_status": {"url": "http://x", "is_on": [1], "is_off": ["1"]}}, "is in is_on and in is_off"),
        ({"auth": {"basic": {"user": "a"}, "bearer": {"token": "b"}}}, "keep one"),
        ({"auth": {"bearer": {}}}, "is required"),
        ({"auth": {"basic": {"user": "a", "password": "b", "password_file": "c"}}}, "both given"),
        ({"variables": {"a": "b"}, "variable_files": {"a": "b"}}, "in variables and in variable_files"),
        ({"timeout": 0}, "timeout is 0"),
    ],
)
def test_configuration_errors_are_found_at_construction(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        HttpPower(**{"power_on": {"url": "http://x"}, "power_off": {"url": "http://x"}, **config})


def test_a_misspelt_key_in_a_file_is_an_error(tmp_path: Path) -> None:
    from jumpstarter.config.exporter import ExporterConfigV1Alpha1

    path = tmp_path / "exporter.yaml"
    path.write_text(
        "apiVersion: jumpstarter.dev/v1alpha1\nkind: ExporterConfig\nmetadata: {namespace: default, name: x}\n"
        "export:\n  power:\n    type: jumpstarter_driver_http_power.driver.HttpPower\n    config:\n"
        "      power_on: {url: http://x, methd: POST}\n      power_off: {url: http://x}\n"
    )
    with pytest.raises(ConfigurationError, match="methd"):
        ExporterConfigV1Alpha1.load_path(path).instantiate()
