# SPDX-License-Identifier: Apache-2.0
"""Buses for the tests, and the programs at their other end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PEER = Path(__file__).with_name("can_peer.py")


@dataclass
class Multicast:
    """A udp_multicast bus of this test alone, by its port."""

    port: int
    group: str = "239.74.163.2"

    @property
    def config(self) -> dict[str, Any]:
        return {
            "channel": self.group,
            "interface": "udp_multicast",
            # Frames are for this machine only.
            "options": {"port": self.port, "hop_limit": 0},
        }


@pytest.fixture
def multicast() -> Multicast:
    """A bus that nobody else uses. Members of a group share its port, so it cannot be left to the kernel."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("", 0))
        return Multicast(probe.getsockname()[1])


@pytest.fixture
def peer(multicast: Multicast) -> Iterator[Multicast]:
    """The bus, with `can_peer` on it."""
    process = subprocess.Popen(
        [sys.executable, PEER, multicast.group, str(multicast.port)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield multicast
    finally:
        process.kill()
        process.communicate()
