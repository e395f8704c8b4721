# SPDX-License-Identifier: Apache-2.0
"""The nested parts of `HttpPower`'s configuration. A misspelt key in them is an error."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver.secret import check_secret, read_secret
from jumpstarter_driver_http_power.transport import HttpLogin

__all__ = [
    "HttpAuthConfig",
    "HttpBasicAuth",
    "HttpBearerAuth",
    "HttpDigestAuth",
    "HttpEndpointConfig",
    "HttpStatusConfig",
]

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD")
Scalar = bool | int | float | str
_ON: list[Scalar] = [True, 1, "on"]
_OFF: list[Scalar] = [False, 0, "off"]


@dataclass(kw_only=True)
class HttpEndpointConfig:
    """One request.

    url: with {name} where `variables` of the driver say so. method, data: the latter is sent with POST, PUT and PATCH.
    headers: further ones. expect_status: those that mean success (default: all below 400). expect: a regular
    expression that the answer must contain. voltage_path, current_path: of `power_read`, dotted ("meters.0.voltage").
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    url: str = field(repr=False)  # this and data may hold a password
    method: str = "GET"
    data: str | None = field(default=None, repr=False)
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    expect_status: list[int] | None = None
    expect: str | None = None
    voltage_path: str | None = None
    current_path: str | None = None

    def check(self, name: str) -> None:
        """Raise `ConfigurationError` for what cannot be sent."""
        self.method = self.method.upper()
        if self.method not in _METHODS:
            raise ConfigurationError(f'{name}.method is "{self.method}", must be one of {", ".join(_METHODS)}')
        _check_pattern(f"{name}.expect", self.expect)


@dataclass(kw_only=True)
class HttpStatusConfig(HttpEndpointConfig):
    """The request that asks for the state.

    path: dotted, where the state stands in a JSON answer; pattern: a regular expression for any answer, its first group
    (or the whole match) is the state; with neither the whole answer is. is_on, is_off: values that mean on and off.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    path: str | None = None
    pattern: str | None = None
    is_on: list[Scalar] = field(default_factory=lambda: list(_ON))
    is_off: list[Scalar] = field(default_factory=lambda: list(_OFF))

    def check(self, name: str) -> None:
        """As of an endpoint, and that the state can be told."""
        super().check(name)
        if self.path is not None and self.pattern is not None:
            raise ConfigurationError(f"{name}: path and pattern are both given; keep one")
        _check_pattern(f"{name}.pattern", self.pattern)
        both = self.words(self.is_on) & self.words(self.is_off)
        if both:
            raise ConfigurationError(f"{name}: {sorted(both)} is in is_on and in is_off")

    @staticmethod
    def words(values: list[Scalar]) -> set[str]:
        """The values as they are compared: true, True and "TRUE" are the same."""
        return {str(value).strip().lower() for value in values}


@dataclass(kw_only=True)
class HttpBasicAuth:
    """A user and a password, sent with each request (RFC 7617)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    user: str = ""
    password: str | None = field(default=None, repr=False)
    password_file: str | None = None


@dataclass(kw_only=True)
class HttpDigestAuth(HttpBasicAuth):
    """A user and a password that is not sent (RFC 7616: MD5, SHA-256)."""


@dataclass(kw_only=True)
class HttpBearerAuth:
    """A token, sent with each request (RFC 6750)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    token: str | None = field(default=None, repr=False)
    token_file: str | None = None


@dataclass(kw_only=True)
class HttpAuthConfig:
    """One way to log in."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    basic: HttpBasicAuth | None = None
    digest: HttpDigestAuth | None = None
    bearer: HttpBearerAuth | None = None

    def check(self) -> None:
        """Raise `ConfigurationError` for more than one way, or a secret given twice or not at all."""
        ways = [name for name in ("basic", "digest", "bearer") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise ConfigurationError(f"auth has {' and '.join(ways)}; keep one")
        for name in ("basic", "digest"):
            way = getattr(self, name)
            if way is not None:
                check_secret(f"auth.{name}.password", way.password, way.password_file)
        if self.bearer is not None:
            check_secret("auth.bearer.token", self.bearer.token, self.bearer.token_file, required=True)

    def login(self) -> HttpLogin:
        """The login with its secret, read now."""
        for name in ("basic", "digest"):
            way = getattr(self, name)
            if way is not None:
                secret = read_secret(f"auth.{name}.password", way.password, way.password_file)
                return HttpLogin(name, way.user, secret or "")
        if self.bearer is not None:
            token = read_secret("auth.bearer.token", self.bearer.token, self.bearer.token_file)
            return HttpLogin("bearer", secret=token or "")
        return HttpLogin()


def _check_pattern(name: str, pattern: str | None) -> None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ConfigurationError(f"{name} is no regular expression: {error}") from None
