# SPDX-License-Identifier: Apache-2.0
"""The controller's configuration file.

apiVersion: jumpstarter.lab/v1alpha1
kind: ControllerConfig
listen: "0.0.0.0:8082"            # one TLS port for everything; port 0 takes a free one
endpoint: "lab.example.org:8082"  # what clients and exporters connect to; default: where it listens
database: lab.db                  # paths are relative to this file
namespace: default                # of clients and exporters that `admin create` makes
tls: {certificate: server.crt, key: server.key, ca: ca.crt}
tokens: {lifetime: 365d}
leases: {offlineAfter: 60s, retention: 30d}
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from jumpstarter.common.exceptions import ConfigurationError

__all__ = ["ControllerConfig", "LeaseSettings", "TLSFiles", "TokenSettings", "seconds"]

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?")
_UNITS = (86400, 3600, 60, 1)


def seconds(value: object) -> object:
    """``1d2h3m4.5s`` in seconds; numbers are seconds already."""
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip())
    if match is None or not any(match.groups()):
        raise ValueError(f'expected a duration such as 90s, 10m or 30d, got "{value}"')
    return sum(float(part) * unit for part, unit in zip(match.groups(), _UNITS, strict=True) if part)


_Seconds = Annotated[float, BeforeValidator(seconds), Field(gt=0)]


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class TLSFiles(_Block):
    """PEM files. ca: the authority that signed `certificate`; it is put into the files for clients and exporters."""

    certificate: Path
    key: Path
    ca: Path


class TokenSettings(_Block):
    """lifetime: of the tokens of clients and exporters, in seconds."""

    lifetime: _Seconds = 365 * 86400.0


class LeaseSettings(_Block):
    """Seconds. offline_after: an exporter not seen for so long is lost. retention: of leases that have ended."""

    offline_after: _Seconds = Field(default=60.0, alias="offlineAfter")
    retention: _Seconds = 30 * 86400.0


class ControllerConfig(_Block):
    """One file; see the top of this module."""

    apiVersion: Literal["jumpstarter.lab/v1alpha1"]
    kind: Literal["ControllerConfig"]
    listen: str = Field(pattern=r".+:\d{1,5}$")
    endpoint: str | None = Field(default=None, pattern=r".+:\d{1,5}$")
    database: Path
    namespace: str = "default"
    tls: TLSFiles
    tokens: TokenSettings = Field(default_factory=TokenSettings)
    leases: LeaseSettings = Field(default_factory=LeaseSettings)

    @classmethod
    def load(cls, path: Path) -> ControllerConfig:
        """Read the file. Raises ConfigurationError, one line that names file and field."""
        try:
            data = yaml.safe_load(path.read_text())
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        try:
            config = cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            raise ConfigurationError(f"{path}: {field + ': ' if field else ''}{message}") from None
        home = path.parent
        config.database = home / config.database
        config.tls.certificate = home / config.tls.certificate
        config.tls.key = home / config.tls.key
        config.tls.ca = home / config.tls.ca
        return config
