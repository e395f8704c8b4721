# SPDX-License-Identifier: Apache-2.0
"""Protects the SNMP models of Pdu: each against an agent with the columns of its MIB, behind a real snmpd."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from snmp_pdu import SnmpPdu, snmp_pdu

from jumpstarter.common.exceptions import DriverError
from jumpstarter.common.utils import serve
from jumpstarter_driver_composite.driver import Composite
from jumpstarter_driver_pdu.driver import MODELS, Pdu
from jumpstarter_driver_power.client import PowerClient


class Mib(NamedTuple):
    """Written down from the MIBs once more, not from the driver's table.

    outlet: as configured. index: in the tables. on, off: (column, number) that switch. tells: column, on, off.
    """

    outlet: str
    index: str
    on: tuple[str, int]
    off: tuple[str, int]
    tells: tuple[str, int, int]


MIBS = {
    "apc-easy": Mib(
        "2",
        "2",
        ("1.3.6.1.4.1.318.1.1.30.6.2.1.4", 1),
        ("1.3.6.1.4.1.318.1.1.30.6.2.1.4", 2),
        ("1.3.6.1.4.1.318.1.1.30.6.1.1.4", 2, 1),
    ),
    "apc-masterswitch": Mib(
        "1", "1", ("1.3.6.1.4.1.318.1.1.4.4.2.1.3", 1), ("1.3.6.1.4.1.318.1.1.4.4.2.1.3", 2), ("", 1, 2)
    ),
    "apc-rpdu": Mib(
        "3",
        "3",
        ("1.3.6.1.4.1.318.1.1.12.3.3.1.1.4", 1),
        ("1.3.6.1.4.1.318.1.1.12.3.3.1.1.4", 2),
        ("1.3.6.1.4.1.318.1.1.12.3.5.1.1.4", 1, 2),
    ),
    "apc-rpdu2": Mib(
        "24",
        "24",
        ("1.3.6.1.4.1.318.1.1.26.9.2.4.1.5", 1),
        ("1.3.6.1.4.1.318.1.1.26.9.2.4.1.5", 2),
        ("1.3.6.1.4.1.318.1.1.26.9.2.3.1.5", 2, 1),
    ),
    "baytech": Mib("5", "1.5", ("1.3.6.1.4.1.4779.1.3.5.3.1.3", 1), ("1.3.6.1.4.1.4779.1.3.5.3.1.3", 0), ("", 1, 0)),
    "cyberpower": Mib(
        "4",
        "4",
        ("1.3.6.1.4.1.3808.1.1.3.3.3.1.1.4", 1),
        ("1.3.6.1.4.1.3808.1.1.3.3.3.1.1.4", 2),
        ("1.3.6.1.4.1.3808.1.1.3.3.5.1.1.4", 1, 2),
    ),
    "digital-loggers-snmp": Mib(
        "8",
        "8",
        ("1.3.6.1.2.1.229.1.2.1.8", 259),
        ("1.3.6.1.2.1.229.1.2.1.8", 257),
        ("1.3.6.1.2.1.229.1.2.1.9", 259, 257),
    ),
    "eaton": Mib(
        "7",
        "0.7",
        ("1.3.6.1.4.1.534.6.6.7.6.6.1.4", 0),
        ("1.3.6.1.4.1.534.6.6.7.6.6.1.3", 0),
        ("1.3.6.1.4.1.534.6.6.7.6.6.1.2", 1, 0),
    ),
    "netio-snmp": Mib(
        "4",
        "4",
        ("1.3.6.1.4.1.47952.1.1.1.5", 1),
        ("1.3.6.1.4.1.47952.1.1.1.5", 0),
        ("1.3.6.1.4.1.47952.1.1.1.3", 1, 0),
    ),
    "poe": Mib("9", "1.9", ("1.3.6.1.2.1.105.1.1.1.3", 1), ("1.3.6.1.2.1.105.1.1.1.3", 2), ("", 1, 2)),
    "raritan-px": Mib("6", "6", ("1.3.6.1.4.1.13742.4.1.2.2.1.3", 1), ("1.3.6.1.4.1.13742.4.1.2.2.1.3", 0), ("", 1, 0)),
    "raritan-px2": Mib(
        "2.12",
        "2.12",
        ("1.3.6.1.4.1.13742.6.4.1.2.1.2", 1),
        ("1.3.6.1.4.1.13742.6.4.1.2.1.2", 0),
        ("1.3.6.1.4.1.13742.6.4.1.2.1.3", 7, 8),
    ),
    "sentry3": Mib(
        "1.3.2",
        "1.3.2",
        ("1.3.6.1.4.1.1718.3.2.3.1.11", 1),
        ("1.3.6.1.4.1.1718.3.2.3.1.11", 2),
        ("1.3.6.1.4.1.1718.3.2.3.1.5", 1, 0),
    ),
    "sentry4": Mib(
        "16",
        "1.1.16",
        ("1.3.6.1.4.1.1718.4.1.8.5.1.2", 1),
        ("1.3.6.1.4.1.1718.4.1.8.5.1.2", 2),
        ("1.3.6.1.4.1.1718.4.1.8.3.1.1", 1, 2),
    ),
}


def rack() -> dict[str, Any]:
    """One agent that has the tables of all of them, and a Raritan PX2 with eight outlets."""
    sets: dict[str, dict[str, str]] = {}
    reads: dict[str, dict[str, int]] = {}
    outlets = {mib.index: "off" for mib in MIBS.values()}
    outlets |= {f"1.{n}": "off" for n in range(1, 9)}
    for mib in MIBS.values():
        sets.setdefault(mib.on[0], {})[str(mib.on[1])] = "on"
        sets.setdefault(mib.off[0], {})[str(mib.off[1])] = "off"
        column, on, off = mib.tells
        reads[column or mib.on[0]] = {"on": on, "off": off}
    return {"outlets": outlets, "sets": sets, "reads": reads}


@pytest.fixture(scope="module")
def _rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SnmpPdu]:
    with snmp_pdu(tmp_path_factory.mktemp("rack"), rack()) as made:
        yield made


@pytest.fixture
def agent(_rack: SnmpPdu) -> Iterator[SnmpPdu]:
    yield _rack
    _rack.forget()


def test_every_snmp_model_is_tested() -> None:
    assert set(MIBS) == {name for name, model in MODELS.items() if model.kind == "snmp"}


@pytest.mark.parametrize("name", MIBS)
def test_model_switches_its_own_columns_and_reads_back(agent: SnmpPdu, name: str) -> None:
    mib = MIBS[name]
    driver = Pdu(model=name, host=agent.host, port=agent.port, outlet=mib.outlet, community="writer-secret", settle=0.1)
    with serve(driver) as client:
        assert isinstance(client, PowerClient)
        client.on()
        assert client.status() == "on"
        client.off()
        assert client.status() == "off"
        assert agent.sets == [(f"{mib.on[0]}.{mib.index}", mib.on[1]), (f"{mib.off[0]}.{mib.index}", mib.off[1])]
        agent.break_it(stuck=[mib.index])
        with pytest.raises(DriverError, match='told to switch on and still reports "off"'):
            client.on()


def test_eight_outlets_of_one_pdu_at_once_with_snmp_3(agent: SnmpPdu) -> None:
    drivers = {f"outlet{n}": Pdu(model="raritan-px2", outlet=n, **agent.sha5) for n in range(1, 9)}
    with serve(Composite(children=dict(drivers))) as client, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: getattr(client, name).on(), drivers))
        assert {getattr(client, name).status() for name in drivers} == {"on"}
        assert [thread.name for thread in threading.enumerate()].count("snmp") == 1
    assert "snmp" not in [thread.name for thread in threading.enumerate()]
