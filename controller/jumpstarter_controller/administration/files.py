# SPDX-License-Identifier: Apache-2.0
"""The configuration files that new clients and exporters are given."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.config.client import ClientConfigV1Alpha1, ClientConfigV1Alpha1Drivers
from jumpstarter.config.common import ObjectMeta
from jumpstarter.config.exporter import ExporterConfigV1Alpha1
from jumpstarter.config.tls import TLSConfigV1Alpha1

__all__ = ["Credentials", "client_file", "exporter_file"]


@dataclass(frozen=True)
class Credentials:
    """What a new client or exporter needs to reach the controller."""

    namespace: str
    name: str
    endpoint: str
    token: str
    ca: Path

    def tls(self) -> TLSConfigV1Alpha1:
        """The `tls` block of their configuration file. Raises ConfigurationError."""
        try:
            return TLSConfigV1Alpha1(ca=base64.b64encode(self.ca.read_bytes()).decode())
        except OSError as error:
            raise ConfigurationError(f"TLS CA {self.ca} cannot be read: {error.strerror or error}") from error


def client_file(credentials: Credentials, allow: list[str], unsafe: bool) -> str:
    """A client configuration, which the original's `jmp` reads as well."""
    return ClientConfigV1Alpha1(
        metadata=ObjectMeta(namespace=credentials.namespace, name=credentials.name),
        endpoint=credentials.endpoint,
        token=credentials.token,
        tls=credentials.tls(),
        drivers=ClientConfigV1Alpha1Drivers(allow=allow, unsafe=unsafe),
    ).to_yaml()


def exporter_file(credentials: Credentials) -> str:
    """An exporter configuration without drivers: the block `export` is to be added."""
    return ExporterConfigV1Alpha1(
        metadata=ObjectMeta(namespace=credentials.namespace, name=credentials.name),
        endpoint=credentials.endpoint,
        token=credentials.token,
        tls=credentials.tls(),
    ).to_yaml()
