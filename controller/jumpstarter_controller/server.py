# SPDX-License-Identifier: Apache-2.0
"""One controller: its services on one TLS port."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.common.grpc import server_options
from jumpstarter_controller.config import ControllerConfig
from jumpstarter_controller.identity import Identity, ensure_key
from jumpstarter_controller.lab import Lab
from jumpstarter_controller.leases.schedule import SchedulePolicy
from jumpstarter_controller.router import Router
from jumpstarter_controller.services.binding import Calls
from jumpstarter_controller.services.client import ClientService
from jumpstarter_controller.services.controller import ControllerService
from jumpstarter_controller.state.database import Database, open_database
from jumpstarter_protocol.jumpstarter.client.v1 import client_pb2
from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2

__all__ = ["RunningController", "running_controller"]

logger = logging.getLogger(__name__)

#: Seconds that calls get to end by themselves when the controller stops. The streams among them never would.
_GRACE = 0.5


@dataclass(frozen=True)
class RunningController:
    """What runs. address: host:port that it is bound to; endpoint: the one that it tells others."""

    address: str
    endpoint: str
    database: Database
    router: Router


@asynccontextmanager
async def running_controller(config: ControllerConfig) -> AsyncIterator[RunningController]:
    """Context in which the controller serves. Raises ConfigurationError for what cannot be read or bound."""
    database = open_database(config.database)
    try:
        database.write_now(ensure_key)
        policy = SchedulePolicy(config.leases.offline_after, config.leases.retention)
        lab, identity, calls = Lab(database, policy), Identity(database), Calls()
        server = grpc.aio.server(options=server_options())
        address = _bind(server, config.listen, _Certificate(config.tls.certificate, config.tls.key))
        endpoint = config.endpoint or address
        router = Router(database, identity)
        controller = ControllerService(lab, identity, endpoint)
        client = ClientService(lab, identity, config.tokens.lifetime)
        server.add_generic_rpc_handlers(
            (
                calls.bind(jumpstarter_pb2.DESCRIPTOR.services_by_name["ControllerService"], controller),
                calls.bind(client_pb2.DESCRIPTOR.services_by_name["ClientService"], client),
                _router_handler(router, calls),
            )
        )
        async with lab.running():
            await server.start()
            try:
                yield RunningController(address, endpoint, database, router)
            finally:
                await server.stop(_GRACE)
                await calls.ended()
    finally:
        await asyncio.to_thread(database.close)


def _router_handler(router: Router, calls: Calls) -> grpc.GenericRpcHandler:
    """RouterService with frames as the bytes that came."""
    stream: Any = grpc.stream_stream_rpc_method_handler(calls.guarded(router.stream, "RouterService.Stream"))
    return grpc.method_handlers_generic_handler("jumpstarter.v1.RouterService", {"Stream": stream})


class _Certificate:
    """The server's certificate. A renewed one is used from the next connection on."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._seen = self._stamp()
        self._current = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """For the server's port."""
        return grpc.dynamic_ssl_server_credentials(self._current, self._newer)

    def _newer(self) -> Any:
        """Called by gRPC for every connection: the certificate when it has changed, else None."""
        try:
            stamp = self._stamp()
            if stamp == self._seen:
                return None
            self._current, self._seen = self._read(), stamp
        except ConfigurationError as error:
            logger.error("%s; the certificate in use stays", error)
            return None
        logger.info("TLS certificate %s has been read again", self._files[0])
        return self._current

    def _stamp(self) -> tuple[int, ...]:
        try:
            return tuple(path.stat().st_mtime_ns for path in self._files)
        except OSError as error:
            raise ConfigurationError(f"TLS file {error.filename} cannot be read: {error.strerror}") from error

    def _read(self) -> Any:
        try:
            certificate, key = (path.read_bytes() for path in self._files)
        except OSError as error:
            raise ConfigurationError(f"TLS file {error.filename} cannot be read: {error.strerror}") from error
        return grpc.ssl_server_certificate_configuration([(key, certificate)])


def _bind(server: Any, listen: str, certificate: _Certificate) -> str:
    try:
        port = server.add_secure_port(listen, certificate.credentials())
    except RuntimeError as error:
        raise ConfigurationError(
            f"cannot listen on {listen}: the port is taken, or the certificate unusable"
        ) from error
    return f"{listen.rpartition(':')[0]}:{port}"
