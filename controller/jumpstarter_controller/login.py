# SPDX-License-Identifier: Apache-2.0
"""The login endpoint: HTTPS that tells `jmp login` how this lab is reached. It gives nothing away that a client's
configuration file does not hold, but the token."""

from __future__ import annotations

import asyncio
import base64
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_controller.config import ControllerConfig
from jumpstarter_controller.errors import one_line

__all__ = ["serving_login"]

logger = logging.getLogger(__name__)

#: Seconds that a connection gets to begin and to end its encryption.
_HANDSHAKE_SECONDS, _SHUTDOWN_SECONDS = 10.0, 5.0

_WELCOME = "This is the controller of a jumpstarter.lab lab. Log in with: jmp login https://{host}\n"


@asynccontextmanager
async def serving_login(config: ControllerConfig, endpoint: str, healthy: Callable[[], bool]) -> AsyncIterator[str]:
    """Context in which the endpoint answers; its host:port. endpoint: that of the controller.

    Raises ConfigurationError.
    """
    assert config.login is not None
    answer = _config_answer(config, endpoint)

    async def auth_config(_: web.Request) -> web.Response:
        return web.json_response(answer, headers={"Cache-Control": "no-store"})

    async def healthz(_: web.Request) -> web.Response:
        well = healthy()
        return web.json_response({"status": "ok" if well else "unavailable"}, status=200 if well else 503)

    async def welcome(request: web.Request) -> web.Response:
        return web.Response(text=_WELCOME.format(host=request.host))

    application = web.Application(client_max_size=1024)
    application.add_routes(
        [web.get("/", welcome), web.get("/v1/auth/config", auth_config), web.get("/healthz", healthz)]
    )
    runner = web.AppRunner(application, access_log=None, keepalive_timeout=15, shutdown_timeout=1)
    await runner.setup()
    assert runner.server is not None  # since setup
    host, _, port = config.login.listen.rpartition(":")
    context = _RenewableContext(config.tls.certificate, config.tls.key).context
    aiohttp_log = logging.getLogger("aiohttp.server")
    aiohttp_log.addFilter(_without_traceback)
    try:
        try:
            # Not aiohttp's site: a connection costs 256 KiB, and those that stay silent would keep it for a minute.
            server = await asyncio.get_running_loop().create_server(
                runner.server,
                host.strip("[]"),
                int(port),
                ssl=context,
                ssl_handshake_timeout=_HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=_SHUTDOWN_SECONDS,
            )
        except OSError as error:
            why = error.strerror or error
            raise ConfigurationError(f"login: cannot listen on {config.login.listen}: {why}") from None
        try:
            yield f"{host}:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
    finally:
        await runner.cleanup()
        aiohttp_log.removeFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    """A request that is no HTTP is one line: its sender, whom nobody knows, could fill the log."""
    if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
        why = one_line(str(record.exc_info[1]), 200)
        record.msg, record.args, record.exc_info = f"{record.getMessage()}: {why}", (), None
    return True


def _config_answer(config: ControllerConfig, endpoint: str) -> dict[str, Any]:
    try:
        ca = config.tls.ca.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"TLS CA {config.tls.ca} cannot be read: {error.strerror or error}") from error
    answer: dict[str, Any] = {
        "grpcEndpoint": endpoint,
        "namespace": config.namespace,
        "caBundle": base64.b64encode(ca).decode(),
        "oidc": [
            {
                "issuer": each.issuer.url,
                "clientId": each.issuer.client_id,
                "audiences": each.issuer.audiences,
            }
            for each in config.authentication.jwt
        ],
    }
    if config.router.endpoint is not None:
        answer["routerEndpoint"] = config.router.endpoint
    return answer


class _RenewableContext:
    """TLS with a certificate that may be renewed; a new one is used from the next connection on."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._seen = self._stamp()
        self._current = self.context = self._load()
        # Called for every handshake, with a name or without.
        self.context.sni_callback = self._choose

    def _choose(self, connection: Any, _: str | None, __: ssl.SSLContext) -> None:
        try:
            stamp = self._stamp()
            if stamp != self._seen:
                self._current, self._seen = self._load(), stamp
        except ConfigurationError as error:
            logger.error("%s; the certificate in use stays", error)
        connection.context = self._current

    def _stamp(self) -> tuple[int, ...]:
        try:
            return tuple(path.stat().st_mtime_ns for path in self._files)
        except OSError as error:
            raise ConfigurationError(f"TLS file {error.filename} cannot be read: {error.strerror}") from error

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(*self._files)
        except OSError as error:  # SSLError is one
            raise ConfigurationError(f"TLS files {', '.join(map(str, self._files))} cannot be used: {error}") from error
        return context
