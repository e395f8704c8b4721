# SPDX-License-Identifier: Apache-2.0
"""The ways to reach a device, as inventory variables describe them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from .controllers import ClientRef
from .errors import AgentError

__all__ = ["ControllerReach", "DirectReach", "LocalReach", "Reach", "parse_client", "parse_reach"]


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


@dataclass(frozen=True)
class ControllerReach:
    """An exporter that a controller leases to us: one with these labels, or the one of that name.

    client: whose lease it is, and at which controller.
    """

    selector: str = ""
    exporter: str | None = None
    client: ClientRef = field(default_factory=ClientRef)

    kind = "controller"

    @property
    def target(self) -> str:
        """What names the exporter in messages and facts, before there is one."""
        if self.exporter is not None:
            return f"exporter {self.exporter}" + (f" ({self.selector})" if self.selector else "")
        return f"an exporter with {self.selector}"

    def as_dict(self) -> dict[str, Any]:
        """The reach as a lease reports it."""
        return {"kind": self.kind, "target": self.target, "selector": self.selector, "exporter": self.exporter}


Reach = LocalReach | DirectReach | ControllerReach

_DIRECT_FILES = ("tls_ca", "tls_cert", "tls_key", "passphrase_file")
_DIRECT_KEYS = {"endpoint", "insecure", *_DIRECT_FILES}
_CONTROLLER_KEYS = {"selector", "exporter", "client", "client_config"}


def parse_reach(value: dict[str, Any]) -> Reach:
    """Check the ``reach`` object of a request. Which files exist is not looked at here."""
    given = {name: item for name, item in value.items() if item is not None}
    ways: list[str] = [name for name in ("exporter_config", "endpoint") if name in given]
    controller: list[str] = [name for name in ("selector", "exporter") if name in given]
    if not ways and not controller:
        raise AgentError(
            "invalid",
            "the host has no way to its device: set jumpstarter_exporter_config (a local exporter), "
            "jumpstarter_endpoint (an exporter's own port), or jumpstarter_selector or jumpstarter_exporter (a lease "
            "from a controller)",
        )
    if len(ways) + bool(controller) > 1:
        raise AgentError(
            "invalid", f"more than one way to the device is given: {', '.join(ways + controller)}; keep one"
        )
    if controller:
        return _parse_controller(given)
    return _parse_local(given) if ways == ["exporter_config"] else _parse_direct(given)


def parse_client(given: dict[str, Any]) -> ClientRef:
    """The client configuration that ``client`` (an alias) or ``client_config`` (an absolute path) names."""
    alias = _text(given, "client") if given.get("client") is not None else None
    config = _text(given, "client_config") if given.get("client_config") is not None else None
    if alias is not None and config is not None:
        raise AgentError("invalid", "client and client_config exclude each other: keep one")
    if config is not None and not os.path.isabs(config):
        raise AgentError("invalid", f"client_config {config!r} is not an absolute path")
    return ClientRef(alias=alias, config=os.path.normpath(config) if config is not None else None)


def _parse_controller(given: dict[str, Any]) -> ControllerReach:
    _refuse_unknown(given, _CONTROLLER_KEYS)
    return ControllerReach(
        selector=_text(given, "selector") if "selector" in given else "",
        exporter=_text(given, "exporter") if "exporter" in given else None,
        client=parse_client(given),
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
