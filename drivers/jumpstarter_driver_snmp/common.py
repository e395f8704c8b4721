# SPDX-License-Identifier: Apache-2.0
"""Names of SNMP that a configuration uses, and the errors of talking to an agent.

No dependency: the protocols are looked up in pysnmp only when something is switched.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

__all__ = ["AuthProtocol", "PowerState", "PrivProtocol", "SNMPError", "SNMPTimeout"]


class AuthProtocol(StrEnum):
    """How SNMPv3 messages are authenticated: RFC 3414 (MD5, SHA), RFC 7860 (SHA-2)."""

    NONE = "NONE"
    MD5 = "MD5"
    SHA = "SHA"
    SHA224 = "SHA224"
    SHA256 = "SHA256"
    SHA384 = "SHA384"
    SHA512 = "SHA512"


class PrivProtocol(StrEnum):
    """How SNMPv3 messages are encrypted: RFC 3414 (DES), RFC 3826 (AES), drafts for the others.

    AES192 and AES256 extend the key as Net-SNMP and most devices do (draft-blumenthal-aes-usm-04); AES192_C and
    AES256_C as Cisco does (draft-reeder-snmpv3-usm-3desede-00).
    """

    NONE = "NONE"
    DES = "DES"
    TRIPLE_DES = "3DES"
    AES = "AES"
    AES192 = "AES192"
    AES256 = "AES256"
    AES192_C = "AES192_C"
    AES256_C = "AES256_C"


class PowerState(IntEnum):
    """Default values of the switching column."""

    OFF = 0
    ON = 1


class SNMPError(OSError):
    """The agent refused, or answered what cannot be used."""


class SNMPTimeout(SNMPError, TimeoutError):
    """The agent did not answer in time. Agents also keep silent when the community or the user is wrong."""
