# SPDX-License-Identifier: GPL-3.0-or-later
"""CAN and GPIO from plays: frames to and from another process, ISO-TP, lines as a state."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from benches import Bench

MakeBench = Callable[..., Bench]
GROUP = "239.74.163.2"


@pytest.fixture
def port() -> Iterator[int]:
    """A udp_multicast bus with tests/can/can_peer.py on it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    peer = Path(__file__).parents[1] / "can" / "can_peer.py"
    with subprocess.Popen([sys.executable, peer, GROUP, str(port)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            yield port
        finally:
            process.kill()


def test_can_actions_exchange_frames_and_messages(bench: MakeBench, port: int) -> None:
    made = bench({"dut": {"jumpstarter_exporter_config": "dut.yaml"}})
    bus = {"channel": GROUP, "interface": "udp_multicast", "options": {"port": port, "hop_limit": 0}}
    ids = [{"txid": 0x7E0, "rxid": 0x7E8}, {"txid": 0x7E8, "rxid": 0x7E0}]
    links = [{**bus, "address": address, "params": {"blocking_send": True}} for address in ids]
    made.config(
        "dut",
        {
            "can": {"type": "jumpstarter_driver_can.driver.Can", "config": bus},
            "isotp": {"type": "jumpstarter_driver_can.driver.IsoTpPython", "config": links[0]},
            "ecu": {"type": "jumpstarter_driver_can.driver.IsoTpPython", "config": links[1]},
        },
    )

    def can(name: str, **options: Any) -> dict[str, Any]:
        return {"name": name, "jumpstarter.lab.can": options}

    def call(method: str, *args: Any) -> dict[str, Any]:
        return {"name": method, "jumpstarter.lab.call": {"driver": "ecu", "method": method, "args": list(args)}}

    wrong = can("Nothing like it", send=["700#01"], expect=[{"id": "708", "data": "FF"}], timeout="300ms")
    played = made.run(
        [
            can("Ask", send=["700#0A0B0C"], expect=[{"id": "708", "data": "0C0B??"}]),
            {**can("Would ask", send=["700#00"], expect=[{"id": "709"}]), "check_mode": True},
            can("Keep on", periodic={"frames": ["123#55"], "period": "20ms"}) | {"register": "kept"},
            can("See it go", expect=[{"id": "123", "count": 3}], fresh=True),
            can("Stop", stop="{{ kept.tasks }}"),
            can("Stop again", stop="{{ kept.tasks }}"),
            {**wrong, "ignore_errors": True},
            {**can("No frame", send=["7#00"]), "ignore_errors": True},
            call("start"),
            {**can("Nobody answers", driver="isotp", request="22F190", timeout="300ms"), "ignore_errors": True},
            call("recv", True, 5),
        ]
    )
    assert played.rc == 0, played.output
    asked, would, _, seen, stopped, again, late, bad = (played.result("dut", number) for number in range(8))
    assert (asked["changed"], [one["frame"] for one in asked["frames"]]) == (True, ["708#0C0B0A"])
    assert (would["changed"], would["simulated"]) == (True, True)
    assert (seen["changed"], [one["data"] for one in seen["frames"]]) == (False, ["55"] * 3)
    assert (stopped["changed"], again["changed"]) == (True, False)
    assert late["error_code"] == "timeout" and "no frame 708#FF within 0.3 s" in late["msg"]
    assert bad["error_code"] == "invalid" and "nothing was sent" in bad["msg"]
    silent, got = played.result("dut", 9), played.result("dut", 10)
    assert silent["error_code"] == "timeout" and "no answer within 0.3 s" in silent["msg"]
    assert got["value"] == {"data": "IvGQ"}
    made.wait_gone()


def test_gpio_actions_are_idempotent_and_show_what_they_change(bench: MakeBench) -> None:
    made = bench({"dut": {"jumpstarter_exporter_config": "dut.yaml"}})
    # Fake: gpiozero's mock pins. Real lines are in tests/gpio/test_gpiod_guest.py.
    made.env["GPIOZERO_PIN_FACTORY"] = "mock"
    kind = "jumpstarter_driver_raspberrypi.driver"
    made.config(
        "dut",
        {
            "reset": {"type": f"{kind}.DigitalOutput", "config": {"pin": 17}},
            "ready": {"type": f"{kind}.DigitalInput", "config": {"pin": "GPIO4", "pull_up": True}},
        },
    )

    def gpio(**options: Any) -> dict[str, Any]:
        return {"name": "Line", "jumpstarter.lab.gpio": {"driver": "reset", **options}}

    played = made.run(
        [
            gpio(),
            {**gpio(state="on"), "check_mode": True},
            {**gpio(state="on"), "diff": True},
            gpio(state="on"),
            gpio(driver="ready", wait_for="inactive", timeout="5s"),
            {**gpio(driver="ready", wait_for="active", timeout="200ms"), "ignore_errors": True},
            {**gpio(driver="ready", wait_for="rising"), "ignore_errors": True},
            {**gpio(driver="ready", state="on"), "ignore_errors": True},
        ]
    )
    assert played.rc == 0, played.output
    read, would, set_, again, waited, late, edge, wrong = (played.result("dut", number) for number in range(8))
    assert (read["changed"], read["state"]) == (False, "off")
    assert (would["changed"], would["previous"]) == (True, "off")
    assert (set_["changed"], set_["previous"], set_["state"]) == (True, "off", "on")
    assert set_["diff"] == {"before": "reset: off\n", "after": "reset: on\n"}
    assert (again["changed"], again["state"]) == (False, "on")
    assert (waited["changed"], waited["state"]) == (False, "off")
    assert late["error_code"] == "timeout"
    assert edge["error_code"] == "invalid" and "no method wait_for_edge" in edge["msg"]
    assert wrong["error_code"] == "invalid" and "no method on" in wrong["msg"]
    made.wait_gone()
