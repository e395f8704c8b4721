# SPDX-License-Identifier: Apache-2.0
"""What `lease` publishes makes the stock ssh client reach the device, whatever the host is called."""

from __future__ import annotations

import shlex
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from agent_harness import RunningAgent, write_config


@pytest.mark.parametrize("name", ["dut-1", "dut 1's 100%h"])
def test_ssh_client_reaches_the_device_through_the_agent(agent: RunningAgent, tmp_path: Path, name: str) -> None:
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)

        def answer() -> None:
            client, _ = server.accept()
            with client:
                client.sendall(b"SSH-2.0-device\r\n")
                heard.append(client.recv(100))

        thread = threading.Thread(target=answer)
        thread.start()
        driver = {"type": "jumpstarter_driver_network.driver.TcpNetwork"}
        config = {"host": "127.0.0.1", "port": server.getsockname()[1]}
        path = write_config(tmp_path / "ssh.yaml", {"ssh": {**driver, "config": config}})
        facts = agent.ask("lease", {"name": name, "reach": {"exporter_config": str(path)}})["ssh"]
        arguments = shlex.split(facts["ansible_ssh_common_args"])
        run = subprocess.run(
            ["ssh", "-v", "-F", "none", *arguments, "-p", str(facts["ansible_port"]), facts["ansible_host"], "true"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        thread.join(30)
    assert heard and heard[0].startswith(b"SSH-2.0-"), run.stderr
    assert "remote software version device" in run.stderr


def test_two_leases_never_share_a_name_or_host_keys(agent: RunningAgent, tmp_path: Path) -> None:
    driver = {"type": "jumpstarter_driver_network.driver.TcpNetwork", "config": {"host": "127.0.0.1", "port": 9}}
    path = write_config(tmp_path / "ssh.yaml", {"ssh": driver})
    host = {"name": "dut", "reach": {"exporter_config": str(path)}}
    first = agent.ask("lease", host)["ssh"]
    assert agent.ask("lease", host)["ssh"] == first
    agent.ask("lease", host, state="absent")
    second = agent.ask("lease", host)["ssh"]
    assert second["ansible_host"] != first["ansible_host"]
    assert second["ansible_ssh_common_args"] != first["ansible_ssh_common_args"]


def test_board_without_ssh_publishes_none(agent: RunningAgent, tmp_path: Path) -> None:
    path = write_config(tmp_path / "power.yaml", {"power": {"type": "jumpstarter_driver_power.driver.MockPower"}})
    assert "ssh" not in agent.ask("lease", {"name": "dut", "reach": {"exporter_config": str(path)}})
