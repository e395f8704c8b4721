# SPDX-License-Identifier: GPL-3.0-or-later
"""One play over esp32, pi-pico, probe-rs and corellium: flashed with the usual action, and only once."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from benches import Bench
from fake_corellium import TOKEN, FakeCorellium
from fake_esp32 import FakeEsp32OnPty
from fake_pico import FakePico, make_uf2
from test_probe_rs_driver import Tool


def test_microcontrollers_are_flashed_and_a_virtual_device_is_switched_by_a_play(
    bench: Callable[..., Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        esp = FakeEsp32OnPty(str(tmp_path / "ttyESP"))
        stack.callback(esp.close)
        pico = FakePico(tmp_path / "RPI-RP2")
        stack.callback(pico.close)
        service = FakeCorellium(tmp_path)
        stack.callback(service.close)
        (tmp_path / "tool").mkdir()
        tool = Tool(tmp_path / "tool")
        pico.enter_bootloader()
        (tmp_path / "token").write_text(TOKEN)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(service.authority))
        kept = {"state_dir": str(tmp_path / "state"), "staging_dir": str(tmp_path / "staged")}
        app, uf2, elf = (tmp_path / name for name in ("app.bin", "app.uf2", "app.elf"))
        app.write_bytes(b"\xe9" + os.urandom(30_000))
        uf2.write_bytes(make_uf2(20))
        elf.write_bytes(b"\x7fELF" + os.urandom(2000))
        made = bench({"dut": {"jumpstarter_exporter_config": "dut.yaml"}})
        made.config(
            "dut",
            {
                "esp": {
                    "type": "jumpstarter_driver_esp32.driver.Esp32Flasher",
                    "config": {"before": "no-reset", "after": "no-reset", **kept},
                    "children": {"serial": {"ref": "console"}},
                },
                "console": {"type": "jumpstarter_driver_pyserial.driver.PySerial", "config": {"url": esp.url}},
                "pico": {
                    "type": "jumpstarter_driver_pi_pico.driver.PiPicoFlasher",
                    "config": {"volume": str(pico.mount), "settle_seconds": 0.1, **kept},
                },
                "probe": {
                    "type": "jumpstarter_driver_probe_rs.driver.ProbeRs",
                    "config": {"probe_rs_path": str(tool.path), "chip": "STM32F401RE", **kept},
                },
                "car": {
                    "type": "jumpstarter_driver_corellium.driver.Corellium",
                    "config": {
                        "project_id": "Default Project",
                        "device_name": "car",
                        "device_flavor": "kronos",
                        "api_host": service.host,
                        "api_token_file": str(tmp_path / "token"),
                        "api_interval": 0.01,
                    },
                },
            },
        )
        flash = {"driver": "esp", "src": str(app), "target": "0x10000"}
        played = made.run(
            [
                {"name": "ESP32", "jumpstarter.lab.flash": flash},
                {"name": "ESP32 again", "jumpstarter.lab.flash": flash, "register": "again"},
                {"name": "It was not", "ansible.builtin.assert": {"that": ["not again.changed", "again.verified"]}},
                {"name": "Pico", "jumpstarter.lab.flash": {"driver": "pico", "src": str(uf2)}},
                {"name": "Probe", "jumpstarter.lab.flash": {"driver": "probe", "src": str(elf)}},
                {"name": "Car", "jumpstarter.lab.power": {"driver": "car.power", "state": "on"}, "register": "car"},
                {
                    "name": "Memory",
                    "jumpstarter.lab.call": {"driver": "probe", "method": "read", "args": ["b8", "0x20000001", 2]},
                },
            ],
            timeout=120,
        )
        assert played.rc == 0, played.output
        assert played.result("dut")["value"] == ["01", "02"]
        data = app.read_bytes()
        assert esp.chip.flash[0x10000 : 0x10000 + len(data)] == data
        assert len(pico.flash) == 20
        assert tool.flash.startswith(elf.read_bytes())
        assert [one["name"] for one in service.instances.values()] == ["car"]
        made.wait_gone()
