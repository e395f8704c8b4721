# SPDX-License-Identifier: Apache-2.0
"""The `tls:` block of a configuration."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from pydantic import BaseModel, ConfigDict, field_validator, model_validator


class TLSConfigV1Alpha1(BaseModel):
    """ca: base64 of the CA certificates as PEM, "" for the system's. insecure: do not verify the server.

    cert, key: PEM files (absolute paths, ``~`` is expanded) of the certificate that is shown to the controller, instead
    of a token or beside it (`jumpstarter-controller ca issue-client`).
    """

    model_config = ConfigDict(extra="allow")

    ca: str = ""
    insecure: bool = False
    cert: str = ""
    key: str = ""

    @field_validator("ca")
    @classmethod
    def _is_base64_pem(cls, value: str) -> str:
        if value:
            _decode(value)
        return value

    @model_validator(mode="after")
    def _belong_together(self) -> TLSConfigV1Alpha1:
        if bool(self.cert) != bool(self.key):
            raise ValueError("cert and key are given together")
        for path in filter(None, (self.cert, self.key)):
            if not Path(path).expanduser().is_absolute():
                raise ValueError(f'"{path}" must be an absolute path')
        return self

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
