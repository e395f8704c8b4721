# SPDX-License-Identifier: Apache-2.0
"""Protects the device's network: real namespaces, BusyBox's DHCP client and resolver, and nothing left on the host."""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from dut_lab import MAC, Lab, run, until

from jumpstarter.common import commands
from jumpstarter.common.exceptions import ConfigurationError, DriverError
from jumpstarter_driver_dut_network.driver import DutNetwork


def test_a_device_gets_its_address_names_and_a_way_out(lab: Lab) -> None:
    before = lab.state()
    with lab.exporter() as net:
        assert lab.lease() == "192.168.100.50 192.168.100.1 192.168.100.1"
        assert net.get_dut_ip(MAC.upper()) == "192.168.100.50"
        [lease] = net.get_leases()
        assert (lease["mac"], lease["hostname"]) == (MAC, "board") and lease["expiry"] > time.time() + 3600
        assert net.get_dut_ip("02:00:00:00:00:99") is None
        assert lab.peer_seen_by_world() == "203.0.113.2"  # masqueraded
        status = net.status()
        assert status["interface_status"]["addresses"] == ["192.168.100.1/24"] and status["upstream"] == "up0"
        assert "masquerade" in net.get_nat_rules()
        net.add_dns_entry("update.example.org", "203.0.113.9")
        assert "203.0.113.9" in lab.ask("update.example.org")
        net.remove_dns_entry("update.example.org")
        assert "203.0.113.9" not in lab.ask("update.example.org")
        assert len(net.get_leases()) == 1  # changes forget no lease
        net.remove_address("192.168.100.50")
        net.add_address("192.168.100.51", MAC)
        assert lab.lease().startswith("192.168.100.51 ")
    assert lab.state() == before


def test_one_to_one_nat_gives_a_device_a_public_address(lab: Lab) -> None:
    before = lab.state()
    public = {"ip": "192.168.100.50", "mac": MAC, "public_ip": "203.0.113.50"}
    with lab.exporter(nat_mode="1to1", addresses=[public]) as net:
        lab.lease()
        assert lab.peer_seen_by_world() == "203.0.113.50"
        assert "dnat to 192.168.100.50" in net.get_nat_rules()
        assert lab.inside("world", "busybox", "ping", "-c", "1", "-W", "3", "203.0.113.50")
    assert lab.state() == before


def test_a_public_address_that_is_removed_is_the_hosts_no_more(lab: Lab) -> None:
    public = [{"ip": f"192.168.100.5{n}", "public_ip": f"203.0.113.5{n}"} for n in (0, 1)]
    with lab.exporter(nat_mode="1to1", addresses=public) as net:
        net.remove_address("192.168.100.50")
        net.add_address("192.168.100.52", public_ip="203.0.113.52")
        assert lab.addresses("up0") == ["203.0.113.2", "203.0.113.51", "203.0.113.52"]
        assert lab.addresses("dut0") == ["192.168.100.1"]
    assert lab.addresses("up0") == ["203.0.113.2"]


@contextmanager
def another_device(lab: Lab) -> Iterator[tuple[str, ...]]:
    """Context: a second device at the host's interface dut-1.x, a name that needs care in nft; how to ping from it."""
    other = f"{lab.name}-other"
    run("ip", "netns", "add", other)
    try:
        run("ip", "-n", f"{lab.name}-host", "link", "add", "dut-1.x", "type", "veth", "peer", "eth0", "netns", other)
        run("ip", "-n", other, "addr", "add", "192.168.101.50/24", "dev", "eth0")
        run("ip", "-n", other, "link", "set", "eth0", "up")
        run("ip", "-n", other, "route", "add", "default", "via", "192.168.101.1")
        yield ("ip", "netns", "exec", other, "busybox", "ping", "-c", "1", "-W", "1")
    finally:
        run("ip", "netns", "del", other)


def test_a_device_meets_no_other_network_of_the_host(lab: Lab) -> None:
    with another_device(lab) as ping:
        # Not of an exporter: nothing else keeps it away, and the host forwards for it.
        lab.inside("host", "ip", "address", "add", "192.168.101.1/24", "dev", "dut-1.x")
        lab.inside("host", "ip", "link", "set", "dut-1.x", "up")
        lab.inside("host", "sysctl", "-q", "-w", "net/ipv4/conf/dut-1.x/forwarding=1")
        with lab.exporter():
            lab.lease()
            assert "1 packets received" not in run(*ping, "192.168.100.50", check=False)
            there = lab.inside("dut", "busybox", "ping", "-c", "1", "-W", "1", "192.168.101.50", check=False)
            assert "1 packets received" not in there


def test_two_exporters_share_the_way_out(lab: Lab) -> None:
    before = lab.state()
    with another_device(lab) as ping:
        second = {
            "interface": "dut-1.x",
            "state_dir": str(lab.folder / "second"),
            "subnet": "192.168.101.0/24",
            "gateway_ip": "192.168.101.1",
            "dhcp_enabled": False,
            "addresses": [],
        }
        with lab.exporter(**second):
            with lab.exporter():
                run(*ping, "203.0.113.1")
            run(*ping, "203.0.113.1")  # the other's end is not ours
        with lab.exporter(), lab.exporter(killed=True, **second):
            assert lab.state()["forwarding"] == ["1\n", "1\n"]
        assert lab.state()["forwarding"] == ["0\n", "1\n"]  # of the killed one
        with lab.exporter(**second):
            pass
    until(lambda: lab.state() == before)  # the pair of links goes with the namespace, a little later


def test_an_interface_is_one_exporters(lab: Lab) -> None:
    with lab.exporter() as net:
        rules = net.get_nat_rules()
        for field, config in (
            ("interface", {"state_dir": str(lab.folder / "other")}),
            ("state_dir", {"interface": "lo"}),
        ):
            with lab.exporter(**config) as late:
                with pytest.raises(DriverError, match=f"field {field}: .* is in use by another exporter"):
                    late.status()
        assert net.get_nat_rules() == rules and lab.lease()


def test_sudo_does_for_an_exporter_that_is_not_root(lab: Lab) -> None:
    """With the real sudo; its configuration is replaced in the exporter's mount namespace only."""
    before = lab.state()
    sudoers = lab.folder / "sudoers"
    sudoers.write_text("nobody ALL=(ALL) NOPASSWD: ALL\n")
    sudoers.chmod(0o440)
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    readable = ("--inh-caps=+dac_override", "--ambient-caps=+dac_override")  # the tree may be root's alone
    script = f'mount --bind {sudoers} /etc/sudoers && exec "$@"'
    through = ("sh", "-c", script, "sh", *nobody, *readable)
    for killed in (True, False):
        with lab.exporter(killed=killed, through=through, local_ntp=True) as net:
            assert lab.lease().startswith("192.168.100.50 ")
            assert lab.peer_seen_by_world() == "203.0.113.2"
            net.add_dns_entry("a.example", "203.0.113.4")
            assert "203.0.113.4" in lab.ask("a.example")
    assert lab.state() == before
    sudoers.write_text("nobody ALL=(ALL) ALL\n")
    with lab.exporter(through=through) as net, pytest.raises(DriverError, match="needs root, or sudo without password"):
        net.status()
    assert lab.state() == before


def test_networkmanager_keeps_off_for_the_time_of_a_session(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake: nmcli, with a state of its own."""
    state = lab.folder / "managed"
    state.write_text("yes\n")
    fake = lab.folder / "bin" / "nmcli"
    fake.parent.mkdir()
    fake.write_text(
        f'#!/bin/sh\ncase "$*" in\n"-g GENERAL.NM-MANAGED device show dut0") cat {state};;\n'
        f'"device set dut0 managed "*) echo "$5" >{state};;\n*) exit 2;;\nesac\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    with lab.exporter(dhcp_enabled=False):
        assert state.read_text() == "no\n"
    assert state.read_text() == "yes\n"


def test_filters_decide_what_gets_out(lab: Lab) -> None:
    rules = [{"action": "accept", "destination": "203.0.113.0/24", "protocol": "tcp", "port": 8000}]
    with lab.exporter(filter={"egress": {"policy": "drop", "rules": rules}}):
        lab.lease()
        assert lab.peer_seen_by_world(8000) == "203.0.113.2"
        assert lab.peer_seen_by_world(8001) == ""


def test_filters_decide_what_gets_in(lab: Lab) -> None:
    lab.inside("world", "ip", "route", "add", "192.168.100.0/24", "via", "203.0.113.2")
    rules = [{"action": "accept", "source": "203.0.113.0/24", "protocol": "tcp", "port": 8001}]
    with lab.exporter(filter={"ingress": {"policy": "drop", "rules": rules}}):
        lab.lease()
        assert [lab.reached_from_world(port) for port in (8000, 8001)] == [False, True]
        assert lab.peer_seen_by_world() == "203.0.113.2"  # answers get in


def test_a_filter_holds_without_nat_too(lab: Lab) -> None:
    """The host may forward on its own account, for containers say."""
    before = lab.state()
    lab.inside("world", "ip", "route", "add", "192.168.100.0/24", "via", "203.0.113.2")
    lab.inside("host", "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
    with lab.exporter(nat_mode="none"):
        lab.lease()
        assert lab.peer_seen_by_world() == "192.168.100.50"
    with lab.exporter(nat_mode="none", filter={"egress": {"policy": "drop"}}) as net:
        lab.lease()
        assert lab.peer_seen_by_world() == "" and "drop" in net.get_nat_rules()
    lab.inside("host", "sysctl", "-q", "-w", "net.ipv4.ip_forward=0")
    assert lab.state() == before


def test_without_nat_there_is_no_way_out(lab: Lab) -> None:
    with lab.exporter(nat_mode="disabled") as net:
        assert lab.lease()
        assert lab.peer_seen_by_world() == "" and net.get_nat_rules() == ""


def test_the_time_is_told_whoever_is_asked(lab: Lab) -> None:
    with lab.exporter(local_ntp=True) as net:
        assert lab.lease().endswith(" 192.168.100.1 192.168.100.1")
        assert net.ntp_status() == {"enabled": True, "running": True}
        code = (
            "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)\n"
            "s.sendto(b'\\x23' + bytes(47), ('198.51.100.7', 123)); print(s.recv(512).hex())"
        )
        answer = bytes.fromhex(lab.inside("dut", sys.executable, "-c", code))
        assert answer[0] == 0x24 and abs(struct.unpack("!I", answer[40:44])[0] - 2_208_988_800 - time.time()) < 5


def test_an_exporter_that_is_killed_leaves_a_host_that_the_next_one_repairs(lab: Lab) -> None:
    before = lab.state()
    with lab.exporter(killed=True, local_ntp=False) as net:
        assert net.status()["nat_rules"]
    left = lab.state()
    assert "masquerade" in left["rules"] and len(left["daemons"]) == 1
    with lab.exporter(nat_mode="disabled"):
        assert "jumpstarter_dut0" not in lab.state()["rules"]
        assert len(lab.state()["daemons"]) == 2 and lab.state()["daemons"] != left["daemons"]  # exporter and dnsmasq
    assert lab.state() == before


def test_a_dhcp_server_that_died_is_started_again(lab: Lab) -> None:
    with lab.exporter() as net:
        net.get_leases()
        [pid] = [pid for pid in lab.state()["daemons"] if "dnsmasq" in Path(f"/proc/{pid}/cmdline").read_text()]
        os.kill(int(pid), 9)
        until(lambda: not Path(f"/proc/{pid}/cmdline").exists())
        net.get_leases()
        assert lab.lease()


def test_what_others_forbid_is_opened_for_the_device_only_and_closed_again(lab: Lab) -> None:
    """As Docker does it: a chain that drops what is forwarded."""
    rules = "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }"
    lab.inside("host", "nft", rules)
    before = lab.state()
    with lab.exporter():
        lab.lease()
        assert lab.peer_seen_by_world() == "203.0.113.2"
    assert lab.state() == before


def test_a_missing_interface_is_told_by_every_call(lab: Lab) -> None:
    with lab.exporter(interface="nothere") as net:
        for _ in range(2):
            with pytest.raises(DriverError, match="nothere"):
                net.status()


def test_packets_are_shown(lab: Lab) -> None:
    with lab.exporter(enable_tcpdump=True) as net:
        lab.lease()
        pinging = ["ip", "netns", "exec", f"{lab.name}-dut", "busybox", "ping", "-i", "0.1", "192.168.100.1"]
        with subprocess.Popen(pinging, stdout=subprocess.DEVNULL) as ping:
            try:
                lines = list(net.tcpdump(["-n", "-c", "2", "icmp"]))
            finally:
                ping.kill()
        assert any("192.168.100.50 > 192.168.100.1: ICMP echo request" in line for line in lines)
        with pytest.raises(ValueError, match="the option -w is not allowed here"):
            list(net.tcpdump(["-w", "x"]))


def test_the_cli(lab: Lab) -> None:
    with lab.exporter(enable_tcpdump=False) as _:
        lab.lease()
        j = [sys.executable, "-m", "jumpstarter_cli.j", "net"]
        assert "interface: dut0\nupstream: up0\n" in run(*j, "status")
        assert run(*j, "leases").startswith(MAC)
        assert run(*j, "get-ip", MAC).strip() == "192.168.100.50"
        run(*j, "add-dns", "a.example", "203.0.113.4")
        assert run(*j, "dns-entries") == "a.example 203.0.113.4\n"
        done = subprocess.run([*j, "tcpdump", "-c", "1"], capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode != 0 and "enable_tcpdump: true" in done.stderr


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"interface": "a b"}, "field interface"),
        ({"interface": "eth1; rm"}, "field interface"),
        ({"gateway_ip": "10.0.0.1"}, "field gateway_ip: 10.0.0.1 is not in the subnet"),
        ({"subnet": "x"}, "field subnet"),
        ({"nat_mode": "yes"}, "field nat_mode"),
        ({"nat_mode": "1to1"}, "needs an entry with public_ip"),
        ({"addresses": [{"ip": "192.168.100.2", "mac": "nonsense"}]}, r"field addresses\[0\]"),
        ({"addresses": [{"ip": "192.168.100.2", "hostname": "a,b"}]}, r"field addresses\[0\]"),
        ({"dns_entries": [{"hostname": "a"}]}, r"field dns_entries\[0\]"),
        ({"dns_servers": ["dns.example"]}, r"field dns_servers\[0\]"),
        ({"filter": {"egress": {"rules": [{"action": "reject"}]}}}, r"field filter.egress.rules\[0\]: action"),
        ({"filter": {"egress": {"rules": [{"action": "drop", "port": 1}]}}}, "port needs protocol"),
        ({"filter": {"egress": {"rules": [{"action": "drop", "source": "x; accept"}]}}}, r"rules\[0\]"),
        ({"filter": {"egress": "drop"}}, "field filter.egress: must have policy"),
        ({"filter": {"egress": {"default": "drop"}}}, "field filter.egress: there is no field default"),
        ({"filter": ["egress"]}, "field filter: must have egress and ingress"),
        ({"dns_entries": ["a.example"]}, r"field dns_entries\[0\]"),
        ({"addresses": [{"ip": "192.168.100.2", "mac": 40940373896}]}, "YAML needs the quotes"),
    ],
)
def test_mistakes_in_the_configuration_are_found_before_anything_is_changed(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        DutNetwork(**{"interface": "dut0", **fields})


@pytest.mark.parametrize(
    "args", [["-w", "/x"], ["-i", "eth0"], ["-z", "sh"], ["-nr/x"], ["-c", "-w"], ["--interface=x"]]
)
def test_tcpdump_cannot_be_made_to_do_something_else(args: list[str]) -> None:
    from jumpstarter_driver_dut_network.driver import _tcpdump_arguments

    with pytest.raises(ValueError, match="tcpdump"):
        _tcpdump_arguments(args)
    assert _tcpdump_arguments(["-nn", "-c", "5", "port", "80"])


def test_tcpdump_ends_with_whoever_looks_at_its_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not some time later, by the garbage collector, when the loop that reaps it may be gone."""
    ended: list[bool] = []

    async def running(*_: Any, **__: Any) -> AsyncGenerator[tuple[bytes, bytes, int | None], None]:
        try:
            yield b"one packet\n", b"", None
            yield b"another\n", b"", None
        finally:
            ended.append(True)

    monkeypatch.setattr(commands, "stream_command", running)

    async def test() -> None:
        lines = DutNetwork(interface="dut0", enable_tcpdump=True, state_dir=str(tmp_path)).tcpdump()
        assert await anext(lines) == "one packet"
        await lines.aclose()
        assert ended == [True]

    asyncio.run(test())


def test_a_call_that_is_under_way_as_the_session_ends_does_not_bring_the_network_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    net = DutNetwork(interface="dut0", state_dir=str(tmp_path))
    renewed: list[bool] = []
    monkeypatch.setattr(net, "_renew", lambda: renewed.append(True))
    net.close()
    for call in (net.get_nat_rules, lambda: net.add_dns_entry("late.example", "192.168.100.9")):
        with pytest.raises(ConnectionError, match="taken down with the session"):
            call()
    assert renewed == []
    net.reset()
    assert renewed == [True]
