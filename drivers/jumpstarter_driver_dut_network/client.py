# SPDX-License-Identifier: Apache-2.0
"""Client of a DUT network."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jumpstarter.client import DriverClient

if TYPE_CHECKING:
    import click

__all__ = ["DutNetworkClient"]


@dataclass(kw_only=True)
class DutNetworkClient(DriverClient):
    """The network of a device, on the exporter."""

    def status(self) -> dict[str, Any]:
        """The interface, its addresses, NAT, leases, names and rules."""
        return dict(self.call("status"))

    def ntp_status(self) -> dict[str, Any]:
        """Of the local time server: ``enabled`` and ``running``."""
        return dict(self.call("ntp_status"))

    def get_dut_ip(self, mac: str) -> str | None:
        """The address that the device with this MAC address has been given; None when there is no lease."""
        found = self.call("get_dut_ip", mac)
        return None if found is None else str(found)

    def get_leases(self) -> list[dict[str, Any]]:
        """DHCP leases: ``mac``, ``ip``, ``hostname`` and ``expiry`` (seconds since 1970)."""
        return [{**lease, "expiry": int(lease["expiry"])} for lease in self.call("get_leases")]

    def add_address(self, ip: str, mac: str | None = None, hostname: str = "", public_ip: str | None = None) -> None:
        """Give a device (mac) this address when it asks, or (public_ip) make one reachable from outside."""
        self.call("add_address", ip, mac, hostname, public_ip)

    def remove_address(self, ip: str) -> None:
        """Forget an `add_address`."""
        self.call("remove_address", ip)

    def get_nat_rules(self) -> str:
        """The rules that are in force, as nft lists them."""
        return str(self.call("get_nat_rules"))

    def get_dns_entries(self) -> list[dict[str, str]]:
        """Our own names: ``hostname`` and ``ip``."""
        return list(self.call("get_dns_entries"))

    def add_dns_entry(self, hostname: str, ip: str) -> None:
        """Let the device find this name at this address."""
        self.call("add_dns_entry", hostname, ip)

    def remove_dns_entry(self, hostname: str) -> None:
        """Forget a name."""
        self.call("remove_dns_entry", hostname)

    def tcpdump(self, args: list[str] | None = None) -> Generator[str, None, None]:
        """Lines of tcpdump on the device's interface."""
        yield from self.streamingcall("tcpdump", args)

    def cli(self) -> click.Group:
        """The methods of the driver as commands."""
        import click

        from jumpstarter.client.decorators import driver_click_group

        @driver_click_group(self)
        def base() -> None:
            """The device's network"""

        @base.command("status")
        def status() -> None:
            """Show the network"""
            now = self.status()
            for name in ("interface", "upstream", "subnet", "nat_mode", "dhcp_enabled"):
                click.echo(f"{name}: {now[name]}")
            click.echo(f"addresses: {' '.join(now['interface_status']['addresses'])}")

        @base.command("leases")
        def leases() -> None:
            """List DHCP leases: MAC address, IP address, name"""
            for lease in self.get_leases():
                click.echo(f"{lease['mac']} {lease['ip']} {lease['hostname']}".rstrip())

        @base.command("get-ip")
        @click.argument("mac")
        def get_ip(mac: str) -> None:
            """Show the address of the device MAC"""
            found = self.get_dut_ip(mac)
            if found is None:
                raise click.ClickException(f"no lease for {mac}")
            click.echo(found)

        @base.command("add-address")
        @click.argument("ip")
        @click.option("--mac", "-m")
        @click.option("--hostname", "-n", default="")
        @click.option("--public-ip", "-p")
        def add_address(ip: str, mac: str | None, hostname: str, public_ip: str | None) -> None:
            """Give a device the address IP"""
            self.add_address(ip, mac, hostname, public_ip)

        @base.command("remove-address")
        @click.argument("ip")
        def remove_address(ip: str) -> None:
            """Forget the address IP"""
            self.remove_address(ip)

        @base.command("nat-rules")
        def nat_rules() -> None:
            """Show the rules that are in force"""
            click.echo(self.get_nat_rules())

        @base.command("ntp-status")
        def ntp_status() -> None:
            """Show whether the time server runs"""
            now = self.ntp_status()
            click.echo("running" if now["running"] else "enabled, not running" if now["enabled"] else "disabled")

        @base.command("dns-entries")
        def dns_entries() -> None:
            """List our own names"""
            for entry in self.get_dns_entries():
                click.echo(f"{entry['hostname']} {entry['ip']}")

        @base.command("add-dns")
        @click.argument("hostname")
        @click.argument("ip")
        def add_dns(hostname: str, ip: str) -> None:
            """Let the device find HOSTNAME at IP"""
            self.add_dns_entry(hostname, ip)

        @base.command("remove-dns")
        @click.argument("hostname")
        def remove_dns(hostname: str) -> None:
            """Forget HOSTNAME"""
            self.remove_dns_entry(hostname)

        @base.command("tcpdump", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
        @click.argument("args", nargs=-1, type=click.UNPROCESSED)
        def tcpdump(args: tuple[str, ...]) -> None:
            """Show packets of the device until Ctrl-C"""
            for line in self.tcpdump(list(args) or None):
                click.echo(line)

        return base
