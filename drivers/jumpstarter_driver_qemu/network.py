# SPDX-License-Identifier: Apache-2.0
"""Ports of the guest, reached through QEMU's user network."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from jumpstarter.driver import Driver, export, exportstream
from jumpstarter_driver_network.driver import TcpNetwork, UdpNetwork, UnixNetwork

__all__ = ["ForwardedTcp", "ForwardedUdp", "Screen"]


@dataclass(kw_only=True)
class ForwardedTcp(TcpNetwork):
    """A TCP port of the guest. ``port`` is 0 until the machine runs, when QEMU was left to choose it.

    require_on raises a MachineBusy that says why when the machine is off.
    """

    require_on: Callable[[], None] = field(repr=False, default=lambda: None)

    def __post_init__(self) -> None:
        Driver.__post_init__(self)  # not the parent's, which refuses port 0

    @export(readonly=True)
    async def address(self) -> str:
        """The forwarded port as ``tcp://host:port``. Raises MachineBusy while the machine is off."""
        self.require_on()
        return await super().address()

    @exportstream
    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[Any, None]:
        """Connect to the guest. Raises MachineBusy while the machine is off."""
        self.require_on()
        async with super().connect() as stream:
            yield stream


@dataclass(kw_only=True)
class ForwardedUdp(UdpNetwork):
    """A UDP port of the guest; see `ForwardedTcp`."""

    require_on: Callable[[], None] = field(repr=False, default=lambda: None)

    def __post_init__(self) -> None:
        Driver.__post_init__(self)  # not the parent's, which refuses port 0

    @export(readonly=True)
    async def address(self) -> str:
        """The forwarded port as ``udp://host:port``. Raises MachineBusy while the machine is off."""
        self.require_on()
        return await super().address()

    @exportstream
    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[Any, None]:
        """Send datagrams to the guest. Raises MachineBusy while the machine is off."""
        self.require_on()
        async with super().connect() as stream:
            yield stream


@dataclass(kw_only=True)
class Screen(UnixNetwork):
    """The machine's screen as VNC."""

    require_on: Callable[[], None] = field(repr=False, default=lambda: None)

    @exportstream
    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[Any, None]:
        """Connect to the VNC server. Raises MachineBusy while the machine is off."""
        self.require_on()
        async with super().connect() as stream:
            yield stream
