# SPDX-License-Identifier: Apache-2.0
"""A network of its own for the device: DHCP, DNS, time, and a way out through the exporter that can be filtered."""

from __future__ import annotations

import ipaddress
import json
import re
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import Driver, export
from jumpstarter_driver_dut_network.dnsmasq import Dnsmasq, leases
from jumpstarter_driver_dut_network.host import Host, HostError, run
from jumpstarter_driver_dut_network.ntp import NtpServer
from jumpstarter_driver_dut_network.settings import (
    check_entry,
    check_hostname,
    check_interface,
    check_ip,
    check_mac,
    filter_rules,
)

__all__ = ["DutNetwork"]

_MODES: Final = ("masquerade", "1to1", "disabled", "none")
#: Options of tcpdump that neither choose another interface nor read, write or run anything on the exporter.
_TCPDUMP: Final = re.compile(r"-(n{1,2}|e|v{1,3}|q|t{1,5}|A|x{1,2}|X{1,2}|S|p|#|[cs]\d+)")
_TCPDUMP_WITH_NUMBER: Final = ("-c", "-s")
_TCPDUMP_SECONDS: Final = 24 * 3600.0


@dataclass(kw_only=True)
class DutNetwork(Driver):
    """Sets up the interface that leads to the device, for the time of a session. Needs root, or ``sudo -n``.

    interface: that leads to the device; nothing else should be there. subnet, gateway_ip: of the device's network.
    upstream_interface: where the way out is; that of the default route by default.
    nat_mode: ``masquerade`` (devices share the exporter's address), ``1to1`` (those with a public_ip have that, on
    public_interface), ``disabled`` or ``none``: no way out is made (what the host itself forwards is up to ``filter``).
    dhcp_enabled, dhcp_range_start, dhcp_range_end: DHCP and DNS. addresses: of devices (ip, and mac, hostname,
    public_ip). dns_servers: that names are asked for. dns_entries: names of our own (hostname, ip).
    local_ntp: answer questions for the time, whatever server they are sent to. enable_tcpdump: allow `tcpdump`.
    filter: ``egress`` and ``ingress``, each with ``policy`` and ``rules`` (action, source, destination,
    protocol, port).
    state_dir: for leases and the list of what was changed on the host; all of that is taken back at the end, also (at
    the next start) when the exporter was killed.
    """

    driver_type = "network"

    interface: str
    subnet: str = "192.168.100.0/24"
    gateway_ip: str = "192.168.100.1"
    upstream_interface: str | None = None
    dhcp_enabled: bool = True
    dhcp_range_start: str = "192.168.100.100"
    dhcp_range_end: str = "192.168.100.200"
    addresses: list[dict[str, str]] = field(default_factory=list)
    dns_servers: list[str] = field(default_factory=lambda: ["8.8.8.8", "8.8.4.4"])
    dns_entries: list[dict[str, str]] = field(default_factory=list)
    local_ntp: bool = False
    enable_tcpdump: bool = False
    filter: dict[str, Any] | None = None
    state_dir: str | None = None
    nat_mode: str = "masquerade"
    public_interface: str | None = None

    _lock: threading.RLock = field(init=False, repr=False, default_factory=threading.RLock)
    _folder: Path = field(init=False, repr=False)
    _network: ipaddress.IPv4Network = field(init=False, repr=False)
    _rules: dict[str, tuple[str, list[str]]] = field(init=False, repr=False)
    _host: Host = field(init=False, repr=False)
    _dnsmasq: Dnsmasq = field(init=False, repr=False)
    _ntp: NtpServer = field(init=False, repr=False)
    _upstream: str | None = field(init=False, repr=False, default=None)
    _forwarded: list[str] = field(init=False, repr=False, default_factory=list)
    _is_up: bool = field(init=False, repr=False, default=False)
    _over: bool = field(init=False, repr=False, default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_interface(self.interface, "field interface")
        for name in ("upstream_interface", "public_interface"):
            if (other := getattr(self, name)) is not None:
                check_interface(other, f"field {name}")
        if self.nat_mode not in _MODES:
            raise ConfigurationError(f"field nat_mode: {self.nat_mode!r} is not one of {', '.join(_MODES)}")
        self._check_addresses()
        self._rules = filter_rules(self.filter)
        self._folder = Path(self.state_dir or f"/var/lib/jumpstarter/dut-network-{self.interface}")
        self._host = Host(self._folder, self.interface, self.logger)
        self._dnsmasq = Dnsmasq(self._folder, self.logger)
        self._ntp = NtpServer(self.gateway_ip, self.logger)

    @classmethod
    def client(cls) -> str:
        """Import path of the client class."""
        return "jumpstarter_driver_dut_network.client.DutNetworkClient"

    def _check_addresses(self) -> None:
        try:
            self._network = ipaddress.IPv4Network(self.subnet, strict=False)
        except ValueError as error:
            raise ConfigurationError(f"field subnet: {error}") from None
        for name in ("gateway_ip", "dhcp_range_start", "dhcp_range_end"):
            value = getattr(self, name)
            try:
                inside = ipaddress.IPv4Address(value) in self._network
            except ValueError as error:
                raise ConfigurationError(f"field {name}: {error}") from None
            if not inside and (name == "gateway_ip" or self.dhcp_enabled):
                raise ConfigurationError(f"field {name}: {value} is not in the subnet {self._network}")
        for number, entry in enumerate(self.addresses):
            try:
                self.addresses[number] = check_entry(entry, self._network)
            except ValueError as error:
                raise ConfigurationError(f"field addresses[{number}]: {error}") from None
        for number, entry in enumerate(self.dns_entries):
            try:
                self.dns_entries[number] = {"hostname": check_hostname(entry["hostname"]), "ip": check_ip(entry["ip"])}
            except (KeyError, TypeError, ValueError) as error:
                raise ConfigurationError(f"field dns_entries[{number}]: {error} (hostname, ip)") from None
        for number, server in enumerate(self.dns_servers):
            try:
                check_ip(server)
            except ValueError as error:
                raise ConfigurationError(f"field dns_servers[{number}]: {error}") from None
        if self.nat_mode == "1to1" and not any(entry.get("public_ip") for entry in self.addresses):
            raise ConfigurationError("field addresses: nat_mode 1to1 needs an entry with public_ip")

    # --- what clients ask ---------------------------------------------------------------------------------------

    @export(readonly=True)
    def status(self) -> dict[str, Any]:
        """The interface, its addresses, NAT, leases, names and rules."""
        with self._lock:
            self._require()
            link = self._host.link(self.interface)
            return {
                "interface_status": {
                    "name": self.interface,
                    "exists": True,
                    "addresses": [f"{a['local']}/{a['prefixlen']}" for a in link.get("addr_info", [])],
                },
                "interface": self.interface,
                "upstream": self._upstream,
                "subnet": self.subnet,
                "nat_mode": self.nat_mode,
                "dhcp_enabled": self.dhcp_enabled,
                "leases": leases(self._dnsmasq.lease_file),
                "dns_entries": list(self.dns_entries),
                "nat_rules": self._nat_rules(),
            }

    @export(readonly=True)
    def ntp_status(self) -> dict[str, bool]:
        """Of the local time server: ``enabled`` and ``running``."""
        return {"enabled": self.local_ntp, "running": self._ntp.running}

    @export(readonly=True)
    def get_dut_ip(self, mac: str) -> str | None:
        """The address that the device with this MAC address has been given; None when there is no lease."""
        wanted = check_mac(mac)
        return next((lease["ip"] for lease in self.get_leases() if lease["mac"].lower() == wanted), None)

    @export(readonly=True)
    def get_leases(self) -> list[dict[str, Any]]:
        """DHCP leases: ``mac``, ``ip``, ``hostname`` and ``expiry`` (seconds since 1970)."""
        with self._lock:
            self._require()
            return leases(self._dnsmasq.lease_file)

    @export
    def add_address(self, ip: str, mac: str | None = None, hostname: str = "", public_ip: str | None = None) -> None:
        """Give a device (mac) this address when it asks, or (public_ip) make one reachable from outside."""
        entry = check_entry(
            {"ip": ip, "mac": mac or "", "hostname": hostname, "public_ip": public_ip or ""}, self._network
        )
        with self._lock:
            self._require()
            self.addresses = [*(other for other in self.addresses if other["ip"] != entry["ip"]), entry]
            self._changed()

    @export
    def remove_address(self, ip: str) -> None:
        """Forget an `add_address`. ValueError when there is none with that address."""
        with self._lock:
            self._require()
            left = [entry for entry in self.addresses if entry["ip"] != check_ip(ip)]
            if len(left) == len(self.addresses):
                raise ValueError(f"there is no entry with the address {ip}")
            self.addresses = left
            self._changed()

    @export(readonly=True)
    def get_nat_rules(self) -> str:
        """The rules that are in force, as nft lists them."""
        with self._lock:
            self._require()
            return self._nat_rules()

    @export(readonly=True)
    def get_dns_entries(self) -> list[dict[str, str]]:
        """Our own names: ``hostname`` and ``ip``."""
        return list(self.dns_entries)

    @export
    def add_dns_entry(self, hostname: str, ip: str) -> None:
        """Let the device find this name at this address."""
        entry = {"hostname": check_hostname(hostname), "ip": check_ip(ip)}
        with self._lock:
            self._require()
            self.dns_entries = [*(other for other in self.dns_entries if other["hostname"] != hostname), entry]
            self._changed()

    @export
    def remove_dns_entry(self, hostname: str) -> None:
        """Forget a name. ValueError when it is not known."""
        with self._lock:
            self._require()
            left = [entry for entry in self.dns_entries if entry["hostname"] != hostname]
            if len(left) == len(self.dns_entries):
                raise ValueError(f"there is no DNS entry for {hostname}")
            self.dns_entries = left
            self._changed()

    @export
    async def tcpdump(self, args: list[str] | None = None) -> AsyncGenerator[str, None]:
        """Lines of tcpdump on the device's interface, until the caller has enough.

        args: a filter, and options that only change what is shown (-n, -e, -v, -c NUMBER, ...).
        """
        from jumpstarter.common.commands import stream_command

        if not self.enable_tcpdump:
            raise PermissionError("tcpdump is not allowed: the configuration must say enable_tcpdump: true")
        command = ["tcpdump", "-i", self.interface, "-l", *_tcpdump_arguments(args or [])]
        rest, complaint, status = b"", b"", None
        # Closed here: who has enough shall not leave the program to the garbage collector.
        async with aclosing(stream_command(command, timeout=_TCPDUMP_SECONDS, name="tcpdump")) as items:
            async for out, err, code in items:
                complaint, status = (complaint + err)[-2000:], code
                *lines, rest = (rest + out).split(b"\n")
                for line in lines:
                    yield line.decode(errors="replace")
        if rest:
            yield rest.decode(errors="replace")
        if status:
            said = complaint.decode(errors="replace").strip().splitlines()
            raise OSError(f"tcpdump: {said[-1] if said else f'exit status {status}'}")

    # --- life ---------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Start of a session: set the network up. When that fails, every call tries again and says why."""
        super().reset()
        with self._lock:
            self._over = False
            try:
                self._renew()
            except OSError as error:
                self.logger.error("the network of %s is not set up: %s", self.interface, error)

    def close(self) -> None:
        """End of the session: everything on the host is as it was."""
        with self._lock:
            self._over = True
            try:
                if self._host.taken:
                    self._down()
            finally:
                self._host.release()
                super().close()

    def _require(self) -> None:
        if self._over:  # a call was under way in its thread when the session ended: nobody would take it down again
            raise ConnectionError(f"the network of {self.interface} was taken down with the session")
        if self._is_up and self.dhcp_enabled and not self._dnsmasq.running:
            self.logger.error("%s; starting it again", self._dnsmasq.complaint())
            self._start_dnsmasq()
        if not self._is_up:
            self._renew()

    def _renew(self) -> None:
        """Take back what is there, also of an exporter that was killed, and set everything up."""
        self._host.take()
        self._down()
        try:
            self._up()
        except OSError:
            self._host.release()
            raise

    def _up(self) -> None:
        host = self._host
        host.link(self.interface)  # it exists
        try:
            host.unmanage(self.interface)
            host.address(self.interface, f"{self.gateway_ip}/{self._network.prefixlen}")
            host.up(self.interface)
            self._upstream = self.upstream_interface
            if self.nat_mode in ("masquerade", "1to1"):
                self._upstream = self.upstream_interface or _default_route()
                self._forwarded = [host.forward(name) for name in (self.interface, self._upstream)]
                host.pass_forward_policy(self.interface, f"jumpstarter_{self.interface}")
            self._sync_nat()
            if self.dhcp_enabled:
                self._start_dnsmasq()
            if self.local_ntp:
                port = self._ntp.start()
                redirect = f'iifname "{self.interface}" udp dport 123 dnat to {self.gateway_ip}:{port}'
                self._host.table(
                    f"{self._table}_ntp", _chain("prerouting", "type nat hook prerouting priority dstnat;", [redirect])
                )
        except BaseException:
            self._down()
            raise
        self._is_up = True
        self.logger.info("network %s on %s is set up", self.subnet, self.interface)

    def _down(self) -> None:
        self._is_up = False
        self._ntp.stop()
        self._dnsmasq.stop()
        self._host.undo()

    def _changed(self) -> None:
        if self.dhcp_enabled:
            self._start_dnsmasq()
        if self.nat_mode == "1to1":
            self._sync_nat()
            outside = self.public_interface or str(self._upstream)
            used = {f"{entry['public_ip']}/32" for entry in self.addresses if entry.get("public_ip")}
            self._host.keep_addresses(outside, {f"{self.gateway_ip}/{self._network.prefixlen}", *used})

    # --- parts --------------------------------------------------------------------------------------------------

    @property
    def _table(self) -> str:
        return f"jumpstarter_{self.interface}"

    @property
    def _has_nat(self) -> bool:
        return self.nat_mode in ("masquerade", "1to1")

    def _nat_rules(self) -> str:
        return run("nft", "list", "table", "ip", self._table) if self._has_nat or self._rules else ""

    def _sync_nat(self) -> None:
        chains = list(self._forwarded) if self._has_nat else []
        if self._has_nat:
            assert self._upstream is not None
            chains += self._nat_chains(self._upstream)
        elif not self._rules:
            return
        passed = ["ct state established,related accept"]
        for direction, (policy, rules) in self._rules.items():
            name = "iifname" if direction == "egress" else "oifname"
            # "return": it has passed our filter; whether it may take this way is decided below.
            verdicts = [*rules, policy] if not self._has_nat else [_returning(rule) for rule in (*rules, policy)]
            chains.append(_chain(direction, "", verdicts))
            passed.append(f'{name} "{self.interface}" jump {direction}')
        if self._has_nat:
            # Forwarding knows no pairs of interfaces: without this the device reaches others' devices on this host.
            ways = ", ".join(f'"{way}"' for way in sorted(self._ways_out()))
            passed.append(f'iifname "{self.interface}" oifname != {{ {ways} }} drop')
            passed.append(f'oifname "{self.interface}" iifname != {{ {ways} }} drop')
        chains.append(_chain("forward", "type filter hook forward priority filter;", passed))
        self._host.table(self._table, "\n".join(chains))

    def _ways_out(self) -> set[str]:
        return {self.interface, *filter(None, (self._upstream, self.public_interface))}

    def _nat_chains(self, upstream: str) -> list[str]:
        outside = self.public_interface or upstream
        pairs = [(entry["ip"], entry["public_ip"]) for entry in self.addresses if entry.get("public_ip")]
        if self.nat_mode == "1to1":
            for _, public in pairs:
                self._host.address(outside, f"{public}/32")
            source = [f'oifname "{outside}" ip saddr {private} snat to {public}' for private, public in pairs]
        else:
            pairs = []
            source = [f'oifname "{upstream}" ip saddr {self._network} masquerade']
        target = [f"ip daddr {public} dnat to {private}" for private, public in pairs]
        return [
            _chain("postrouting", "type nat hook postrouting priority srcnat;", source),
            _chain("prerouting", "type nat hook prerouting priority dstnat;", target),
            _chain("output", "type nat hook output priority -100;", target),
        ]

    def _start_dnsmasq(self) -> None:
        lines = [
            f"interface={self.interface}",
            "except-interface=lo",
            "bind-interfaces",
            "no-resolv",
            "no-hosts",
            "dhcp-authoritative",
            "dhcp-sequential-ip",
            f"dhcp-range={self.dhcp_range_start},{self.dhcp_range_end},{self._network.netmask},12h",
            f"dhcp-option=option:router,{self.gateway_ip}",
            f"dhcp-option=option:dns-server,{self.gateway_ip}",
            # Without a server to ask, what we do not know is not there; dnsmasq would refuse the question, and some
            # resolvers then think nothing of the A record when there is no AAAA record.
            *([f"server={server}" for server in self.dns_servers] or ["local=/#/"]),
            *(f"host-record={entry['hostname']},{entry['ip']}" for entry in self.dns_entries),
        ]
        if self.local_ntp:
            lines.append(f"dhcp-option=option:ntp-server,{self.gateway_ip}")
        for entry in self.addresses:
            if entry.get("mac"):
                lines.append(
                    ",".join(["dhcp-host=" + entry["mac"], entry["ip"], *filter(None, [entry.get("hostname")])])
                )
            elif entry.get("hostname"):
                lines.append(f"host-record={entry['hostname']},{entry['ip']}")
        self._host.daemon(self._dnsmasq.mark)
        self._dnsmasq.start(lines)


def _returning(rule: str) -> str:
    return rule.removesuffix("accept") + "return" if rule.endswith("accept") else rule


def _chain(name: str, head: str, rules: list[str]) -> str:
    return f"chain {name} {{\n{head}\n" + "".join(f"{rule}\n" for rule in rules) + "}"


def _default_route() -> str:
    routes = json.loads(run("ip", "-json", "-4", "route", "show", "default"))
    if not routes:
        raise HostError("the exporter has no default route: name the way out in upstream_interface")
    return str(routes[0]["dev"])


def _tcpdump_arguments(args: list[str]) -> list[str]:
    number = False
    for arg in args:
        if number:
            if not arg.isdigit():
                raise ValueError(f"tcpdump: {arg!r} is no number")
            number = False
        elif arg in _TCPDUMP_WITH_NUMBER:
            number = True
        elif arg.startswith("-") and not _TCPDUMP.fullmatch(arg):
            raise ValueError(f"tcpdump: the option {arg} is not allowed here")
    return list(args)
