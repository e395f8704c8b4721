# SPDX-License-Identifier: Apache-2.0
"""Power drivers of Jumpstarter 0.9 and ours: their client with our drivers, our client with theirs, same file."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from original_exporters import our_exporter, their_exporter

for area in ("cli", "power", "snmp", "tasmota"):
    sys.path.insert(0, str(Path(__file__).parents[1] / area))

from brokers import mosquitto  # noqa: E402
from fake_http_devices import FakeEnerGenie, FakeShelly1, FakeShelly2  # noqa: E402
from fake_tasmota import FakeTasmota  # noqa: E402
from snmp_pdu import RARITAN_PDU, SnmpPdu, snmp_pdu  # noqa: E402
from test_noyito_relay import FakeSerialBoard  # noqa: E402

from jumpstarter.client.aio import connect  # noqa: E402


@dataclass
class Rack:
    """Counterparties of the five drivers, and the `export:` section for them that 0.9 understands."""

    pdu: SnmpPdu
    tasmota: FakeTasmota
    strip: FakeEnerGenie
    plug: FakeShelly1
    board: FakeSerialBoard
    export: dict[str, object]

    def states(self) -> dict[str, bool]:
        """What the devices say."""
        return {
            "snmp": bool(self.pdu.sets) and self.pdu.sets[-1][1] == 1,
            "tasmota": self.tasmota.relays[1] == "ON",
            "energenie": self.strip.relays[2],
            "http": self.plug.relays[1],
            "noyito": self.board.relays[2],
        }


@pytest.fixture
def rack(tmp_path: Path) -> Iterator[Rack]:
    with ExitStack() as stack:
        pdu = stack.enter_context(snmp_pdu(tmp_path / "pdu", RARITAN_PDU))
        (tmp_path / "mqtt").mkdir()
        broker = stack.enter_context(mosquitto(tmp_path / "mqtt"))
        tasmota = stack.enter_context(FakeTasmota("plug").connected(broker.plain))
        strip = FakeEnerGenie()
        stack.enter_context(strip.running())
        plug, meter = FakeShelly1(auth="basic"), FakeShelly2(auth="none")
        stack.enter_context(plug.running())
        stack.enter_context(meter.running())
        board = FakeSerialBoard()
        stack.callback(board.close)

        def driver(kind: str, **config: Any) -> dict[str, Any]:
            return {"type": f"jumpstarter_driver_{kind}", "config": config}

        topics = {"cmnd_topic": "cmnd/plug/POWER", "stat_topic": "stat/plug/POWER"}
        auth = {
            "auth_protocol": "SHA",
            "auth_key": "auth-pass-123",
            "priv_protocol": "AES",
            "priv_key": "priv-pass-123",
        }
        reading = {
            "url": f"{meter.url}/rpc/Switch.GetStatus?id=0",
            "voltage_path": "voltage",
            "current_path": "current",
        }
        export: dict[str, object] = {
            "snmp": driver("snmp.driver.SNMPServer", host=pdu.host, port=pdu.port, user="sha1", plug=3, **auth),
            "tasmota": driver(
                "tasmota.driver.TasmotaPower", host="127.0.0.1", port=broker.plain, tls=False, timeout=5, **topics
            ),
            "energenie": driver("energenie.driver.EnerGenie", host=strip.address, password="1", slot=2),
            "http": driver(
                "http_power.driver.HttpPower",
                name="plug",
                power_on={"url": f"{plug.url}/relay/0?turn=on"},
                power_off={"url": f"{plug.url}/relay/0?turn=off", "method": "GET"},
                power_read=reading,
                auth={"basic": {"user": plug.user, "password": plug.password}},
            ),
            "noyito": driver("noyito_relay.driver.NoyitoPowerSerial", port=board.port, channel=2),
        }
        yield Rack(pdu, tasmota, strip, plug, board, export)


THEIR_CLIENT = """
from jumpstarter.utils.env import env
with env() as client:
    for name in ("snmp", "tasmota", "energenie", "http", "noyito"):
        power = getattr(client, name)
        power.off()
        power.on()
        power.cycle(wait=0)
        print(">", name, type(power).__name__)
    print(">", client.noyito.status(), client.snmp.call("on"))
    print(">", [(r.voltage, r.current) for r in client.http.read()])
    print("ready")
    input()
"""


def test_client_of_the_original_drives_our_power_drivers(original: Path, rack: Rack, tmp_path: Path) -> None:
    with our_exporter(original, tmp_path, rack.export) as theirs, theirs.talking(THEIR_CLIENT) as client:
        assert client.stdout is not None
        lines = list(takewhile(lambda line: line != "ready\n", client.stdout))  # their log is among them
        told = [line for line in lines if line.startswith("> ")]
        assert told == [
            "> snmp SNMPServerClient\n",
            "> tasmota PowerClient\n",
            "> energenie PowerClient\n",
            "> http PowerClient\n",
            "> noyito NoyitoPowerClient\n",
            "> on Power ON command sent successfully\n",
            "> [(229.5, 0.2)]\n",
        ]
        assert rack.states() == dict.fromkeys(rack.export, True)
        client.communicate("\n", timeout=60)
        assert client.returncode == 0


def test_our_client_drives_power_drivers_of_the_original(original: Path, rack: Rack, tmp_path: Path) -> None:
    async def body(address: str) -> None:
        async with connect(address, insecure=True) as session, asyncio.timeout(60):
            for name in rack.export:
                await session.node(name).call("on")
            assert await session.node("noyito").call("status") == "on"
            assert rack.states() == dict.fromkeys(rack.export, True)
            readings = [r async for r in session.node("http").streamingcall("read")]
            assert [(r["voltage"], r["current"]) for r in readings] == [(229.5, 0.2)]
            rack.strip.holder = None  # theirs does not log out
            for name in rack.export:
                await session.node(name).call("off")
            # Theirs writes to the relay board and is done; an answer comes after the board has read that.
            assert await session.node("noyito").call("status") == "off"
            assert rack.states() == dict.fromkeys(rack.export, False)

    with their_exporter(original, tmp_path, rack.export) as address:
        asyncio.run(body(address))
