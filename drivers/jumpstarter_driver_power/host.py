# SPDX-License-Identifier: Apache-2.0
"""Check the field `host` of a supply that has a field `port` as well."""

from __future__ import annotations

from ipaddress import IPv6Address

from jumpstarter.common.exceptions import ConfigurationError

__all__ = ["check_host"]


def check_host(host: str) -> None:
    """Raise `ConfigurationError` for what is no name and no address: a URL, or one with the port or brackets."""
    if not host.strip() or any(character in host for character in "/@ ?#[]"):
        raise ConfigurationError(f'host is "{host}", must be a name or an address alone, without http://, [] and port')
    if ":" in host:
        try:
            IPv6Address(host)
        except ValueError:
            raise ConfigurationError(
                f'host is "{host}", must be a name or an address alone; the port has a field of its own'
            ) from None
