# SPDX-License-Identifier: Apache-2.0
"""Protects `j` with every power driver: one exporter has them all, each before its own counterparty."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from brokers import mosquitto
from cli_harness import Cli
from fake_http_devices import FakeEnerGenie, FakeShelly1, FakeShelly2
from fake_tasmota import FakeTasmota
from snmp_pdu import RARITAN_PDU, snmp_pdu
from test_noyito_relay import FakeSerialBoard


def test_j_switches_and_asks_every_driver(tmp_path: Path) -> None:
    with ExitStack() as stack:
        pdu = stack.enter_context(snmp_pdu(tmp_path / "pdu", RARITAN_PDU))
        (tmp_path / "mqtt").mkdir()
        broker = stack.enter_context(mosquitto(tmp_path / "mqtt"))
        tasmota = stack.enter_context(FakeTasmota("plug").connected(broker.plain))
        strip = stack.enter_context(FakeEnerGenie().running())
        plug = stack.enter_context(FakeShelly1().running())
        shelly = stack.enter_context(FakeShelly2().running())
        board = FakeSerialBoard()
        stack.callback(board.close)
        status = {"url": f"{plug.url}/relay/0", "path": "ison"}
        drivers: dict[str, tuple[str, dict[str, Any]]] = {
            "snmp": ("snmp.driver.SNMPServer", {**pdu.sha5, "plug": 1}),
            "tasmota": (
                "tasmota.driver.TasmotaPower",
                {
                    "host": "127.0.0.1",
                    "port": broker.plain,
                    "tls": False,
                    "cmnd_topic": "cmnd/plug/POWER",
                    "stat_topic": "stat/plug/POWER",
                },
            ),
            "energenie": ("energenie.driver.EnerGenie", {"host": strip.address, "slot": 4}),
            "http": (
                "http_power.driver.HttpPower",
                {
                    "power_on": {"url": f"{plug.url}/relay/0?turn=on"},
                    "power_off": {"url": f"{plug.url}/relay/0?turn=off"},
                    "power_status": status,
                },
            ),
            "noyito": ("noyito_relay.driver.NoyitoPowerSerial", {"port": board.port}),
            "pdu": (
                "pdu.driver.Pdu",
                {
                    "model": "shelly-gen2",
                    "host": "127.0.0.1",
                    "port": shelly.port,
                    "outlet": 0,
                    "password": shelly.password,
                },
            ),
        }
        export = {
            name: {"type": f"jumpstarter_driver_{kind}", "config": config} for name, (kind, config) in drivers.items()
        }
        config = tmp_path / "exporter.yaml"  # JSON is YAML
        head = {"apiVersion": "jumpstarter.dev/v1alpha1", "kind": "ExporterConfig"}
        config.write_text(json.dumps({**head, "metadata": {"namespace": "default", "name": "rack"}, "export": export}))
        config.chmod(0o600)
        cli = Cli(tmp_path)
        loop = 'set -e; for name in "$@"; do j $name on; echo $name $(j $name status); done; j pdu read; cat "$0"'
        marker = tmp_path / "marker"
        marker.write_text("still on\n")
        done = cli.jmp("shell", "--exporter-config", config, "--", "sh", "-c", loop, marker, *drivers)
        assert done.returncode == 0, done
        assert done.stdout.splitlines() == [*(f"{name} on" for name in drivers), "229.5 V, 0.2 A, 45.9 VA", "still on"]
        # The end of the session switched them off again.
        assert (tasmota.relays, strip.relays[4], plug.relays[1], shelly.relays[1], board.relays[1]) == (
            {1: "OFF"},
            False,
            False,
            False,
            False,
        )
        assert pdu.sets[-1][1] == 0
        assert "Traceback" not in done.stderr and sys.executable not in done.stdout
