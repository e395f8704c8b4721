# SPDX-License-Identifier: Apache-2.0
"""Client of SNMP power drivers."""

from __future__ import annotations

from dataclasses import dataclass

from jumpstarter_driver_power.client import PowerClient

__all__ = ["SNMPServerClient"]


@dataclass(kw_only=True)
class SNMPServerClient(PowerClient):
    """Client of `SNMPServer`: a power client under the name that Jumpstarter gave it."""
