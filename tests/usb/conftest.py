# SPDX-License-Identifier: Apache-2.0
"""Emulated USB boards for tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "plugins"))
sys.path.insert(0, str(Path(__file__).parents[1] / "storage"))
sys.path.insert(0, str(Path(__file__).parents[1] / "pi_pico"))

from guest_machine import Guest
from usb_bus import Bridge, Bus, bridged
from usb_lab import UsbLab, plugged_lab


@pytest.fixture
def bus() -> Iterator[Bus]:
    """A USB bus with nothing on it."""
    made = Bus()
    yield made
    made.close()


@pytest.fixture
def bridge(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bridge]:
    """pyusb of this process on that bus."""
    with bridged(bus, monkeypatch) as made:
        yield made


@pytest.fixture(scope="session")
def usb_lab(guest: Guest) -> Iterator[UsbLab]:
    """All boards in the guest with an exporter. Tests that use it are in the xdist group guest-usb."""
    with plugged_lab(guest) as made:
        yield made
