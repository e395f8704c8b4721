# SPDX-License-Identifier: GPL-3.0-or-later
"""Plays switch supplies of every kind: what they report is what the hardware confirmed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benches import Bench
from brokers import mosquitto
from fake_http_devices import FakeEnerGenie, FakeShelly1
from fake_tasmota import FakeTasmota
from snmp_pdu import RARITAN_PDU, snmp_pdu
from test_noyito_relay import FakeSerialBoard

MakeBench = Callable[..., Bench]


def test_power_of_an_snmp_pdu_in_check_mode_for_real_and_with_a_stuck_relay(bench: MakeBench, tmp_path: Path) -> None:
    with snmp_pdu(tmp_path / "pdu", RARITAN_PDU) as pdu:
        (tmp_path / "auth").write_text("auth-pass-123\n")
        (tmp_path / "priv").write_text("priv-pass-123\n")
        keys = {"auth_key_file": str(tmp_path / "auth"), "priv_key_file": str(tmp_path / "priv")}
        access = {k: v for k, v in pdu.sha5.items() if k not in ("auth_key", "priv_key")} | keys
        made = bench({"dut": {"jumpstarter_exporter_config": "dut.yaml"}})
        made.config(
            "dut",
            {
                "power": {
                    "type": "jumpstarter_driver_snmp.driver.SNMPServer",
                    "config": {**access, "plug": 2, "settle": 0.3},
                },
                "broken": {
                    "type": "jumpstarter_driver_pdu.driver.Pdu",
                    "config": {**access, "model": "raritan-px2", "outlet": 5, "settle": 0.3},
                },
            },
        )
        pdu.break_it(stuck=["5"])
        broken = {"driver": "broken"}
        played = made.run(
            [
                {"name": "Would", "jumpstarter.lab.power": {"state": "on"}, "check_mode": True, "diff": True},
                {"name": "Still off", "jumpstarter.lab.power": {"state": "status"}},
                {"name": "On", "jumpstarter.lab.power": {"state": "on"}, "diff": True},
                {"name": "On already", "jumpstarter.lab.power": {"state": "on"}},
                {"name": "Stuck", "jumpstarter.lab.power": {"state": "on", **broken}, "ignore_errors": True},
                {"name": "Call", "jumpstarter.lab.call": {"driver": "power", "method": "status"}},
            ]
        )
        assert played.rc == 0, played.output
        would, still_off, on, again, stuck, call = (played.result("dut", n) for n in range(6))
        assert would["changed"] is True and "on" in str(would["diff"]["after"])
        assert (still_off["state"], still_off["changed"]) == ("off", False)
        assert (on["state"], on["changed"]) == ("on", True)
        assert (again["state"], again["changed"]) == ("on", False)
        assert 'was told to switch on and still reports "off"' in stuck["msg"], stuck
        assert "ignored=1" in played.stdout
        assert call["value"] == "on"
        # The end of the play gives the outlets back, off; check mode sent nothing.
        outlets = [int(oid.rpartition(".")[2]) for oid, value in pdu.sets if value == 1]
        assert outlets == [2, 5]
        made.wait_gone()
        assert (f"{next(iter(RARITAN_PDU['sets']))}.2", 0) in pdu.sets
        assert "pass-123" not in played.output


def test_power_of_the_other_supplies(bench: MakeBench, tmp_path: Path) -> None:
    with ExitStack() as stack:
        (tmp_path / "mqtt").mkdir()
        broker = stack.enter_context(mosquitto(tmp_path / "mqtt"))
        tasmota = stack.enter_context(FakeTasmota("plug").connected(broker.plain))
        strip, plug = FakeEnerGenie(), FakeShelly1()
        stack.enter_context(strip.running())
        stack.enter_context(plug.running())
        board = FakeSerialBoard()
        stack.callback(board.close)
        topics = {"cmnd_topic": "cmnd/plug/POWER", "stat_topic": "stat/plug/POWER"}
        relay = f"{plug.url}/relay/0"
        drivers = {
            "tasmota.driver.TasmotaPower": {"host": "127.0.0.1", "port": broker.plain, "tls": False, **topics},
            "energenie.driver.EnerGenie": {"host": strip.address, "slot": 3},
            "http_power.driver.HttpPower": {
                "power_on": {"url": f"{relay}?turn=on"},
                "power_off": {"url": f"{relay}?turn=off"},
                "power_status": {"url": relay, "path": "ison"},
            },
            "noyito_relay.driver.NoyitoPowerSerial": {"port": board.port},
        }
        export = {
            kind.partition(".")[0]: {"type": f"jumpstarter_driver_{kind}", "config": config}
            for kind, config in drivers.items()
        }
        made = bench({"dut": {"jumpstarter_exporter_config": "dut.yaml"}})
        made.config("dut", export, powerOffOnEnd=False)
        strip.stuck = {3}
        tasks = [
            {
                "name": name,
                "jumpstarter.lab.power": {"driver": name, "state": "on"},
                "ignore_errors": name == "energenie",
            }
            for name in export
        ]
        played = made.run(tasks)
        assert played.rc == 0, played.output
        results = dict(zip(export, (played.result("dut", n) for n in range(len(export))), strict=True))
        stuck = results.pop("energenie")
        assert "socket 3 of the power strip" in stuck["msg"] and 'still reports "off"' in stuck["msg"]
        assert [(r["state"], r["changed"]) for r in results.values()] == [("on", True)] * 3
        made.wait_gone()
        assert (tasmota.relays[1], plug.relays[1], board.relays[1], strip.holder) == ("ON", True, True, None)
