# SPDX-License-Identifier: Apache-2.0
"""What a DUT network's configuration may say, checked before anything is changed on the host.

All of it ends up in the files of dnsmasq and nftables: what is not exactly an address, a name or a number is refused.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any, Final

from jumpstarter.common.exceptions import ConfigurationError

__all__ = ["check_entry", "check_hostname", "check_interface", "check_ip", "check_mac", "filter_rules"]

_INTERFACE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}")
_HOSTNAME: Final = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*")
_MAC: Final = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
_VERDICTS: Final = ("accept", "drop")


def check_interface(name: str, where: str) -> str:
    """A network interface's name."""
    if not _INTERFACE.fullmatch(name):
        raise ConfigurationError(f"{where}: {name!r} is no name of a network interface")
    return name


def check_hostname(name: str) -> str:
    """A host's name, with or without domain. Raises ValueError."""
    if not _HOSTNAME.fullmatch(name):
        raise ValueError(f"{name!r} is no host name")
    return name


def check_mac(mac: str) -> str:
    """A MAC address, in lower case. Raises ValueError."""
    if not _MAC.fullmatch(mac):
        raise ValueError(f'{mac!r} is no MAC address such as "52:54:00:00:00:01" (YAML needs the quotes)')
    return mac.lower()


def check_ip(ip: str) -> str:
    """An IPv4 address. Raises ValueError."""
    return str(ipaddress.IPv4Address(ip))


def check_entry(entry: Mapping[str, Any], subnet: ipaddress.IPv4Network) -> dict[str, str]:
    """An entry of ``addresses``: ip, and if given mac, hostname and public_ip. Raises ValueError."""
    if unknown := sorted(set(entry) - {"ip", "mac", "hostname", "public_ip"}):
        raise ValueError(f"there is no field {unknown[0]} (ip, mac, hostname, public_ip)")
    if not entry.get("ip"):
        raise ValueError("ip is missing")
    checked = {"ip": check_ip(entry["ip"])}
    if ipaddress.IPv4Address(checked["ip"]) not in subnet:
        raise ValueError(f"{checked['ip']} is not in the subnet {subnet}")
    for name, check in (("mac", check_mac), ("hostname", check_hostname), ("public_ip", check_ip)):
        if entry.get(name):
            checked[name] = check(str(entry[name]))
    return checked


def filter_rules(config: Mapping[str, Any] | None) -> dict[str, tuple[str, list[str]]]:
    """By direction ("egress", "ingress"): the policy, and the rules in nftables' words. Raises ConfigurationError."""
    found: dict[str, tuple[str, list[str]]] = {}
    if not isinstance(config or {}, Mapping):
        raise ConfigurationError("field filter: must have egress and ingress")
    for direction, settings in (config or {}).items():
        if direction not in ("egress", "ingress"):
            raise ConfigurationError(f"field filter: {direction} is neither egress nor ingress")
        if settings is None:
            continue
        if not isinstance(settings, Mapping) or not isinstance(settings.get("rules") or [], list):
            raise ConfigurationError(f"field filter.{direction}: must have policy, and rules as a list")
        if unknown := sorted(set(settings) - {"policy", "rules"}):
            raise ConfigurationError(f"field filter.{direction}: there is no field {unknown[0]} (policy, rules)")
        policy = settings.get("policy", "accept")
        if policy not in _VERDICTS:
            raise ConfigurationError(f"field filter.{direction}.policy: {policy!r} is neither accept nor drop")
        rules = []
        for number, rule in enumerate(settings.get("rules") or []):
            try:
                rules.append(_rule(rule))
            except (TypeError, ValueError) as error:
                raise ConfigurationError(f"field filter.{direction}.rules[{number}]: {error}") from None
        found[direction] = (policy, rules)
    return found


def _rule(rule: Mapping[str, Any]) -> str:
    if not isinstance(rule, Mapping):
        raise ValueError(f"{rule!r} is no rule with action, destination, source, port, protocol")
    if unknown := sorted(set(rule) - {"action", "destination", "source", "port", "protocol"}):
        raise ValueError(f"there is no field {unknown[0]} (action, destination, source, port, protocol)")
    if rule.get("action") not in _VERDICTS:
        raise ValueError(f"action is {rule.get('action')!r}, must be accept or drop")
    words = []
    for name, key in (("source", "saddr"), ("destination", "daddr")):
        if rule.get(name) is not None:
            words.append(f"ip {key} {ipaddress.IPv4Network(str(rule[name]), strict=False)}")
    protocol, port = rule.get("protocol"), rule.get("port")
    if protocol not in (None, "tcp", "udp", "icmp"):
        raise ValueError(f"protocol is {protocol!r}, must be tcp, udp or icmp")
    if port is not None:
        if protocol not in ("tcp", "udp"):
            raise ValueError("port needs protocol: tcp or udp")
        if not 1 <= int(port) <= 65535:
            raise ValueError(f"port is {port}, must be 1 to 65535")
        words.append(f"{protocol} dport {int(port)}")
    elif protocol is not None:
        words.append(f"ip protocol {protocol}")
    return " ".join([*words, str(rule["action"])])
