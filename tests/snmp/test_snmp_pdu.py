# SPDX-License-Identifier: Apache-2.0
"""Protects switching over SNMP: every version and security level, and that success is only what the PDU confirms."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from snmp_pdu import RARITAN, RARITAN_PDU, SnmpPdu, snmp_pdu

from jumpstarter.common.exceptions import ConfigurationError, DriverError, DriverMethodNotImplemented
from jumpstarter.common.utils import serve
from jumpstarter_driver_composite.driver import Composite
from jumpstarter_driver_snmp.client import SNMPServerClient
from jumpstarter_driver_snmp.driver import SNMPError, SNMPServer, SNMPTimeout
from jumpstarter_driver_snmp.engine import Engines

KEYS = {"auth_key": "auth-pass-123", "priv_key": "priv-pass-123"}
ACCESS: dict[str, dict[str, Any]] = {
    "v1": {"version": 1, "community": "writer-secret"},
    "v2c": {"community": "writer-secret"},
    "v3 without authentication": {"user": "plain"},
    "v3 MD5 and DES": {"user": "md5", "auth_protocol": "MD5", "priv_protocol": "DES", **KEYS},
    "v3 SHA and AES": {"user": "sha1", "auth_protocol": "SHA", "priv_protocol": "AES", **KEYS},
    # SHA's digest is shorter than the key, which vendors stretch in two ways.
    "v3 SHA and AES-256": {"user": "sha1long", "auth_protocol": "SHA", "priv_protocol": "AES256", **KEYS},
    "v3 SHA-256 and AES": {"user": "sha2", "auth_protocol": "SHA256", "priv_protocol": "AES", **KEYS},
    "v3 SHA-512 and AES-256": {"user": "sha5", "auth_protocol": "SHA512", "priv_protocol": "AES256", **KEYS},
}


def server(pdu: SnmpPdu, plug: int | str = 1, **config: Any) -> SNMPServer:
    config = {"timeout": 2.0, **config}
    return SNMPServer(host=pdu.host, port=pdu.port, plug=plug, **config)


@pytest.mark.parametrize("access", ACCESS.values(), ids=ACCESS)
def test_switches_and_reads_back_with_every_kind_of_access(pdu: SnmpPdu, access: dict[str, Any]) -> None:
    with serve(server(pdu, **access)) as client:
        assert isinstance(client, SNMPServerClient)
        client.on()
        assert client.status() == "on"
        client.off()
        assert client.status() == "off"
    assert pdu.sets[:2] == [(f"{RARITAN}.2.1.1", 1), (f"{RARITAN}.2.1.1", 0)]


def test_a_stuck_relay_is_an_error_and_not_a_success(pdu: SnmpPdu) -> None:
    pdu.break_it(stuck=["3"])
    with serve(server(pdu, 3, settle=0.3, **ACCESS["v2c"])) as client:
        with pytest.raises(DriverError, match='outlet 3 of .* switch on and still reports "off" after 0.3 s') as caught:
            client.on()
        assert caught.value.code == "INTERNAL"
        assert client.status() == "off"


def test_a_slow_relay_is_waited_for(pdu: SnmpPdu) -> None:
    pdu.break_it(lag={"4": 3})
    with serve(server(pdu, 4, **ACCESS["v2c"])) as client:
        client.on()
        assert client.status() == "on"


def test_verification_can_be_switched_off(pdu: SnmpPdu) -> None:
    pdu.break_it(stuck=["3"])
    with serve(server(pdu, 3, verify=False, **ACCESS["v2c"])) as client:
        client.on()
    assert (f"{RARITAN}.2.1.3", 1) in pdu.sets


def test_wrong_value_names_the_fields_that_set_it(pdu: SnmpPdu) -> None:
    with serve(server(pdu, on_value=5, **ACCESS["v2c"])) as client:
        with pytest.raises(DriverError, match=r"wrongValue at 1\.3\..*on_value"):
            client.on()


@pytest.mark.parametrize(
    "access",
    [{"user": "reader", "auth_protocol": "SHA", "priv_protocol": "AES", **KEYS}, {"community": "public"}],
    ids=["user", "community"],
)
def test_access_that_may_only_read_cannot_switch_but_can_ask(pdu: SnmpPdu, access: dict[str, Any]) -> None:
    with serve(server(pdu, **access)) as client:
        assert client.status() == "off"
        with pytest.raises(DriverError, match="may only read"):
            client.on()
    assert pdu.sets == []


def test_no_such_outlet(pdu: SnmpPdu) -> None:
    with serve(server(pdu, 99, **ACCESS["v2c"])) as client:
        with pytest.raises(DriverError, match="no such outlet"):
            client.on()
        with pytest.raises(DriverError, match="nothing to read at"):
            client.status()
    with serve(server(pdu, 99, **ACCESS["v1"])) as client:
        with pytest.raises(DriverError, match="nothing to read at"):
            client.status()


@pytest.mark.parametrize(
    ("access", "says"),
    [
        ({"user": "nobody"}, "does not know this user"),
        (
            {
                "user": "sha1",
                "auth_protocol": "SHA",
                "auth_key": "wrong-pass-1",
                "priv_protocol": "AES",
                "priv_key": "x" * 8,
            },
            "refuses the authentication key",
        ),
        (
            {"user": "sha1", "auth_protocol": "SHA", "auth_key": "auth-pass-123"},
            "authorizationError|may only|security level|let this user",
        ),
    ],
    ids=["user", "key", "level"],
)
def test_wrong_credentials_are_named_and_never_shown(pdu: SnmpPdu, access: dict[str, Any], says: str) -> None:
    with serve(server(pdu, **access)) as client:
        with pytest.raises(DriverError, match=says) as caught:
            client.on()
    assert "pass" not in str(caught.value).replace("auth_key", "")


def test_an_agent_that_does_not_answer_is_a_timeout(pdu: SnmpPdu) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        driver = SNMPServer(
            host="127.0.0.1", port=silent.getsockname()[1], plug=1, community="c", timeout=0.2, retries=1, settle=0
        )
        start = time.monotonic()
        with serve(driver) as client:
            with pytest.raises(DriverError, match=r"no answer in 0\.4 s \(2 tries\)") as caught:
                client.status()
        assert caught.value.code == "DEADLINE_EXCEEDED"
        assert time.monotonic() - start < 60


def test_an_unknown_host_is_named() -> None:
    with serve(SNMPServer(host="no-such-host.invalid", plug=1, community="c")) as client:
        with pytest.raises(DriverError, match="no-such-host.invalid: cannot find its address") as caught:
            client.on()
        assert caught.value.code == "UNAVAILABLE"


def test_eight_outlets_at_once_share_one_thread_and_leave_nothing(
    pdu: SnmpPdu, caplog: pytest.LogCaptureFixture
) -> None:
    outlets = {f"outlet{n}": server(pdu, n, **ACCESS["v3 SHA-512 and AES-256"]) for n in range(1, 9)}
    with serve(Composite(children=dict(outlets))) as client:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: getattr(client, name).on(), outlets))
            assert list(pool.map(lambda name: getattr(client, name).status(), outlets)) == ["on"] * 8
        assert [thread.name for thread in threading.enumerate()].count("snmp") == 1
    assert "snmp" not in [thread.name for thread in threading.enumerate()]
    assert "pending" not in caplog.text and "never awaited" not in caplog.text
    assert len([value for _, value in pdu.sets if value == 1]) == 8


def test_switching_does_not_block_the_exporters_loop(pdu: SnmpPdu) -> None:
    pdu.break_it(lag={"5": 3})

    async def body() -> float:
        driver = server(pdu, 5, **ACCESS["v2c"])
        longest = 0.0
        work = asyncio.ensure_future(asyncio.to_thread(driver.on))
        last = time.monotonic()
        while not work.done():
            await asyncio.sleep(0.005)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        await work
        driver.close()
        return longest

    assert asyncio.run(body()) < 0.5


def test_same_user_name_with_other_keys_on_another_pdu(pdu: SnmpPdu, tmp_path: Path) -> None:
    users = 'createUser sha5 SHA-256 "other-auth-1" AES "other-priv-1"\nrwuser sha5 priv\n'
    with snmp_pdu(tmp_path / "other", RARITAN_PDU, users=users) as second:
        other = server(
            second,
            user="sha5",
            auth_protocol="SHA256",
            auth_key="other-auth-1",
            priv_protocol="AES",
            priv_key="other-priv-1",
        )
        with serve(Composite(children={"a": server(pdu, **ACCESS["v3 SHA-512 and AES-256"]), "b": other})) as client:
            for switch in (client.a, client.b):
                switch.on()
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda name: [getattr(client, name).cycle(0) for _ in range(4)], ("a", "b")))
            assert (client.a.status(), client.b.status()) == ("on", "on")


def test_a_pdu_that_restarts_is_found_again(tmp_path: Path) -> None:
    with snmp_pdu(tmp_path / "one", RARITAN_PDU) as first:
        driver = server(first, **ACCESS["v3 SHA and AES"], retries=2)
        driver.on()
        port = first.port
    # It comes back with a new engine id and the clock at zero, as a device after a firmware update.
    with snmp_pdu(tmp_path / "two", RARITAN_PDU) as second:
        driver.port = port
        driver._agent.port = second.port  # the same driver, the agent moved: what a restart looks like to the engine
        driver.on()
        assert driver.status() == "on"
        driver.close()


def test_ipv6(tmp_path: Path) -> None:
    with snmp_pdu(tmp_path / "six", RARITAN_PDU, host="::1") as six:
        with serve(server(six, **ACCESS["v3 SHA-256 and AES"])) as client:
            client.on()
            assert client.status() == "on"


def test_other_columns_and_numbers(tmp_path: Path) -> None:
    spec = {
        "outlets": {"1.1.3": "off"},
        "sets": {"1.3.6.1.4.1.1718.3.2.3.1.11": {"1": "on", "2": "off"}},
        "reads": {"1.3.6.1.4.1.1718.3.2.3.1.5": {"on": 1, "off": 0}},
    }
    with snmp_pdu(tmp_path / "sentry", spec) as sentry:
        driver = server(
            sentry,
            "1.1.3",
            oid=".1.3.6.1.4.1.1718.3.2.3.1.11",
            on_value=1,
            off_value=2,
            status_oid="1.3.6.1.4.1.1718.3.2.3.1.5",
            status_on=[1],
            status_off=[0],
            **ACCESS["v2c"],
        )
        with serve(driver) as client:
            client.on()
            assert client.status() == "on"
            client.off()
        assert sentry.sets[:2] == [("1.3.6.1.4.1.1718.3.2.3.1.11.1.1.3", 1), ("1.3.6.1.4.1.1718.3.2.3.1.11.1.1.3", 2)]


def test_a_pdu_without_the_state_column_is_read_at_the_switching_column(tmp_path: Path) -> None:
    spec = {**RARITAN_PDU, "reads": {f"{RARITAN}.2.1": {"off": 0, "on": 1}}}
    with snmp_pdu(tmp_path / "old", spec) as old, serve(server(old, **ACCESS["v2c"])) as client:
        client.on()
        assert client.status() == "on"


def test_secrets_come_from_files_and_are_never_shown(
    pdu: SnmpPdu, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "community").write_text("writer-secret\n")
    driver = server(pdu, community_file=str(tmp_path / "community"))
    with serve(driver) as client:
        client.on()
    inline = server(pdu, community="writer-secret")
    assert "secret" not in repr(inline) + repr(inline._settings) + repr(inline._settings.credentials()) + caplog.text
    missing = server(pdu, community_file=str(tmp_path / "missing"))
    with serve(missing) as client, pytest.raises(DriverError, match="community_file: .*No such file"):
        client.on()


def test_construction_touches_no_network_and_switches_nothing(pdu: SnmpPdu) -> None:
    driver = SNMPServer(host="no-such-host.invalid", plug=1, user="plain")
    driver.reset()
    driver.close()
    driver.close()
    ours = server(pdu, **ACCESS["v2c"])
    ours.on()
    ours.reset()
    ours.close()
    assert pdu.sets == [(f"{RARITAN}.2.1.1", 1)]
    ours.off()  # a driver that was closed works again when it is asked
    ours.close()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "user is required"),
        ({"version": 2, "community": "x"}, 'version is "2"'),
        ({"version": "2c"}, "needs community"),
        ({"version": "2c", "community": "x", "user": "y"}, "belong to SNMP version 3"),
        ({"user": "x", "community": "y"}, "belongs to SNMP version 1 or 2c"),
        ({"user": "x", "auth_protocol": "SHA"}, "needs auth_key"),
        ({"user": "x", "priv_protocol": "AES", "priv_key": "12345678"}, "needs an auth_protocol"),
        ({"user": "x", "auth_protocol": "SHA", "auth_key": "12345678", "priv_protocol": "AES"}, "needs priv_key"),
        ({"user": "x", "auth_protocol": "SHA", "auth_key": "short"}, "shorter than 8"),
        ({"community": "x", "community_file": "y"}, "both given"),
        ({"community": "x", "oid": "iso.org"}, "must be an OID"),
        ({"community": "x", "plug": "one"}, "plug is"),
        ({"community": "x", "on_value": 0}, "both 0"),
        ({"community": "x", "status_on": [1], "status_off": [1, 2]}, "share"),
        ({"community": "x", "port": 0}, "port is 0"),
        ({"community": "x", "timeout": 0}, "timeout is 0"),
        ({"community": "x", "retries": -1}, "retries is -1"),
        ({"community": "x", "settle": -1}, "settle is -1"),
        ({"community": "x", "host": " "}, "must be a name or an address"),
        ({"community": "x", "host": "pdu:161"}, "the port has a field of its own"),
    ],
)
def test_configuration_errors_are_found_at_construction(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        SNMPServer(**{"host": "pdu.example", "plug": 1, **config})


def test_a_pdu_does_not_measure_and_says_so(pdu: SnmpPdu) -> None:
    with (
        serve(server(pdu, **ACCESS["v2c"])) as client,
        pytest.raises(DriverMethodNotImplemented, match="cannot measure"),
    ):
        list(client.read())


def test_errors_are_of_the_kinds_that_programs_catch() -> None:
    assert issubclass(SNMPTimeout, TimeoutError) and issubclass(SNMPTimeout, SNMPError)
    assert issubclass(SNMPError, OSError)


def test_a_question_that_is_open_when_the_driver_is_closed_ends() -> None:
    engines = Engines()
    engines.acquire()
    asked = threading.Event()

    async def silent() -> None:
        asked.set()
        await asyncio.get_running_loop().create_future()

    with ThreadPoolExecutor() as pool:
        answer = pool.submit(engines.run, silent())
        assert asked.wait(20)
        engines.release()
        with pytest.raises(RuntimeError, match="the driver was closed"):
            answer.result(20)


def test_a_question_is_handed_in_before_the_loop_ends_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two nobody would ever answer it: the thread that asks would wait for ever."""
    engines = Engines()
    engines.acquire()
    hand_in = asyncio.run_coroutine_threadsafe
    held: list[bool] = []

    def handing_in(*arguments: Any) -> Any:
        held.append(engines._lock.locked())
        return hand_in(*arguments)

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", handing_in)

    async def four() -> int:
        return 4

    assert engines.run(four()) == 4
    assert held == [True]
    engines.release()
    with pytest.raises(RuntimeError, match="the driver was closed"):
        engines.run(four())
