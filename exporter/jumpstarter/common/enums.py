# SPDX-License-Identifier: Apache-2.0
"""Enumerations of the wire, as Python enums. The values are the protocol's numbers."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

__all__ = ["ExporterStatus", "LogSource"]


class ExporterStatus(IntEnum):
    """State of an exporter (jumpstarter.v1.ExporterStatus)."""

    UNSPECIFIED = 0
    OFFLINE = 1
    AVAILABLE = 2
    BEFORE_LEASE_HOOK = 3
    LEASE_READY = 4
    AFTER_LEASE_HOOK = 5
    BEFORE_LEASE_HOOK_FAILED = 6
    AFTER_LEASE_HOOK_FAILED = 7

    @classmethod
    def from_proto(cls, value: int) -> ExporterStatus:
        """The member with this number; numbers of a newer peer become UNSPECIFIED."""
        return cls(value) if value in cls._value2member_map_ else cls.UNSPECIFIED

    def to_proto(self) -> Any:
        """The protocol's number."""
        return self.value

    @property
    def accepts_driver_calls(self) -> bool:
        """True when drivers may be used: during a lease, and by the hooks around it."""
        return self in (
            ExporterStatus.LEASE_READY,
            ExporterStatus.BEFORE_LEASE_HOOK,
            ExporterStatus.AFTER_LEASE_HOOK,
        )


class LogSource(IntEnum):
    """Origin of an exporter's log line (jumpstarter.v1.LogSource)."""

    UNSPECIFIED = 0
    DRIVER = 1
    BEFORE_LEASE_HOOK = 2
    AFTER_LEASE_HOOK = 3
    SYSTEM = 4

    @classmethod
    def from_proto(cls, value: int) -> LogSource:
        """The member with this number; numbers of a newer peer become UNSPECIFIED."""
        return cls(value) if value in cls._value2member_map_ else cls.UNSPECIFIED

    def to_proto(self) -> Any:
        """The protocol's number."""
        return self.value
