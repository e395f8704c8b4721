# SPDX-License-Identifier: Apache-2.0
"""Channels to a controller, and what its refusals mean.

A channel shows the identity of a configuration with every call: the token (read anew for each, so that one that was
renewed is used at once) and the jumpstarter-* headers.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from jumpstarter.common.exceptions import (
    AuthenticationError,
    ConfigurationError,
    ConnectionError,
    ControllerError,
    JumpstarterException,
)
from jumpstarter.common.grpc import TLS, channel_options
from jumpstarter.common.tofu import presented_certificate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jumpstarter.config.client import ClientConfigV1Alpha1
    from jumpstarter.config.exporter import ExporterConfigV1Alpha1
    from jumpstarter.config.tls import TLSConfigV1Alpha1

__all__ = [
    "error_from_rpc",
    "is_outage",
    "is_token_refused",
    "open_channel",
    "presented_tls",
    "secure_channel",
    "tls_for",
]

#: A controller that comes back is found within seconds: gRPC's own limit is two minutes.
_RECONNECT: dict[str, str | int] = {
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 2_000,
    # Time for one attempt to connect.
    "grpc.min_reconnect_backoff_ms": 5_000,
}
_OUTAGE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
#: A 0.9 controller refuses a token with UNKNOWN and these words.
_TOKEN_WORDS = ("token is expired", "verify token", "authenticate token")


def tls_for(endpoint: str, config: TLSConfigV1Alpha1) -> TLS:
    """What a channel to ``endpoint`` (host:port) trusts by the ``tls:`` block of a configuration.

    With ``insecure`` whatever certificate the endpoint presents now is the one to trust; asking for it takes a moment
    and blocks. Raises ConfigurationError, ConnectionError.
    """
    own = TLS()
    if config.cert:
        own = TLS.from_files(cert=Path(config.cert).expanduser(), key=Path(config.key).expanduser())
    if not config.insecure:
        return replace(own, ca=config.ca_pem())
    certificate, name = presented_certificate(endpoint)
    return replace(own, ca=certificate, server_name=name)


async def presented_tls(config: ClientConfigV1Alpha1 | ExporterConfigV1Alpha1) -> TLS | None:
    """For `open_channel`: what `tls_for` has to ask the controller, without blocking the loop; None for no question."""
    if not (config.tls.insecure and config.endpoint):
        return None
    return await asyncio.to_thread(tls_for, config.endpoint, config.tls)


def secure_channel(
    endpoint: str,
    tls: TLS,
    options: Mapping[str, str | int] | None = None,
    call_credentials: grpc.CallCredentials | None = None,
) -> grpc.aio.Channel:
    """A TLS channel to host:port that looks for a lost peer every few seconds. Needs a running event loop."""
    every = {**_RECONNECT, **(options or {})}
    if tls.server_name:
        every["grpc.ssl_target_name_override"] = tls.server_name
    credentials = tls.credentials()
    if call_credentials is not None:
        credentials = grpc.composite_channel_credentials(credentials, call_credentials)
    return grpc.aio.secure_channel(endpoint, credentials, options=channel_options(every))


def open_channel(config: ClientConfigV1Alpha1 | ExporterConfigV1Alpha1, *, tls: TLS | None = None) -> grpc.aio.Channel:
    """A channel to the controller of ``config`` that shows its identity. Needs a running event loop.

    tls: what `presented_tls` returned; without it that question is asked here and blocks. Raises ConfigurationError
    without endpoint or token.
    """
    where = config.path if config.path is not None else f'configuration "{config.alias}"'
    if not config.endpoint:
        raise ConfigurationError(f"{where}: endpoint is not set: which controller is it?")
    if not config.token and not config.tls.cert:
        raise ConfigurationError(f"{where}: token is not set: log in to {config.endpoint} with `jmp login`")
    identity = grpc.metadata_call_credentials(_Identity(config), name="jumpstarter")
    if tls is None:
        tls = tls_for(config.endpoint, config.tls)
    return secure_channel(config.endpoint, tls, config.grpcOptions, identity)


class _Identity(grpc.AuthMetadataPlugin):
    """The headers of a configuration."""

    def __init__(self, config: ClientConfigV1Alpha1 | ExporterConfigV1Alpha1) -> None:
        self._config = config

    def __call__(self, _: Any, callback: Callable[[Any, Exception | None], None]) -> None:
        config = self._config
        found = [
            ("jumpstarter-kind", config.KIND.removesuffix("Config")),
            ("jumpstarter-name", config.metadata.name),
        ]
        if config.token:
            found.append(("authorization", f"Bearer {config.token}"))
        if config.metadata.namespace:
            found.append(("jumpstarter-namespace", config.metadata.namespace))
        callback(tuple(found), None)


def is_outage(error: Any) -> bool:
    """Whether a failed call says nothing but that the peer cannot be reached now."""
    return error.code() in _OUTAGE


def is_token_refused(error: Any) -> bool:
    """Whether a call failed because the controller does not accept our token."""
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNKNOWN:
        return any(words in details for words in _TOKEN_WORDS)
    return code is grpc.StatusCode.UNAUTHENTICATED


def error_from_rpc(error: Any, what: str, kind: type[ControllerError] = ControllerError) -> JumpstarterException:
    """The exception for a call to a controller that failed.

    what: names the controller and what was asked ("controller lab:8082: lease a"). kind: class for refusals; the others
    are ConnectionError (it cannot be reached), and AuthenticationError (it does not accept our token).
    """
    code, details = error.code(), " ".join((error.details() or "").split())
    if is_outage(error) or is_token_refused(error):
        found = (
            ConnectionError(f"{what}: it does not answer: {details or code.name}")
            if is_outage(error)
            else AuthenticationError(f"{what}: {details}; log in again with `jmp login`")
        )
        found.code = code.name
        return found
    return kind(f"{what}: {details or code.name}", code=code.name, details=details)
