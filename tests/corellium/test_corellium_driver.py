# SPDX-License-Identifier: Apache-2.0
"""Protects virtual devices of Corellium, against a fake of its API: life cycle, console, and what the API refuses."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fake_corellium import TOKEN, FakeCorellium

from jumpstarter.common.exceptions import ConfigurationError, DriverError, DriverMethodNotImplemented
from jumpstarter.common.utils import serve
from jumpstarter_driver_corellium.console import ConsolePortFactory
from jumpstarter_driver_corellium.driver import Corellium
from jumpstarter_driver_network.adapters import PexpectAdapter
from jumpstarter_testing import eventually


def driver(**config: Any) -> Corellium:
    return Corellium(**{"project_id": "Default Project", "device_name": "car", "device_flavor": "kronos", **config})


def test_a_device_is_made_switched_and_destroyed(service: FakeCorellium) -> None:
    with serve(driver()) as client:
        assert client.power.status() == "off", "what does not exist is off"
        client.power.on()
        (made,) = service.instances.values()
        assert (made["name"], made["state"], made["project"]) == ("car", "on", "p-1")
        assert made["osbuild"] == "Critical Application Monitor (Baremetal)"
        assert client.power.status() == "on"
        before = len(service.calls)
        client.power.on()
        assert not [call for call in service.calls[before:] if not call.startswith("GET")], "it was on already"
        client.power.off()
        assert client.power.status() == "off"
        client.power.on()
        assert made["state"] == "on" and len(service.instances) == 1, "the same device again"
        client.power.off(destroy=True)
        assert not service.instances
        client.power.off()


def test_devices_are_looked_for_in_the_project(service: FakeCorellium) -> None:
    other = service.add("car", "on", project="p-2")
    with serve(driver(project_id="p-1")) as client:
        client.power.on()
        client.power.off(destroy=True)
    assert list(service.instances.values()) == [other]


def test_the_console_is_kept_while_the_device_is_on(service: FakeCorellium) -> None:
    with serve(driver()) as client:
        for time_on in (1, 2):
            client.power.on()
            eventually(lambda: said(client, b"login: ", time_on))  # noqa: B023  called at once
            for _ in range(2):  # any number may read it
                with PexpectAdapter(client.serial) as console:
                    console.sendline("root")
                    console.expect_exact("root", timeout=10)
            client.power.off()
            eventually(lambda: assert_closed(client))
        events = [event["event"] for event in client.serial.call("log")["events"]]
    assert events == ["open", "lost: disconnected"] * 2


def said(client: Any, text: bytes, times: int) -> None:
    data = client.serial.call("log")["data"]
    assert data.count(text) == times, data


def assert_closed(client: Any) -> None:
    assert not client.serial.call("position")["open"]


def test_who_asks_for_a_console_is_not_told_what_was_true_before(service: FakeCorellium) -> None:
    one = service.add("car", "off")
    with serve(driver()) as client:
        with pytest.raises(DriverError, match='device "car" is off: switch it on'):
            client.serial.call("write", b"root")
        one["state"] = "on"  # by somebody else
        client.serial.call("write", b"root")
        eventually(lambda: said(client, b"root", 1))


def test_a_service_without_a_console_to_offer_is_not_asked_again_and_again(service: FakeCorellium) -> None:
    service.add("car", "off")
    port = driver().console.hub.factory
    assert isinstance(port, ConsolePortFactory)

    async def scenario() -> None:
        for _ in range(3):
            with pytest.raises(OSError, match='"car" is off'):
                await port.open()
        assert service.calls.count("GET /v1/instances") == 1
        port.look_again()
        with pytest.raises(OSError, match='"car" is off'):
            await port.open()
        assert service.calls.count("GET /v1/instances") == 2

    asyncio.run(scenario())


def test_a_consoles_address_is_told_to_nobody(service: FakeCorellium, monkeypatch: pytest.MonkeyPatch) -> None:
    service.add("car", "on")
    monkeypatch.delenv("SSL_CERT_FILE")  # the API is trusted, the console is not
    with serve(driver()) as client, pytest.raises(DriverError, match="(?i)certificate verify failed") as caught:
        client.serial.call("write", b"root")
    assert "ticket" not in str(caught.value)


def test_a_device_that_is_off_has_no_console(service: FakeCorellium) -> None:
    service.add("car", "off")
    with serve(driver()) as client, pytest.raises(DriverError, match='device "car" is off: switch it on'):
        with client.serial.stream() as stream:
            stream.receive()


def test_unknown_names_are_listed(service: FakeCorellium) -> None:
    for config, words in (
        ({"project_id": "Nobody"}, 'no project "Nobody"; it has Default Project, Other'),
        ({"device_flavor": "phone"}, 'no device model "phone"; it has kronos'),
    ):
        with serve(driver(**config)) as client, pytest.raises(DriverError, match=words):
            client.power.on()
    service.add("car", "on")
    with serve(driver(console_name="UART 7")) as client:
        with pytest.raises(DriverError, match='"UART 7"; it has Primary Compute Non-Secure'):
            with client.serial.stream() as stream:
                stream.receive()


def test_refusals_of_the_api_are_told(service: FakeCorellium, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(driver(device_os="9.9")) as client:
        with pytest.raises(DriverError, match=r"400: Unsupported device model or operating system \(field os\)"):
            client.power.on()
    monkeypatch.setenv("CORELLIUM_API_TOKEN", "wrong-hunter3")
    with serve(driver()) as client, pytest.raises(DriverError, match="403: Invalid or missing") as caught:
        client.power.on()
    assert "hunter3" not in str(caught.value)


@pytest.mark.parametrize(
    ("fault", "words", "code"),
    [
        ("stuck", "is creating, and not on, after 0.05 s", "DEADLINE_EXCEEDED"),
        ("error", "state error: out of cores", "INTERNAL"),
        ("hang", "no answer within 0.3 s", "DEADLINE_EXCEEDED"),
        ("broken", "is no JSON", "UNKNOWN"),
        ("redirect", "302", "UNKNOWN"),
    ],
)
def test_nothing_is_waited_for_without_end(service: FakeCorellium, fault: str, words: str, code: str) -> None:
    service.faults.add(fault)
    with serve(driver(api_timeout=0.3)) as client:
        started = time.monotonic()
        with pytest.raises(DriverError, match=words) as caught:
            client.power.on()
        assert time.monotonic() - started < 10
        assert caught.value.code == code
        service.faults.clear()


def test_a_service_that_is_not_there_is_an_error(service: FakeCorellium) -> None:
    with serve(driver(api_host="localhost:9")) as client, pytest.raises(DriverError, match="(?i)refused") as caught:
        client.power.status()
    assert caught.value.code == "UNAVAILABLE"


def test_an_unknown_certificate_is_refused(service: FakeCorellium, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with serve(driver()) as client, pytest.raises(DriverError, match="(?i)certificate verify failed"):
        client.power.status()


def test_a_netrc_does_not_replace_the_token(
    service: FakeCorellium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with serve(driver()) as client:
        assert client.power.status() == "off"


def test_token_is_read_from_its_file_and_shown_nowhere(
    service: FakeCorellium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    path = tmp_path / "token"
    monkeypatch.delenv("CORELLIUM_API_TOKEN")
    for config in ({"api_token_file": str(path)}, {}):
        if not config:
            monkeypatch.setenv("CORELLIUM_API_TOKEN_FILE", str(path))
        made = driver(**config)
        path.write_text(f"{TOKEN}\n")
        with serve(made) as client:
            assert client.power.status() == "off"
        path.unlink()
    assert TOKEN not in repr(driver(api_token=TOKEN, api_token_file=None)) and TOKEN not in caplog.text


def test_virtual_devices_cannot_be_measured(service: FakeCorellium) -> None:
    with serve(driver()) as client, pytest.raises(DriverMethodNotImplemented, match="no power to measure"):
        list(client.power.read())


def test_commands_of_j(service: FakeCorellium) -> None:
    with serve(driver()) as client:
        runner = CliRunner()
        assert runner.invoke(client.cli(), ["power", "on"]).exit_code == 0
        assert runner.invoke(client.cli(), ["power", "status"]).output == "on\n"
        assert runner.invoke(client.cli(), ["power", "off", "--destroy"]).exit_code == 0
        assert not service.instances
        assert "start-console" in runner.invoke(client.cli(), ["serial", "--help"]).output


@pytest.mark.parametrize(
    ("environment", "config", "words"),
    [
        ({"CORELLIUM_API_HOST": None}, {}, 'missing "CORELLIUM_API_HOST"'),
        ({"CORELLIUM_API_TOKEN": " "}, {}, '"CORELLIUM_API_TOKEN" environment variable is empty'),
        ({"CORELLIUM_API_INTERVAL": "soon"}, {}, 'CORELLIUM_API_INTERVAL" environment variable is "soon"'),
        ({"CORELLIUM_API_RETRIES": "1.5"}, {}, "no number"),
        ({"CORELLIUM_API_RETRIES": "0"}, {}, "api_retries"),
        ({"CORELLIUM_API_HOST": "https://x/api"}, {}, "must be a name"),
        ({}, {"device_name": ""}, "device_name"),
        ({}, {"api_token": "a", "api_token_file": "b"}, "both"),
    ],
)
def test_wrong_configuration_is_found_at_construction_without_any_call(
    service: FakeCorellium, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str | None], config: dict[str, Any],
    words: str,
) -> None:  # fmt: skip
    for name, value in environment.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=words):
        driver(**config)
    assert service.calls == []
