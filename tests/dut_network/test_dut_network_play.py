# SPDX-License-Identifier: GPL-3.0-or-later
"""A play gives a device a network and a disk on it, by `jumpstarter.lab.call`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benches import Bench
from dut_lab import MAC, Lab

IQN = "iqn.2024-06.dev.jumpstarter:target1"


def test_a_device_gets_its_name_and_its_disk_from_a_play(lab: Lab, bench: Callable[..., Bench], tmp_path: Path) -> None:
    before = lab.state()
    made = bench({"dut": {"jumpstarter_exporter_config": "dut.yaml"}})
    made.prefix = ["ip", "netns", "exec", f"{lab.name}-host"]
    made.config(
        "dut",
        {
            "disks": {
                "type": "jumpstarter_driver_iscsi.driver.ISCSI",
                "config": {"root_dir": str(tmp_path / "root"), "host": "192.168.100.1", "port": 0},
            },
            "net": {
                "type": "jumpstarter_driver_dut_network.driver.DutNetwork",
                "config": {"interface": "dut0", "state_dir": str(tmp_path / "state"), "dns_servers": []},
            },
        },
    )

    def call(driver: str, method: str, *args: Any) -> dict[str, Any]:
        return {
            "name": f"{driver}.{method}",
            "jumpstarter.lab.call": {"driver": driver, "method": method, "args": list(args)},
            "register": method,
        }

    inside = f"ip netns exec {lab.name}-dut"
    ask = f"{inside} ip address add 192.168.100.9/24 dev eth0 && {inside} busybox nslookup disks.test 192.168.100.1"
    disk = f"driver=iscsi,transport=tcp,portal=192.168.100.1:{{{{ get_port.value | int }}}},target={IQN},lun=1,"
    disk += "initiator-name=iqn.2024-06.test:dut,user={{ get_credentials.value.user }},password-secret=secret"
    secret = "secret,id=secret,data={{ get_credentials.value.password }}"
    write = f"{inside} qemu-io --object '{secret}' -c 'write -P 0xa5 0 4k' -c flush --image-opts '{disk}'"
    played = made.run(
        [
            call("net", "add_address", "192.168.100.50", MAC, "board"),
            call("net", "add_dns_entry", "disks.test", "192.168.100.1"),
            call("net", "add_dns_entry", "two words", "192.168.100.1") | {"ignore_errors": True},
            call("disks", "start"),
            call("disks", "add_lun", "data", "data.img", 1),
            call("disks", "get_port"),
            call("disks", "get_credentials"),
            {"name": "Resolve", "ansible.builtin.shell": ask, "delegate_to": "localhost"},
            {"name": "Write", "ansible.builtin.shell": write, "delegate_to": "localhost"},
            call("net", "status"),
        ],
        play={"vars": {"ansible_python_interpreter": "{{ ansible_playbook_python }}"}},
    )
    assert played.rc == 0, played.output
    assert "'two words' is no host name" in played.result("dut", 2)["msg"]
    assert (tmp_path / "root/data.img").read_bytes()[:4097] == b"\xa5" * 4096 + b"\0"
    status = played.result("dut")["value"]
    assert status["dns_entries"] == [{"hostname": "disks.test", "ip": "192.168.100.1"}]
    made.wait_gone()
    assert lab.state() == before
