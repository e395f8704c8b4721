# SPDX-License-Identifier: Apache-2.0
"""systemd's notification protocol (Type=notify, WatchdogSec=)."""

from __future__ import annotations

import logging
import os
import socket
import sys

__all__ = ["notify", "watchdog_seconds"]

logger = logging.getLogger(__name__)

#: Whoever does not read what it asked for must not hold us up: an exporter has to stop when it is told to.
_SECONDS = 0.25


def notify(state: str) -> None:
    """Tell systemd, when it asked to be told: "READY=1", "STATUS=...", "WATCHDOG=1", "STOPPING=1"."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address or not sys.platform.startswith("linux"):
        return
    target = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(_SECONDS)
            sender.sendto(state.encode(), target)
    except OSError as error:
        logger.warning("systemd cannot be told %s: %s", state.partition("=")[0], error)


def watchdog_seconds() -> float:
    """How often systemd wants to hear "WATCHDOG=1" from this process at the latest; 0 for never."""
    pid = os.environ.get("WATCHDOG_PID")
    if pid and pid != str(os.getpid()):
        return 0.0
    try:
        return int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
    except ValueError:
        return 0.0
