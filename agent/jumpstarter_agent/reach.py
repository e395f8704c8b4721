# SPDX-License-Identifier: Apache-2.0
"""The ways to reach a device, as inventory variables describe them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from .errors import AgentError

__all__ = ["DirectReach", "LocalReach", "Reach", "parse_reach"]


@dataclass(frozen=True)
class LocalReach:
    """An exporter of our own, run from a configuration file for the time of the lease."""

    config: str

    kind = "local"

    @property
    def target(self) -> str:
        """What names the exporter in messages and facts."""
        return self.config

    def as_dict(self) -> dict[str, Any]:
        """The reach as a lease reports it."""
        return {"kind": self.kind, "target": self.target}


@dataclass(frozen=True)
class DirectReach:
    """An exporter that listens on a TCP port of its own. Files are absolute paths; the passphrase stays in its file."""

    endpoint: str
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    insecure: bool = False
    passphrase_file: str | None = None

    kind = "direct"

    @property
    def target(self) -> str:
        """What names the exporter in messages and facts."""
        return self.endpoint

    def as_dict(self) -> dict[str, Any]:
        """The reach as a lease reports it."""
        return {"kind": self.kind, "target": self.target}


Reach = LocalReach | DirectReach

_DIRECT_FILES = ("tls_ca", "tls_cert", "tls_key", "passphrase_file")
_DIRECT_KEYS = {"endpoint", "insecure", *_DIRECT_FILES}
_CONTROLLER_KEYS = {"selector", "exporter"}


def parse_reach(value: dict[str, Any]) -> Reach:
    """Check the ``reach`` object of a request. Which files exist is not looked at here."""
    given = {name: item for name, item in value.items() if item is not None}
    kinds = [kind for kind in ("exporter_config", "endpoint", "selector", "exporter") if kind in given]
    if not kinds:
        raise AgentError(
            "invalid",
            "the host has no way to its device: set jumpstarter_exporter_config (a local exporter) or "
            "jumpstarter_endpoint (an exporter's own port)",
        )
    if "exporter_config" in kinds or "endpoint" in kinds:
        if len(kinds) > 1:
            raise AgentError("invalid", f"more than one way to the device is given: {', '.join(kinds)}; keep one")
        return _parse_local(given) if kinds == ["exporter_config"] else _parse_direct(given)
    raise AgentError(
        "unsupported",
        "reaching a device through a controller (selector, exporter) is not supported yet; use "
        "jumpstarter_exporter_config or jumpstarter_endpoint",
    )


def _parse_local(given: dict[str, Any]) -> LocalReach:
    _refuse_unknown(given, {"exporter_config"})
    config = _text(given, "exporter_config")
    if not os.path.isabs(config):
        raise AgentError("invalid", f"exporter_config {config!r} is not an absolute path")
    return LocalReach(os.path.normpath(config))


def _parse_direct(given: dict[str, Any]) -> DirectReach:
    _refuse_unknown(given, _DIRECT_KEYS)
    endpoint = _text(given, "endpoint")
    host, colon, port = endpoint.rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
        raise AgentError("invalid", f"endpoint {endpoint!r} is not HOST:PORT")
    insecure = given.get("insecure", False)
    if not isinstance(insecure, bool):
        raise AgentError("invalid", f"insecure is {insecure!r}, not true or false")
    files = {name: _text(given, name) for name in _DIRECT_FILES if name in given}
    if ("tls_cert" in files) != ("tls_key" in files):
        raise AgentError("invalid", "tls_cert and tls_key go together: one of them is missing")
    if insecure and files.keys() & {"tls_ca", "tls_cert", "tls_key"}:
        raise AgentError("invalid", "insecure and TLS files exclude each other")
    return DirectReach(
        endpoint=endpoint,
        insecure=insecure,
        tls_ca=files.get("tls_ca"),
        tls_cert=files.get("tls_cert"),
        tls_key=files.get("tls_key"),
        passphrase_file=files.get("passphrase_file"),
    )


def _refuse_unknown(given: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        raise AgentError("invalid", f"unknown field {', '.join(map(repr, unknown))} in 'reach'")


def _text(given: dict[str, Any], name: str) -> str:
    value = given[name]
    if not isinstance(value, str) or not value:
        raise AgentError("invalid", f"{name} is {value!r}, not a path or address")
    return value
