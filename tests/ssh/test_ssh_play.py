# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible's own ssh connection through the lease, with a key that only the exporter has."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from benches import Bench
from ssh_server import SshServer


def test_ordinary_modules_run_with_the_exporters_key(
    bench: Callable[..., Bench], server: SshServer, tmp_path: Path
) -> None:
    made = bench(
        {"dut": {"jumpstarter_exporter_config": "dut.yaml"}},
        ansible_user=server.user,
        ansible_python_interpreter=sys.executable,
    )
    tcp = {"type": "jumpstarter_driver_network.driver.TcpNetwork", "config": {"host": "127.0.0.1", "port": server.port}}
    wrapper = {
        "type": "jumpstarter_driver_ssh.driver.SSHWrapper",
        "config": {"default_username": server.user, "ssh_identity_file": str(server.key)},
        "children": {"tcp": tcp},
    }
    made.config("dut", {"ssh": wrapper})
    copied = tmp_path / "copied"
    # Pipelining: one connection for the module, where the shared one of ControlPersist would outlive the test.
    over_ssh = {"ansible_connection": "ansible.builtin.ssh", "ansible_pipelining": True}
    played = made.run(
        [
            {"name": "Lease", "jumpstarter.lab.lease": {}},
            {
                "name": "Key",
                "jumpstarter.lab.forward": {"driver": "ssh", "method": "agent", "kind": "unix"},
                "register": "key",
            },
            {
                "name": "Use it",
                "ansible.builtin.set_fact": {
                    "ansible_ssh_extra_args": "-F none -o IdentityAgent={{ key.path }} -o ControlPath=none"
                },
            },
            {
                "name": "Write",
                "ansible.builtin.command": {"argv": ["cp", str(server.log), str(copied)]},
                "vars": over_ssh,
            },
        ],
        timeout=120,
    )
    assert played.rc == 0, played.output
    assert "Accepted publickey" in copied.read_text()
    assert server.connections >= 1
    assert "PRIVATE" not in played.output
    made.wait_gone()
