# SPDX-License-Identifier: Apache-2.0
"""Protects TasmotaPower: only what the device answers is success, through every way into a real mosquitto."""

from __future__ import annotations

import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import paho.mqtt.publish as publish
import pytest
from brokers import PASSWORD, USER, Mosquitto
from fake_tasmota import FakeTasmota

from jumpstarter.common.exceptions import ConfigurationError, DriverError, DriverMethodNotImplemented
from jumpstarter.common.utils import serve
from jumpstarter_driver_power.client import PowerClient
from jumpstarter_driver_power.common import PowerReading
from jumpstarter_driver_tasmota.driver import TasmotaPower
from jumpstarter_driver_tasmota.link import MqttLink


def plug(broker: Mosquitto, topic: str, **config: Any) -> TasmotaPower:
    """The driver as existing configurations have it, over the plain port."""
    return TasmotaPower(
        **{
            "host": "127.0.0.1",
            "port": broker.plain,
            "tls": False,
            "timeout": 3,
            "settle": 0.3,
            "cmnd_topic": f"cmnd/{topic}/POWER",
            "stat_topic": f"stat/{topic}/POWER",
            **config,
        }
    )


def ways(broker: Mosquitto) -> dict[str, dict[str, Any]]:
    login = {"username": USER, "password": PASSWORD}
    return {
        "plain": {},
        "tls": {"port": broker.tls, "tls": True, "tls_ca": str(broker.ca), **login},
        "tls, any certificate": {"port": broker.tls, "tls": True, "tls_verify": False, **login},
        "websockets": {"port": broker.websockets, "transport": "websockets"},
        "unix": {"host": str(broker.unix), "transport": "unix"},
    }


@pytest.mark.parametrize("way", ["plain", "tls", "tls, any certificate", "websockets", "unix"])
def test_switches_and_reads_back_through_every_way_in(broker: Mosquitto, way: str) -> None:
    with FakeTasmota("plug-1").connected(broker.plain) as device:
        with serve(plug(broker, "plug-1", **ways(broker)[way])) as client:
            assert isinstance(client, PowerClient)
            client.on()
            assert device.relays == {1: "ON"} and client.status() == "on"
            client.off()
            assert device.relays == {1: "OFF"} and client.status() == "off"


def test_a_device_that_does_not_answer_is_a_timeout_and_not_a_success(broker: Mosquitto) -> None:
    with FakeTasmota("mute").connected(broker.plain) as device:
        device.silent = True
        driver = plug(broker, "mute", settle=0)
        with serve(driver) as client:
            driver._connected(time.monotonic() + 5)  # so that the short time is for the answer alone
            driver._patience = 0.2
            with pytest.raises(
                DriverError, match=r"no answer on stat/mute/POWER within 0\.2 s; the device is online"
            ) as caught:
                client.on()
            assert caught.value.code == "DEADLINE_EXCEEDED"


def test_no_device_at_all_is_told_from_a_silent_one(broker: Mosquitto) -> None:
    driver = plug(broker, "nobody", settle=0)
    with serve(driver) as client:
        with pytest.raises(DriverError, match="was never seen there .*check the topics"):
            driver._connected(time.monotonic() + 5)  # so that the short time is for the answer alone
            driver._patience = 0.2
            client.on()


def test_a_stuck_relay_is_an_error(broker: Mosquitto) -> None:
    with FakeTasmota("stuck", count=2).connected(broker.plain) as device:
        device.stuck = {2}
        topics = {"cmnd_topic": "cmnd/stuck/POWER2", "stat_topic": "stat/stuck/POWER2"}
        with serve(plug(broker, "stuck", **topics)) as client:
            with pytest.raises(DriverError, match='cmnd/stuck/POWER2: was told to switch on and still reports "off"'):
                client.on()


def test_a_device_that_lost_power_is_offline_at_once(own_broker: Mosquitto) -> None:
    device = FakeTasmota("gone")
    with device.connected(own_broker.plain):
        device.vanish()
    with serve(plug(own_broker, "gone", timeout=5, settle=0)) as client:
        with pytest.raises(DriverError, match="the device is offline, says the broker") as caught:
            client.on()
        assert caught.value.code == "UNAVAILABLE"
        with device.connected(own_broker.plain):
            client.on()
            assert device.relays == {1: "ON"}
            client.off()


def test_an_old_answer_that_the_broker_kept_is_not_believed(broker: Mosquitto) -> None:
    """It comes right after the subscription, so now and then after the question: several tries."""
    topics = {"cmnd_topic": "kept/command", "stat_topic": "kept/state"}  # no last will: nothing comes between
    publish.single("kept/state", "ON", qos=1, retain=True, hostname="127.0.0.1", port=broker.plain)
    try:
        for _ in range(10):
            driver = plug(broker, "kept", timeout=0.05, verify=False, **topics)
            with pytest.raises(TimeoutError):  # of the answer, or on a busy machine of the connection
                driver.on()
            driver.close()
    finally:
        publish.single("kept/state", None, qos=1, retain=True, hostname="127.0.0.1", port=broker.plain)


def test_a_restart_of_the_broker_is_survived(own_broker: Mosquitto) -> None:
    device = FakeTasmota("again")
    with device.connected(own_broker.plain):
        with serve(plug(own_broker, "again", timeout=10)) as client:
            client.on()
            device.forget_connection()
            own_broker.stop()
            own_broker.start()
            device.wait_connected_again()
            client.off()
            assert device.relays == {1: "OFF"} and client.status() == "off"


def test_a_command_that_failed_while_the_broker_was_away_is_not_done_later(own_broker: Mosquitto) -> None:
    device = FakeTasmota("later")
    with device.connected(own_broker.plain):
        with serve(plug(own_broker, "later", timeout=1, settle=0)) as client:
            assert client.status() == "off"
            device.forget_connection()
            own_broker.stop()
            with pytest.raises(DriverError, match="MQTT broker"):
                client.on()
            own_broker.start()
            device.wait_connected_again()
            assert client.status() == "off"
            assert ("POWER", "ON") not in device.commands


def test_sessions_switch_nothing_unless_asked(broker: Mosquitto) -> None:
    with FakeTasmota("calm").connected(broker.plain) as device:
        driver = plug(broker, "calm")
        device.relays[1] = "ON"
        with serve(driver) as client:
            assert client.status() == "on"
        assert device.relays == {1: "ON"} and all(payload == "" for _, payload in device.commands)
        driver.close()
        with serve(plug(broker, "calm", off_at_reset=True)) as client:
            assert client.status() == "off"
        device.relays[1] = "ON"
        with serve(plug(broker, "calm", off_at_close=True)) as client:
            assert client.status() == "on"
        assert device.relays == {1: "OFF"}


def test_off_at_close_also_after_the_connection_was_lost(broker: Mosquitto) -> None:
    with FakeTasmota("lost").connected(broker.plain) as device:
        driver = plug(broker, "lost", off_at_close=True)
        driver.on()
        driver._disconnect()
        driver.close()
        assert device.relays == {1: "OFF"}


def test_the_result_topic_can_be_the_answer(broker: Mosquitto) -> None:
    with FakeTasmota("result").connected(broker.plain) as device:
        topics = {"cmnd_topic": "cmnd/result/POWER1", "stat_topic": "stat/result/RESULT"}
        with serve(plug(broker, "result", **topics)) as client:
            client.on()
            assert device.relays == {1: "ON"} and client.status() == "on"


def test_meter(broker: Mosquitto) -> None:
    with FakeTasmota("metered", meter=True).connected(broker.plain), serve(plug(broker, "metered")) as client:
        assert list(client.read()) == [PowerReading(voltage=231, current=0.25)]
    with FakeTasmota("plain").connected(broker.plain), serve(plug(broker, "plain")) as client:
        with pytest.raises(DriverMethodNotImplemented, match="no meter"):
            list(client.read())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"username": USER, "password": "wr0ng"}, "refuses us: Not authorized"),
        ({}, "refuses us: Not authorized"),
        ({"username": USER, "password": PASSWORD, "tls_ca": None}, "TLS failed: .*(self.signed|unable to get local)"),
        ({"tls": False, "tls_ca": None}, "broker 127.0.0.1"),
    ],
    ids=["password", "nobody", "authority", "not TLS"],
)
def test_a_broker_that_does_not_let_us_in(broker: Mosquitto, config: dict[str, Any], says: str) -> None:
    base = {"port": broker.tls, "tls": True, "tls_ca": str(broker.ca), "timeout": 0.5, "settle": 0}
    with serve(plug(broker, "x", **{**base, **config})) as client:
        with pytest.raises(DriverError, match=says) as caught:
            client.on()
        assert "wr0ng" not in str(caught.value)
    assert "paho" not in " ".join(thread.name for thread in threading.enumerate())


def test_no_broker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    driver = TasmotaPower(host="127.0.0.1", port=port, tls=False, cmnd_topic="cmnd/a/POWER", stat_topic="stat/a/POWER")
    with serve(driver) as client, pytest.raises(DriverError, match="Connection refused") as caught:
        client.on()
    assert caught.value.code == "UNAVAILABLE"


def test_a_broker_that_says_nothing_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        driver = TasmotaPower(
            host="127.0.0.1",
            port=deaf.getsockname()[1],
            tls=False,
            timeout=0.3,
            settle=0,
            cmnd_topic="cmnd/a/POWER",
            stat_topic="stat/a/POWER",
        )
        with serve(driver) as client, pytest.raises(DriverError, match="not connected within 0.3 s") as caught:
            client.on()
    assert caught.value.code == "DEADLINE_EXCEEDED"


def test_secrets_come_from_files_and_are_never_shown(
    broker: Mosquitto, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "password").write_text(PASSWORD + "\n")
    way = {**ways(broker)["tls"], "password": None, "password_file": str(tmp_path / "password")}
    with FakeTasmota("secret").connected(broker.plain), serve(plug(broker, "secret", **way)) as client:
        client.on()
    assert PASSWORD not in caplog.text + repr(plug(broker, "secret", **ways(broker)["tls"]))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"cmnd_topic": "cmnd/+/POWER"}, "cmnd_topic is"),
        ({"stat_topic": ""}, "stat_topic is"),
        ({"stat_topic": "cmnd/a/POWER"}, "are the same"),
        ({"port": 0}, "port is 0"),
        ({"timeout": 0}, "timeout is 0"),
        ({"transport": "carrier pigeon"}, "transport is"),
        ({"tls": False, "tls_ca": "x"}, "tls_ca without tls"),
        ({"password": "x"}, "password without username"),
        ({"username": "u", "password": "x", "password_file": "y"}, "both given"),
        ({"on_payload": "OFF"}, "both"),
        ({"host": ""}, "host is empty"),
    ],
)
def test_configuration_errors_are_found_at_construction(config: dict[str, Any], says: str) -> None:
    base = {"host": "h", "cmnd_topic": "cmnd/a/POWER", "stat_topic": "stat/a/POWER"}
    with pytest.raises(ConfigurationError, match=says):
        TasmotaPower(**{**base, **config})


def test_no_connection_is_left_of_a_call_that_connects_as_the_session_ends(
    broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    connecting, go_on = threading.Event(), threading.Event()
    open_now = MqttLink.open

    def slow(link: MqttLink) -> None:
        connecting.set()
        assert go_on.wait(20)
        open_now(link)

    monkeypatch.setattr(MqttLink, "open", slow)
    with FakeTasmota("over").connected(broker.plain) as device, ThreadPoolExecutor() as pool:
        driver = plug(broker, "over")
        call = pool.submit(driver.on)
        assert connecting.wait(20)
        closing = pool.submit(driver.close)
        with pytest.raises(TimeoutError):
            closing.result(0.3)  # it waits for the connection, or nobody would ever end that
        go_on.set()
        closing.result(20)
        call.exception(20)  # it may have got its answer just in time
        assert driver._link is None
        with pytest.raises(ConnectionError, match="the session has ended"):
            driver.on()
        before = len(device.commands)
        driver.reset()
        driver.on()
        assert device.commands[before:] and driver.state() == "on"
        driver.close()
