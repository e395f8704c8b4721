# SPDX-License-Identifier: Apache-2.0
"""Drivers that lead to services next to the exporter: TCP, UDP, unix and vsock sockets, and an echo for tests.

D-Bus and WebSockets have modules of their own; their drivers are named here because configurations name them so.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import Driver, export, exportstream
from jumpstarter_driver_network.dbus import DbusNetwork
from jumpstarter_driver_network.interface import NetworkInterface
from jumpstarter_driver_network.websocket import WebsocketNetwork

__all__ = [
    "DbusNetwork",
    "EchoNetwork",
    "NetworkInterface",
    "TcpNetwork",
    "UdpNetwork",
    "UnixNetwork",
    "VsockNetwork",
    "WebsocketNetwork",
]

#: VMADDR_CID_ANY and VMADDR_PORT_ANY: "any" is for who listens.
_ANY_VSOCK = 0xFFFFFFFF


@dataclass(kw_only=True)
class _InternetNetwork(NetworkInterface, Driver):
    """What TCP and UDP have in common.

    host: name or address (IPv6 with or without brackets), as the exporter sees it. port: 1 to 65535.
    enable_address: whether clients may ask for the resolved address.
    """

    scheme: ClassVar[str]
    kind: ClassVar[socket.SocketKind]

    host: str
    port: int
    enable_address: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.host:
            raise ConfigurationError(f"{self.scheme} network: host is empty")
        if not 0 < self.port < 65536:
            raise ConfigurationError(f"{self.scheme} network: port is {self.port}, must be 1 to 65535")

    @export(readonly=True)
    async def address(self) -> str:
        """The service's address as the exporter resolves it: "tcp://192.0.2.1:22", "udp://[2001:db8::1]:69"."""
        from jumpstarter.streams.sockets import format_address, resolve

        if not self.enable_address:
            raise ValueError('the address is not told: "enable_address" is off in the exporter\'s configuration')
        found = await resolve(self.host, self.port, self.kind)
        return f"{self.scheme}://{format_address(found[0][1][0], self.port)}"


@dataclass(kw_only=True)
class TcpNetwork(_InternetNetwork):
    """A TCP service. connect_timeout: seconds to wait for it to accept."""

    scheme: ClassVar[str] = "tcp"
    kind: ClassVar[socket.SocketKind] = socket.SOCK_STREAM

    connect_timeout: float = 10.0

    @exportstream
    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Any]:
        """Stream: a new connection. Half-closes pass through in both directions."""
        from jumpstarter.streams.sockets import connect_tcp

        async with await connect_tcp(self.host, self.port, self.connect_timeout) as stream:
            yield stream


@dataclass(kw_only=True)
class UdpNetwork(_InternetNetwork):
    """A UDP service. Each item of the stream is one datagram."""

    scheme: ClassVar[str] = "udp"
    kind: ClassVar[socket.SocketKind] = socket.SOCK_DGRAM

    @exportstream
    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Any]:
        """Stream: datagrams to and from the service, through a socket of its own."""
        from jumpstarter.streams.sockets import connect_udp

        async with await connect_udp(self.host, self.port) as stream:
            yield stream


@dataclass(kw_only=True)
class UnixNetwork(NetworkInterface, Driver):
    """A service on a unix socket. path: the socket, on the exporter."""

    path: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise ConfigurationError("unix network: path is empty")

    @export(readonly=True)
    async def address(self) -> str:
        """The service's address: "unix:///path"."""
        return f"unix://{self.path}"

    @exportstream
    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Any]:
        """Stream: a new connection. Half-closes pass through in both directions."""
        from jumpstarter.streams.sockets import connect_unix

        async with await connect_unix(self.path) as stream:
            yield stream


@dataclass(kw_only=True)
class VsockNetwork(NetworkInterface, Driver):
    """A service of a virtual machine on the exporter's host, reached without any network (AF_VSOCK).

    cid: the machine's context id (1 is the exporter's host itself, 2 the host of the machine the exporter runs in).
    port: the service's port there. connect_timeout: seconds to wait for it to accept.
    """

    cid: int
    port: int
    connect_timeout: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("cid", self.cid), ("port", self.port)):
            if not 0 <= value < _ANY_VSOCK:
                raise ConfigurationError(f"vsock network: {name} is {value}, must be 0 to {_ANY_VSOCK - 1}")

    @export(readonly=True)
    async def address(self) -> str:
        """The service's address: "vsock://3:22"."""
        return f"vsock://{self.cid}:{self.port}"

    @exportstream
    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Any]:
        """Stream: a new connection. Half-closes pass through in both directions."""
        from jumpstarter.streams.sockets import connect_vsock

        async with await connect_vsock(self.cid, self.port, self.connect_timeout) as stream:
            yield stream


@dataclass(kw_only=True)
class EchoNetwork(NetworkInterface, Driver):
    """A service without hardware: sends back what it gets."""

    @exportstream
    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Any]:
        """Stream: an echo."""
        import anyio
        from anyio.streams.stapled import StapledObjectStream

        send, receive = anyio.create_memory_object_stream[bytes](4)
        async with StapledObjectStream(send, receive) as stream:
            yield stream
