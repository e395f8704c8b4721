# SPDX-License-Identifier: Apache-2.0
"""Check the SNMP fields of a driver's configuration, and read the secrets among them when they are needed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver.secret import check_secret, read_secret
from jumpstarter_driver_snmp.access import Credentials
from jumpstarter_driver_snmp.common import AuthProtocol, PrivProtocol

__all__ = ["SnmpSettings", "check_oid"]

_SHORTEST_KEY = 8  # RFC 3414, 11.2: a password must have at least 8 characters


@dataclass(kw_only=True)
class SnmpSettings:
    """Who we are to an agent, as the configuration says it: see the fields of `SNMPServer`."""

    version: str | None
    user: str | None
    community: str | None = field(repr=False)
    community_file: str | None
    auth_protocol: AuthProtocol
    auth_key: str | None = field(repr=False)
    auth_key_file: str | None
    priv_protocol: PrivProtocol
    priv_key: str | None = field(repr=False)
    priv_key_file: str | None
    context: str = ""

    def __post_init__(self) -> None:
        """Raise `ConfigurationError` for what cannot work."""
        community = self.community is not None or self.community_file is not None
        if self.version is None:
            self.version = "2c" if community and self.user is None else "3"
        if self.version not in ("1", "2c", "3"):
            raise ConfigurationError(f'version is "{self.version}", must be "1", "2c" or "3"')
        for name in ("community", "auth_key", "priv_key"):
            check_secret(name, getattr(self, name), getattr(self, f"{name}_file"))
        if self.version == "3":
            self._check_user(community)
        else:
            self._check_community(community)

    def _check_community(self, community: bool) -> None:
        if not community:
            raise ConfigurationError(f"SNMP version {self.version} needs community or community_file")
        if self.user is not None or self._has("auth_key") or self._has("priv_key"):
            raise ConfigurationError(f"user and keys belong to SNMP version 3, not to version {self.version}")
        if self.context:
            raise ConfigurationError(f"context belongs to SNMP version 3, not to version {self.version}")

    def _check_user(self, community: bool) -> None:
        if community:
            raise ConfigurationError("community belongs to SNMP version 1 or 2c; version 3 needs user")
        if not self.user:
            raise ConfigurationError("user is required (SNMP version 3), or community for version 1 or 2c")
        if self.auth_protocol is not AuthProtocol.NONE and not self._has("auth_key"):
            raise ConfigurationError(f"auth_protocol {self.auth_protocol.value} needs auth_key or auth_key_file")
        if self.priv_protocol is not PrivProtocol.NONE:
            if self.auth_protocol is AuthProtocol.NONE:
                raise ConfigurationError(
                    f"priv_protocol {self.priv_protocol.value} needs an auth_protocol: SNMP has no privacy without it"
                )
            if not self._has("priv_key"):
                raise ConfigurationError(f"priv_protocol {self.priv_protocol.value} needs priv_key or priv_key_file")
        for name in ("auth_key", "priv_key"):
            _check_key(name, getattr(self, name))

    def _has(self, name: str) -> bool:
        return getattr(self, name) is not None or getattr(self, f"{name}_file") is not None

    def credentials(self) -> Credentials:
        """Who we are, with the secrets. Raises `ConfigurationError` when a file of them cannot be used."""
        if self.version != "3":
            community = read_secret("community", self.community, self.community_file)
            return Credentials(version=str(self.version), community=community or "")
        return Credentials(
            version="3",
            user=self.user or "",
            auth_protocol=self.auth_protocol,
            auth_key=self._key("auth_key", self.auth_protocol is not AuthProtocol.NONE),
            priv_protocol=self.priv_protocol,
            priv_key=self._key("priv_key", self.priv_protocol is not PrivProtocol.NONE),
            context=self.context,
        )

    def _key(self, name: str, used: bool) -> str | None:
        if not used:
            return None  # a key without its protocol has always been ignored
        key = read_secret(name, getattr(self, name), getattr(self, f"{name}_file"))
        _check_key(name, key)
        return key


def _check_key(name: str, key: str | None) -> None:
    if key is not None and len(key) < _SHORTEST_KEY:
        raise ConfigurationError(f"{name} is shorter than {_SHORTEST_KEY} characters, which SNMP does not allow")


def check_oid(name: str, oid: str) -> str:
    """`oid` without the leading dot; `ConfigurationError` when it is none in numbers."""
    plain = oid.strip().removeprefix(".")
    if not re.fullmatch(r"[0-2](\.\d+)+", plain):
        raise ConfigurationError(f'{name} is "{oid}", must be an OID in numbers: 1.3.6.1.4.1...')
    return plain
