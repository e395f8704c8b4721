# SPDX-License-Identifier: Apache-2.0
"""The configuration file of a router that runs apart from the controller.

apiVersion: jumpstarter.lab/v1alpha1
kind: RouterConfig
name: router-1                          # as in `admin create router router-1`
listen: "0.0.0.0:8083"                  # port 0 takes a free one
endpoint: "router-1.example.org:8083"   # what clients and exporters connect to; default: where it listens
labels: {site: berlin}                  # exporters with the same labels get this router first
weight: 1                               # how much it can carry compared with the others
controllers: ["lab.example.org:8082"]   # it attaches to the first that answers
token: router-1.token                   # file, from `admin create router`; paths are relative to this file
tls: {certificate: router-1.crt, key: router-1.key, ca: ca.crt}
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_controller.config import TLSFiles, _Block
from jumpstarter_controller.config_files import HostPort, read_config

__all__ = ["RouterConfig"]


class RouterConfig(_Block):
    """One file; see the top of this module."""

    apiVersion: Literal["jumpstarter.lab/v1alpha1"]
    kind: Literal["RouterConfig"]
    name: str
    listen: HostPort
    endpoint: HostPort | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    weight: int = Field(default=1, ge=1)
    controllers: list[HostPort] = Field(min_length=1)
    token: Path
    tls: TLSFiles

    @classmethod
    def load(cls, path: Path) -> RouterConfig:
        """Read the file. Raises ConfigurationError, one line that names file and field."""
        config = read_config(path, cls)
        home = path.parent
        config.token = home / config.token
        for name in ("certificate", "key", "ca"):
            setattr(config.tls, name, home / getattr(config.tls, name))
        return config

    def read_token(self) -> str:
        """The token. Raises ConfigurationError naming the file."""
        try:
            return self.token.read_text().strip()
        except OSError as error:
            raise ConfigurationError(f"token file {self.token} cannot be read: {error.strerror or error}") from error
