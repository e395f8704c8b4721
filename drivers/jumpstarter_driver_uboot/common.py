# SPDX-License-Identifier: Apache-2.0
"""What the U-Boot driver and its client both know: the shell's quoting, its answers, and what DHCP gave."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

__all__ = ["DEFAULT_NETMASK", "DhcpInfo", "check_command", "check_name", "parse_dhcp", "parse_printenv", "quotings"]

DEFAULT_NETMASK = "255.255.255.0"

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_BOUND = re.compile(r"DHCP client bound to address (\S+)")


@dataclass(frozen=True)
class DhcpInfo:
    """What the board got from the DHCP server."""

    ip_address: str
    gateway: str
    netmask: str = DEFAULT_NETMASK

    @property
    def cidr(self) -> str:
        """Length of the network prefix, as in "24"."""
        return str(ipaddress.IPv4Network(f"0.0.0.0/{self.netmask}").prefixlen)


def quotings(value: str) -> list[str]:
    """``value`` as one literal word of U-Boot's shell: the ways to write it, the likely one first.

    Between single quotes nothing is special but the quote itself; that is written as ``'\\''``: leave the quotes, an
    escaped quote, enter them again. Backslashes are literal there in the shell of 2024, and need doubling in the one
    before; nothing but reading the variable back tells which shell it is.

    Raises ValueError for control characters, which the line editor would act upon.
    """
    found = _CONTROL.search(value)
    if found:
        raise ValueError(f"control character {found.group()!r} cannot be typed at U-Boot's prompt")
    old, new = ("'" + text.replace("'", "'\\''") + "'" for text in (value.replace("\\", "\\\\"), value))
    return [old] if old == new else [old, new]


def check_name(name: str) -> str:
    """A variable's name, unchanged. Raises ValueError for what U-Boot would not take as one word."""
    if not name or re.search(r"[\s='\"$;&|#\\\x00-\x1f\x7f]", name):
        raise ValueError(f"{name!r} is no name of a U-Boot variable")
    return name


def check_command(command: str) -> str:
    """A command line without comment and surrounding blanks.

    A comment would hide what is appended to learn the exit status. Raises ValueError for several lines, control
    characters and quotes that do not end: U-Boot would wait for the rest of it.
    """
    command = command.strip()
    found = _CONTROL.search(command)
    if found:
        raise ValueError(f"control character {found.group()!r} in a U-Boot command; give one command per line")
    quoted = ""
    escaped = False
    for index, char in enumerate(command):
        if escaped:
            escaped = False
        elif char == "\\" and quoted != "'":
            escaped = True
        elif quoted:
            quoted = "" if char == quoted else quoted
        elif char in "'\"":
            quoted = char
        elif char == "#" and (index == 0 or command[index - 1] in " \t;"):
            command = command[:index].rstrip()
            break
    if quoted or escaped:
        raise ValueError(f"unfinished {'quote' if quoted else 'escape'} in the U-Boot command {command!r}")
    return command.rstrip("; ")


def parse_printenv(name: str, rc: int | None, lines: list[str]) -> str | None:
    """The value in the answer to ``printenv NAME``; None when it is not defined.

    Raises ValueError when the answer is something else.
    """
    text = "\n".join(lines)
    if rc == 0 and text.startswith(f"{name}="):
        return text.removeprefix(f"{name}=")
    if f'"{name}" not defined' in text:
        return None
    raise ValueError(f"unexpected answer to printenv {name}: {text!r}")


def parse_dhcp(lines: list[str]) -> str | None:
    """The address in the output of ``dhcp``, None when there is none."""
    found = _BOUND.search("\n".join(lines))
    return found.group(1) if found else None
