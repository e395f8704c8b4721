# SPDX-License-Identifier: Apache-2.0
"""Talk to drivers: `DriverClient` for blocking code, `jumpstarter.client.aio` for code in an event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jumpstarter.client.base import DriverClient, StubDriverClient
    from jumpstarter.client.client import client_from_channel, client_from_path
    from jumpstarter.client.core import AsyncDriverClient
    from jumpstarter.client.flasher import FlasherClient

_HOMES = {
    "AsyncDriverClient": "core",
    "DriverClient": "base",
    "FlasherClient": "flasher",
    "StubDriverClient": "base",
    "client_from_channel": "client",
    "client_from_path": "client",
}
__all__ = [
    "AsyncDriverClient",
    "DriverClient",
    "FlasherClient",
    "StubDriverClient",
    "client_from_channel",
    "client_from_path",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
