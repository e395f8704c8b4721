# SPDX-License-Identifier: Apache-2.0
"""The address of this host that others reach it by."""

from __future__ import annotations

import logging
import socket

__all__ = ["get_ip_address", "url_host"]

_ELSEWHERE = ("192.0.2.1", 9)
"""An address of documentation (RFC 5737): asking for the route to it sends nothing."""


def get_ip_address(logger: logging.Logger | None = None) -> str:
    """The IPv4 address of the interface the default route leads through; else that of this host's name; else loopback.

    Sends nothing, but may ask the resolver for this host's own name.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_ELSEWHERE)
            return str(probe.getsockname()[0])
        except OSError:
            pass  # no default route: a lab network without one, or none at all
    try:
        found = [info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    except OSError:
        found = []
    for address in found:
        if not str(address).startswith("127."):
            return str(address)
    if logger is not None:
        logger.warning("this host has no address that others reach: using 127.0.0.1; give one with host:")
    return "127.0.0.1"


def url_host(host: str) -> str:
    """The host as URLs write it: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
