# SPDX-License-Identifier: Apache-2.0
"""Who calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Caller", "Kind", "Method", "Role"]

Kind = Literal["client", "exporter", "router"]
Role = Literal["client", "exporter"]
Method = Literal["token", "oidc", "certificate"]


@dataclass(frozen=True)
class Caller:
    """Who calls, and how that was proven.

    jti: id of the token or certificate that says so, "" for one of an external issuer. username: the name there.
    expires_at: when the proof ends (seconds since 1970), None when the connection's certificate is the proof.
    """

    kind: Kind
    id: str
    namespace: str
    name: str
    jti: str = ""
    administrator: bool = False
    method: Method = "token"
    expires_at: float | None = None
    username: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"
