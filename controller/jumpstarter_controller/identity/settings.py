# SPDX-License-Identifier: Apache-2.0
"""The blocks of the configuration that say who is believed.

authentication:
  clockSkew: 5m                     # how far an issuer's clock may be from ours
  jwt:                              # external issuers
    - issuer: {url: "https://login.example.org", audiences: [jumpstarter-cli], certificateAuthority: corp.crt}
      claimMappings: {username: {claim: email, prefix: "corp:"}}
provisioning: {enabled: false}      # make a client of everybody whom an issuer knows
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from jumpstarter_controller.durations import NotNegative
from jumpstarter_controller.identity.tokens import ISSUER

__all__ = ["AuthenticationSettings", "IssuerSettings", "JWTSettings", "ProvisioningSettings"]


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class IssuerSettings(_Block):
    """url: as tokens name it. audiences: one of them must be in a token. certificate_authority: PEM text or its file,
    "" for the system's. client_id: what `jmp login` calls itself there."""

    url: str
    audiences: list[str] = Field(min_length=1)
    audience_match_policy: Literal["", "MatchAny"] = Field(default="", alias="audienceMatchPolicy")
    certificate_authority: str = Field(default="", alias="certificateAuthority")
    client_id: str = Field(default="jumpstarter-cli", alias="clientId")

    @field_validator("url")
    @classmethod
    def _is_https(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname or parts.query or parts.fragment or parts.username:
            raise ValueError(f'expected https://HOST[:PORT][/PATH], got "{url}"')
        if url == ISSUER:
            raise ValueError(f'"{url}" is what this controller calls itself')
        return url

    def authority(self, home: Path) -> str | Path | None:
        """PEM text, or a file, whose path is relative to ``home``; None for the system's."""
        if not self.certificate_authority:
            return None
        if "-----BEGIN " in self.certificate_authority:
            return self.certificate_authority
        return home / self.certificate_authority


class UsernameSettings(_Block):
    """claim: the one that names the user. prefix: put before it, so that no issuer can name users of another."""

    claim: str = Field(default="sub", min_length=1)
    prefix: str = ""


class ClaimMappings(_Block):
    """What the claims mean."""

    username: UsernameSettings = Field(default_factory=UsernameSettings)


class JWTSettings(_Block):
    """One external issuer."""

    issuer: IssuerSettings
    claim_mappings: ClaimMappings = Field(default_factory=ClaimMappings, alias="claimMappings")


class AuthenticationSettings(_Block):
    """jwt: external issuers. clock_skew: seconds."""

    jwt: list[JWTSettings] = Field(default_factory=list)
    clock_skew: NotNegative = Field(default=300.0, alias="clockSkew")

    @model_validator(mode="after")
    def _issuers_are_apart(self) -> AuthenticationSettings:
        for number, one in enumerate(self.jwt):
            for other in self.jwt[number + 1 :]:
                if one.issuer.url == other.issuer.url:
                    raise ValueError(f"issuer {one.issuer.url} is there twice")
                first, second = one.claim_mappings.username.prefix, other.claim_mappings.username.prefix
                if first.startswith(second) or second.startswith(first):
                    raise ValueError(
                        f'the username prefixes "{first}" of {one.issuer.url} and "{second}" of {other.issuer.url} '
                        "must differ and not begin with each other, or one issuer could name the users of the other"
                    )
        return self


class ProvisioningSettings(_Block):
    """enabled: who has a token of an external issuer, and no client, gets one."""

    enabled: bool = False
