# SPDX-License-Identifier: Apache-2.0
"""The exporter's D-Bus: addresses, authentication on behalf of clients, and the driver.

Source of the protocol facts: the D-Bus specification, "Server Addresses" and "Authentication Protocol".
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal
from urllib.parse import unquote

from anyio import BrokenResourceError
from anyio.abc import ObjectStream

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import Driver, export, exportstream
from jumpstarter_driver_network.interface import NetworkInterface

__all__ = ["DbusNetwork", "DbusStream", "parse_address"]

_LONGEST_LINE = 16384
_VARIABLES = {"system": "DBUS_SYSTEM_BUS_ADDRESS", "session": "DBUS_SESSION_BUS_ADDRESS"}
_SUPPORTED = "unix with path or abstract, tcp with host and port"


@dataclass(kw_only=True)
class DbusNetwork(NetworkInterface, Driver):
    """A message bus of the exporter's host.

    kind: "system" or "session". The address is that of DBUS_SYSTEM_BUS_ADDRESS or DBUS_SESSION_BUS_ADDRESS in the
    exporter's environment; without one, the socket where the bus usually is. Clients act as the exporter's user.
    """

    KIND_LABEL: ClassVar[str] = "jumpstarter.dev/dbusnetwork/kind"

    kind: Literal["system", "session"]
    _buses: list[tuple[str, dict[str, str]]] = field(init=False, default_factory=list, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in _VARIABLES:
            raise ConfigurationError(f'D-Bus network: kind is "{self.kind}", must be system or session')
        variable = _VARIABLES[self.kind]
        try:
            self._buses = parse_address(os.environ.get(variable) or self._usual_address())
        except ValueError as error:
            raise ConfigurationError(f"D-Bus network: {variable} in the exporter's environment: {error}") from None

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_network.client.DbusNetworkClient"

    def extra_labels(self) -> dict[str, str]:
        """Tells clients which of their buses this one stands for."""
        return {self.KIND_LABEL: self.kind}

    @export(readonly=True)
    async def address(self) -> str:
        """Where the exporter reaches the bus: "unix:///path" or "tcp://host:port"."""
        return _place(*self._buses[0])

    @exportstream
    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Any]:
        """Stream: a new connection to the bus, from its authentication on."""
        from jumpstarter.streams.sockets import connect_tcp, connect_unix

        problems: list[str] = []
        for scheme, args in self._buses:
            try:
                if scheme == "tcp":
                    stream = await connect_tcp(args["host"], int(args["port"]))
                else:
                    stream = await connect_unix(args["path"] if "path" in args else "\0" + args["abstract"])
            except OSError as error:
                problems.append(str(error).replace("\0", "@"))
                continue
            async with DbusStream(stream) as bus:
                yield bus
            return
        raise ConnectionError(f"{self.kind} bus of the exporter: {'; '.join(problems)}")

    def _usual_address(self) -> str:
        if self.kind == "system":
            return "unix:path=/run/dbus/system_bus_socket"
        return f"unix:path=/run/user/{os.getuid()}/bus"


class DbusStream(ObjectStream[bytes]):
    """The way to a bus, with what a client says while it authenticates adapted to a connection made for it.

    The bus asks the kernel who is at the other end of its socket: that is the exporter. A client that authenticates by
    its own user id would be refused, so it is sent as the exporter's. File descriptors cannot pass through a byte
    stream, so a client's offer to send some is one that the bus does not know, and both sides do without.
    """

    def __init__(self, stream: ObjectStream[bytes]) -> None:
        self._stream = stream
        self._line = bytearray()
        self._external = False
        self._authenticated = False

    async def send(self, item: bytes) -> None:
        """Send what the client says."""
        if self._authenticated:
            await self._stream.send(item)
        elif adapted := self._adapt(item):
            await self._stream.send(adapted)

    async def receive(self) -> bytes:
        """The next bytes of the bus."""
        return await self._stream.receive()

    async def send_eof(self) -> None:
        """The client ended."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """None."""
        return {}

    def _adapt(self, item: bytes) -> bytes:
        self._line += item
        out = bytearray()
        while not self._authenticated:
            line, end, rest = bytes(self._line).partition(b"\r\n")
            if not end:
                if len(line) > _LONGEST_LINE:
                    raise BrokenResourceError("what the client sent is no D-Bus authentication")
                return bytes(out)
            self._line[:] = rest
            out += self._adapt_line(line) + end
            self._authenticated = line.strip(b"\0 ") == b"BEGIN"
        out += self._line
        self._line.clear()
        return bytes(out)

    def _adapt_line(self, line: bytes) -> bytes:
        """One line of the client's part of the authentication; the very first begins with a NUL."""
        start, words = line[: line.startswith(b"\0")], line.lstrip(b"\0").split()
        user = str(os.getuid()).encode().hex().encode()
        if words[:1] == [b"AUTH"]:
            self._external = words[1:2] == [b"EXTERNAL"]
            if self._external and len(words) > 2:
                return start + b"AUTH EXTERNAL " + user
        if words[:1] == [b"DATA"] and self._external and len(words) > 1:  # the user, told when the bus has asked
            return start + b"DATA " + user
        if words[:1] == [b"NEGOTIATE_UNIX_FD"]:
            return start + b"WITHOUT_UNIX_FD"
        return line


def parse_address(text: str) -> list[tuple[str, dict[str, str]]]:
    """The addresses in a D-Bus address ("unix:path=/a;tcp:host=b,port=1") that can be connected to, as (scheme, args).

    Raises ValueError when there is none.
    """
    found: list[tuple[str, dict[str, str]]] = []
    for entry in filter(None, text.split(";")):
        scheme, colon, rest = entry.partition(":")
        pairs = [pair.partition("=") for pair in rest.split(",") if pair]
        args = {key: unquote(value) for key, _, value in pairs}
        if not colon or any(not equals for _, equals, _ in pairs):
            raise ValueError(f'"{entry}" is no D-Bus address such as unix:path=/run/dbus/system_bus_socket')
        unix = scheme == "unix" and ("path" in args or "abstract" in args)
        if unix or (scheme == "tcp" and args.get("host") and args.get("port", "").isdigit()):
            found.append((scheme, args))
    if not found:
        raise ValueError(f'"{text}" has no address that can be forwarded ({_SUPPORTED})')
    return found


def _place(scheme: str, args: Mapping[str, str]) -> str:
    from jumpstarter.streams.sockets import format_address

    if scheme == "tcp":
        return f"tcp://{format_address(args['host'], int(args['port']))}"
    return f"unix://{args['path'] if 'path' in args else '@' + args['abstract']}"
