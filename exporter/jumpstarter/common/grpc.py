# SPDX-License-Identifier: Apache-2.0
"""Channels: addresses, TLS and the options every channel of ours has."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from jumpstarter.common.exceptions import ConfigurationError

__all__ = ["PASSPHRASE_HEADER", "TLS", "Target", "channel_options", "server_options", "stop_server"]

PASSPHRASE_HEADER = "x-jumpstarter-passphrase"

_CHANNEL_DEFAULTS: dict[str, str | int] = {
    "grpc.lb_policy_name": "round_robin",
    # A peer that vanished without a word is noticed within half a minute.
    "grpc.keepalive_time_ms": 20_000,
    "grpc.keepalive_timeout_ms": 10_000,
    # For the pings that measure the bandwidth: while one of them waits (a minute by default) no other is sent.
    "grpc.http2.ping_timeout_ms": 10_000,
    "grpc.http2.max_pings_without_data": 0,
    "grpc.keepalive_permit_without_calls": 1,
    # Writes of 1 MiB frames: let them leave in one go.
    "grpc.http2.write_buffer_size": 4 << 20,
}
_SERVER_DEFAULTS: dict[str, str | int] = {
    "grpc.so_reuseport": 0,  # or a second exporter on the same port would start and take half of the calls
    "grpc.http2.min_ping_interval_without_data_ms": 10_000,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.keepalive_time_ms": 20_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.http2.ping_timeout_ms": 10_000,
    "grpc.http2.max_pings_without_data": 0,
    "grpc.http2.write_buffer_size": 4 << 20,
}


def channel_options(extra: Mapping[str, str | int] | None = None) -> list[tuple[str, str | int]]:
    """Options for a client channel; ``extra`` (``grpcOptions`` of a config file) wins."""
    return list({**_CHANNEL_DEFAULTS, **(extra or {})}.items())


def server_options(extra: Mapping[str, str | int] | None = None) -> list[tuple[str, str | int]]:
    """Options for a server."""
    return list({**_SERVER_DEFAULTS, **(extra or {})}.items())


async def stop_server(server: grpc.aio.Server, grace: float | None) -> None:
    """``server.stop(grace)``, to its end, and cancelled when the caller was.

    grpc.aio waits with `asyncio.wait_for`, which (before Python 3.12) forgets that it was cancelled when the server
    has stopped at the same moment; whoever cancelled would then wait for ever.
    """
    stopping = asyncio.ensure_future(server.stop(grace))
    cancelled: asyncio.CancelledError | None = None
    while not stopping.done():
        try:
            await asyncio.wait({stopping})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    stopping.result()


@dataclass(frozen=True)
class TLS:
    """Files for a TLS channel.

    ca: authority of the server's certificate (PEM; the system's when None). cert, key: the client's own, for servers
    that ask. server_name: name in the certificate when it differs from the address.
    """

    ca: bytes | None = None
    cert: bytes | None = None
    key: bytes | None = None
    server_name: str | None = None

    @classmethod
    def from_files(
        cls, ca: str | Path | None = None, cert: str | Path | None = None, key: str | Path | None = None
    ) -> TLS:
        """Read PEM files. Raises ConfigurationError naming the file that cannot be read."""

        def read(what: str, path: str | Path | None) -> bytes | None:
            if path is None:
                return None
            try:
                return Path(path).read_bytes()
            except OSError as error:
                raise ConfigurationError(f"{what} {path} cannot be read: {error.strerror or error}") from error

        if (cert is None) != (key is None):
            raise ConfigurationError("a client certificate needs its key, and a key its certificate: give both")
        return cls(read("TLS CA", ca), read("TLS certificate", cert), read("TLS key", key))

    def credentials(self) -> grpc.ChannelCredentials:
        """gRPC channel credentials."""
        return grpc.ssl_channel_credentials(self.ca, self.key, self.cert)


@dataclass(frozen=True)
class Target:
    """Where an exporter is: a unix socket's path, or host:port."""

    address: str
    is_unix: bool

    @classmethod
    def parse(cls, text: str) -> Target:
        """``host:port`` (port 1 to 65535, IPv6 in brackets) is TCP, ``unix:PATH`` and everything else a socket path."""
        for prefix in ("unix://", "unix:"):
            if text.startswith(prefix):
                return cls(text.removeprefix(prefix), True)
        host, colon, port = text.rpartition(":")
        if colon and host and "/" not in text and port.isascii() and port.isdigit() and 1 <= int(port) <= 65535:
            return cls(text, False)
        return cls(text, True)

    @property
    def grpc_target(self) -> str:
        """The name gRPC resolves."""
        return f"unix:{self.address}" if self.is_unix else self.address

    def open(self, module: Any, tls: TLS | None, insecure: bool, options: Sequence[tuple[str, str | int]]) -> Any:
        """A channel made by ``module`` (grpc or grpc.aio). TCP without TLS only when ``insecure`` says so."""
        if self.is_unix or insecure:
            return module.insecure_channel(self.grpc_target, options=options)
        tls = tls or TLS()
        if tls.server_name:
            options = [*options, ("grpc.ssl_target_name_override", tls.server_name)]
        return module.secure_channel(self.grpc_target, tls.credentials(), options=options)
