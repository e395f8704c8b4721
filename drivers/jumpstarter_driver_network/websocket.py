# SPDX-License-Identifier: Apache-2.0
"""A service behind a WebSocket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import urlsplit, urlunsplit

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import Driver, export, exportstream
from jumpstarter_driver_network.interface import NetworkInterface

__all__ = ["WebsocketNetwork"]

_LONGEST_MESSAGE = 64 << 20


@dataclass(kw_only=True)
class WebsocketNetwork(NetworkInterface, Driver):
    """A service that speaks through a WebSocket (websockify, an IP-KVM, a simulator).

    url: ws:// or wss:// URL as the exporter sees it; a user and password in it are sent as basic authentication and
    told to nobody. enable_address: whether clients may ask for the URL. connect_timeout: seconds for the connection
    with its handshakes.
    """

    needs: ClassVar[tuple[str, ...]] = ("websockets",)

    url: str = field(repr=False)
    enable_address: bool = True
    connect_timeout: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = urlsplit(self.url)
        try:
            complete = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is none
            complete = False
        if not complete:
            raise ConfigurationError(f'websocket network: url "{self._shown}" is no ws:// or wss:// URL with a host')
        if parts.fragment:
            raise ConfigurationError(f'websocket network: url "{self._shown}" has a fragment, which means nothing')

    @property
    def _shown(self) -> str:
        """The URL without user and password."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    @export(readonly=True)
    async def address(self) -> str:
        """The service's URL, without user and password."""
        if not self.enable_address:
            raise ValueError('the address is not told: "enable_address" is off in the exporter\'s configuration')
        return self._shown

    @exportstream
    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Any]:
        """Stream: a new connection; what is written goes out as binary messages."""
        from websockets.asyncio.client import connect
        from websockets.exceptions import WebSocketException

        class Connect(connect):
            def process_redirect(self, exc: Exception) -> Exception | str:
                """Never: a device must not lead its lessee to another service that only the exporter reaches."""
                return exc

        from jumpstarter_driver_network.streams.websocket import WebsocketClientStream

        try:
            connection = await Connect(
                self.url, open_timeout=self.connect_timeout, max_size=_LONGEST_MESSAGE, compression=None
            )
        except TimeoutError:
            raise ConnectionError(f"websocket {self._shown}: no answer within {self.connect_timeout:g} s") from None
        except (OSError, WebSocketException) as error:
            raise ConnectionError(f"websocket {self._shown}: {_reason(error)}") from error
        async with WebsocketClientStream(conn=connection) as stream:
            yield stream


def _reason(error: Exception) -> str:
    import os
    import ssl

    # The number of a TLS error is not one of the system's.
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno and error.errno > 0:
        return os.strerror(error.errno).lower()
    response = getattr(error, "response", None)
    redirected = response is not None and 300 <= response.status_code < 400
    return (str(error) or type(error).__name__) + (" (redirects are not followed)" if redirected else "")
