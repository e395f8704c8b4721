# SPDX-License-Identifier: GPL-3.0-or-later
"""Wrong input: one line that says what is wrong and where, no traceback, nothing changed, nothing left behind."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from benches import MOCK, Bench

MakeBench = Callable[..., Bench]
Task = dict[str, Any]


@pytest.fixture
def board(bench: MakeBench) -> Iterator[Bench]:
    made = bench({"dut": {"jumpstarter_exporter_config": "dut.yaml"}})
    made.config("dut", MOCK)
    yield made
    made.wait_gone()


def failure(board: Bench, task: Task, *args: str) -> dict[str, Any]:
    """Result of a task that has to fail with one line for people."""
    played = board.run([{"name": "Do it", **task}], *args, timeout=120)
    assert played.rc != 0, played.output
    assert "Traceback" not in played.output
    result = played.result("dut")
    assert result["outcome"] in ("failed", "unreachable")
    assert "\n" not in result["msg"].strip()
    assert "dut: " in result["msg"]
    assert not result.get("changed")
    return result


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"jumpstarter.lab.power": {"driver": "pwoer"}}, ["pwoer", "power"]),
        ({"jumpstarter.lab.call": {"driver": "power", "method": "explode"}}, ["explode", "power"]),
        ({"jumpstarter.lab.call": {"driver": "power", "method": "on", "args": [1, 2]}}, ["on"]),
        ({"jumpstarter.lab.call": {"driver": "power", "method": "on", "kwargs": {"fast": True}}}, ["on", "fast"]),
        ({"jumpstarter.lab.flash": {"src": "/no/such.img"}}, ["/no/such.img", "nothing was changed"]),
        ({"jumpstarter.lab.flash": {"src": "dut.yaml"}}, ["storage"]),
        ({"jumpstarter.lab.boot": {}}, ["console"]),
        ({"jumpstarter.lab.forward": {"driver": "power"}}, ["power", "connect"]),
        ({"jumpstarter.lab.operation": {"id": "none-7"}}, ["none-7"]),
        ({"ansible.builtin.raw": "true"}, ["console"]),
    ],
)
def test_wrong_names_and_types_are_named(board: Bench, task: Task, words: list[str]) -> None:
    result = failure(board, task)
    for word in words:
        assert word in result["msg"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("kind: [unclosed", ["dut.yaml"]),
        ("just text", ["dut.yaml"]),
        ("apiVersion: jumpstarter.dev/v1alpha1\nkind: Surprise\n", ["dut.yaml", "kind"]),
    ],
)
def test_unreadable_configuration_is_named(board: Bench, content: str, words: list[str]) -> None:
    (board.folder / "dut.yaml").write_text(content)
    result = failure(board, {"jumpstarter.lab.lease": {}})
    for word in words:
        assert word in result["msg"]


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        ({"type": "no_such_package.driver.Thing"}, ["no_such_package", "power"]),
        ({"type": "jumpstarter_driver_power.driver.NoSuchThing"}, ["NoSuchThing"]),
        ({"type": "jumpstarter_driver_power.driver.MockPower", "config": {"colour": "red"}}, ["colour", "power"]),
    ],
)
def test_unknown_driver_type_or_field_is_named(board: Bench, driver: dict[str, Any], words: list[str]) -> None:
    board.config("dut", {"power": driver})
    result = failure(board, {"jumpstarter.lab.lease": {}})
    for word in words:
        assert word in result["msg"]


def test_exporter_that_nobody_runs_is_named(bench: MakeBench) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    made = bench({"dut": {"jumpstarter_endpoint": address, "jumpstarter_insecure": True}})
    assert address in failure(made, {"jumpstarter.lab.lease": {}})["msg"]
    made.wait_gone()


def test_port_in_use_is_named(bench: MakeBench) -> None:
    made = bench({"dut": {"jumpstarter_exporter_config": "dut.yaml"}})
    network = "jumpstarter_driver_network.driver.TcpNetwork"
    made.config("dut", {"web": {"type": network, "config": {"host": "127.0.0.1", "port": 9}}})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = failure(made, {"jumpstarter.lab.forward": {"driver": "web", "port": port}})
    assert str(port) in result["msg"]
    made.wait_gone()


def test_device_that_is_not_there_is_named(bench: MakeBench) -> None:
    made = bench({"dut": {"jumpstarter_exporter_config": "dut.yaml"}})
    serial = {"type": "jumpstarter_driver_pyserial.driver.PySerial", "config": {"url": "/dev/ttyNONE7"}}
    made.config("dut", {"console": serial})
    result = failure(made, {"jumpstarter.lab.console": {"pattern": "x", "timeout": "2s"}})
    assert "/dev/ttyNONE7" in result["msg"]
    made.wait_gone()


def test_device_without_permission_is_named(bench: MakeBench, tmp_path: Path) -> None:
    device = tmp_path / "ttyTEST"
    device.touch()
    device.chmod(0)
    made = bench({"dut": {"jumpstarter_exporter_config": "dut.yaml"}})
    if os.getuid() == 0:
        # Root may open everything: for this run it gives up that privilege, and the file belongs to somebody else.
        os.chown(device, 65534, 65534)
        capabilities = "-dac_override,-dac_read_search"
        made.prefix = ["setpriv", f"--bounding-set={capabilities}", f"--inh-caps={capabilities}"]
    serial = {"type": "jumpstarter_driver_pyserial.driver.PySerial", "config": {"url": str(device)}}
    made.config("dut", {"console": serial})
    result = failure(made, {"jumpstarter.lab.console": {"pattern": "x", "timeout": "2s"}})
    assert str(device) in result["msg"] and "permission" in result["msg"].lower()
    made.wait_gone()
