# SPDX-License-Identifier: Apache-2.0
"""The `tls:` block of a configuration."""

from __future__ import annotations

import base64
import binascii

from pydantic import BaseModel, ConfigDict, field_validator


class TLSConfigV1Alpha1(BaseModel):
    """ca: base64 of the CA certificates as PEM, "" for the system's. insecure: do not verify the server."""

    model_config = ConfigDict(extra="allow")

    ca: str = ""
    insecure: bool = False

    @field_validator("ca")
    @classmethod
    def _is_base64_pem(cls, value: str) -> str:
        if value:
            _decode(value)
        return value

    def ca_pem(self) -> bytes | None:
        """The CA certificates as PEM, or None for the system's."""
        return _decode(self.ca) if self.ca else None


def _decode(value: str) -> bytes:
    try:
        pem = base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("must be the base64 of a PEM file") from None
    if b"-----BEGIN " not in pem:
        raise ValueError("is base64, but not of a PEM file")
    return pem
