# SPDX-License-Identifier: Apache-2.0
"""A supply that is switched by HTTP requests which the configuration spells out."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar
from urllib.parse import quote, urlsplit

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver.secret import read_secret
from jumpstarter_driver_http_power.settings import (
    HttpAuthConfig,
    HttpBasicAuth,
    HttpBearerAuth,
    HttpDigestAuth,
    HttpEndpointConfig,
    HttpStatusConfig,
)
from jumpstarter_driver_http_power.transport import Answer, HttpSession, check_timeout, check_url
from jumpstarter_driver_power.common import PowerReading, PowerState
from jumpstarter_driver_power.switched import PowerError, SwitchedPower

__all__ = [
    "HttpAuthConfig",
    "HttpBasicAuth",
    "HttpBearerAuth",
    "HttpDigestAuth",
    "HttpEndpointConfig",
    "HttpPower",
    "HttpStatusConfig",
]

C = TypeVar("C")


@dataclass(kw_only=True)
class HttpPower(SwitchedPower):
    """Switches with `power_on` and `power_off`, reads back with `power_status` where there is one.

    name: of the device, for logs and errors. power_on, power_off, power_read, power_status: see `HttpEndpointConfig`
    and `HttpStatusConfig`. auth: basic, digest or bearer. variables: what {name} in URLs, data and headers stands for;
    variable_files: the same, read from files when needed, for secrets. Both are percent-encoded in URLs. timeout:
    seconds for one request. tls_ca: file of certificates to trust for https. tls_verify: False trusts all.
    """

    needs: ClassVar[tuple[str, ...]] = ("requests",)

    name: str = "device"
    power_on: HttpEndpointConfig
    power_off: HttpEndpointConfig
    power_read: HttpEndpointConfig | None = None
    power_status: HttpStatusConfig | None = None
    auth: HttpAuthConfig | None = None
    variables: dict[str, str] = field(default_factory=dict, repr=False)
    variable_files: dict[str, str] = field(default_factory=dict)
    timeout: float = 10.0
    tls_ca: str | None = None
    tls_verify: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_timeout(self.timeout)
        twice = set(self.variables) & set(self.variable_files)
        if twice:
            raise ConfigurationError(f"{sorted(twice)} is in variables and in variable_files")
        for name, kind in (
            ("power_on", HttpEndpointConfig),
            ("power_off", HttpEndpointConfig),
            ("power_read", HttpEndpointConfig),
            ("power_status", HttpStatusConfig),
        ):
            endpoint = _made(name, kind, getattr(self, name))
            setattr(self, name, endpoint)
            if endpoint is not None:
                endpoint.check(name)
                placeholders = dict.fromkeys(self.variable_files, "x")
                check_url(f"{name}.url", self._filled(endpoint.url, {**self.variables, **placeholders}, quoted=True))
        self.auth = _made("auth", HttpAuthConfig, self.auth)
        if self.auth is not None:
            self.auth.basic = _made("auth.basic", HttpBasicAuth, self.auth.basic)
            self.auth.digest = _made("auth.digest", HttpDigestAuth, self.auth.digest)
            self.auth.bearer = _made("auth.bearer", HttpBearerAuth, self.auth.bearer)
            self.auth.check()
        if self.power_status is None:
            self.verify = False  # there is nobody to ask

    @property
    def target(self) -> str:
        """The device, for messages."""
        host = urlsplit(self._filled(self.power_on.url, self.variables, quoted=True)).hostname
        return f"{self.name} at {host}"

    @staticmethod
    def _filled(text: str, variables: dict[str, str], *, quoted: bool) -> str:
        """`text` with the variables in it; other braces stay, they may be JSON."""
        for name, value in variables.items():
            text = text.replace("{" + name + "}", quote(str(value), safe=":[]") if quoted else str(value))
        return text

    def _ask(self, endpoint: HttpEndpointConfig) -> Answer:
        secrets = {n: read_secret(f"variable_files.{n}", None, path) or "" for n, path in self.variable_files.items()}
        variables = {**self.variables, **secrets}
        url = self._filled(endpoint.url, variables, quoted=True)
        data = endpoint.data if endpoint.method in ("POST", "PUT", "PATCH") else None
        login = self.auth.login() if self.auth is not None else None
        with HttpSession(login, timeout=self.timeout, ca=self.tls_ca, verify=self.tls_verify) as session:
            answer = session.request(
                endpoint.method,
                url,
                data=self._filled(data, variables, quoted=False) if data is not None else None,
                headers={k: self._filled(v, variables, quoted=False) for k, v in endpoint.headers.items()},
                statuses=endpoint.expect_status,
            )
        if endpoint.expect is not None and re.search(endpoint.expect, answer.text) is None:
            raise PowerError(f'{self.name}: {answer.where}: the answer does not match "{endpoint.expect}"')
        return answer

    def switch(self, on: bool) -> None:
        """Send the request for this state."""
        self._ask(self.power_on if on else self.power_off)

    def state(self) -> PowerState:
        """Ask, and find the state in the answer; "unknown" without `power_status`, or for a value not configured."""
        wanted = self.power_status
        if wanted is None:
            return "unknown"
        answer = self._ask(wanted)
        if wanted.path is not None:
            value = _at(answer.json(), wanted.path, answer.where)
        elif wanted.pattern is not None:
            match = re.search(wanted.pattern, answer.text)
            if match is None:
                raise PowerError(f'{self.name}: {answer.where}: no match for "{wanted.pattern}" in the answer')
            value = match.group(1) if match.re.groups else match.group(0)
        else:
            value = answer.text
        word = str(value).strip().lower()
        return (
            "on" if word in wanted.words(wanted.is_on) else "off" if word in wanted.words(wanted.is_off) else "unknown"
        )

    def measure(self) -> PowerReading:
        """Ask `power_read`. Raises `NotImplementedError` without it, `PowerError` when no number is where it should be.

        Without configured paths the keys "voltage" and "current" are taken; one of the two may then be missing (0).
        """
        if self.power_read is None:
            raise NotImplementedError(f"{self.name}: power_read is not configured, so there is nothing to measure with")
        answer = self._ask(self.power_read)
        document = answer.json()
        voltage = _number(document, self.power_read.voltage_path, "voltage", answer.where)
        current = _number(document, self.power_read.current_path, "current", answer.where)
        if voltage is None and current is None:
            raise PowerError(f"{self.name}: {answer.where}: neither voltage nor current is in the answer")
        return PowerReading(voltage=voltage or 0.0, current=current or 0.0)


def _made(name: str, kind: type[C], value: Any) -> C | None:
    """A part of the configuration as its class: Python callers pass plain dictionaries."""
    if value is None or isinstance(value, kind):
        return value
    if not isinstance(value, dict):
        raise ConfigurationError(f"{name} must be a mapping")
    try:
        return kind(**value)
    except TypeError as error:
        raise ConfigurationError(f"{name}: {str(error).partition(') ')[2] or error}") from None


def _at(document: Any, path: str, where: str) -> Any:
    for part in path.split("."):
        try:
            document = document[int(part)] if isinstance(document, list) else document[part]
        except (KeyError, IndexError, TypeError, ValueError):
            raise PowerError(f'{where}: there is no "{path}" in the answer') from None
    return document


def _number(document: Any, path: str | None, default: str, where: str) -> float | None:
    if path is None and not (isinstance(document, dict) and default in document):
        return None
    value = _at(document, path or default, where)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise PowerError(f'{where}: "{path or default}" in the answer is no number') from None
