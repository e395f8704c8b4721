# SPDX-License-Identifier: Apache-2.0
"""One controller: its services on one TLS port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import grpc

from jumpstarter.common.grpc import server_options, stop_server
from jumpstarter_controller.config import ControllerConfig
from jumpstarter_controller.health import Health
from jumpstarter_controller.identity import Identity, ensure_key
from jumpstarter_controller.identity.oidc import Issuers
from jumpstarter_controller.lab import Lab
from jumpstarter_controller.leases.requests import Limits
from jumpstarter_controller.leases.schedule import SchedulePolicy
from jumpstarter_controller.router import Router, built_in_router, router_handler
from jumpstarter_controller.routers import Route, Routers
from jumpstarter_controller.services.admin import AdminService
from jumpstarter_controller.services.binding import Calls
from jumpstarter_controller.services.client import ClientService
from jumpstarter_controller.services.controller import ControllerService
from jumpstarter_controller.services.lab import LabService
from jumpstarter_controller.services.messages import LabelViews
from jumpstarter_controller.services.router import RouterControlService
from jumpstarter_controller.serving import Certificate, bind, check_authority
from jumpstarter_controller.state.database import Database, open_database
from jumpstarter_protocol.jumpstarter.admin.v1 import admin_pb2
from jumpstarter_protocol.jumpstarter.client.v1 import client_pb2
from jumpstarter_protocol.jumpstarter.lab.v1 import controller_pb2
from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2

__all__ = ["Role", "RunningController", "running_controller"]

#: What the process is: with the router within, or without. (`router` alone is `router_process`.)
Role = Literal["all", "controller"]

#: Seconds that calls get to end by themselves when the controller stops.
_GRACE = 0.5
_ROUTER_SERVICE = "jumpstarter.v1.RouterService"


@dataclass(frozen=True)
class RunningController:
    """What runs. address: host:port that it is bound to; endpoint: the one that it tells others.

    client_address: as address, where client certificates are required. login: host:port of HTTPS for `jmp login`.
    metrics: host:port where Prometheus reads. router: the one within. None for what there is not.
    """

    address: str
    endpoint: str
    client_address: str | None
    login: str | None
    metrics: str | None
    database: Database
    lab: Lab
    router: Router | None


@dataclass(frozen=True)
class _Parts:
    """What services are made of."""

    config: ControllerConfig
    lab: Lab
    identity: Identity
    routers: Routers
    endpoint: str


def _services(parts: _Parts) -> list[tuple[Any, Any]]:
    """(descriptor, object with its methods) of every service that needs the database."""
    lab, identity, config = parts.lab, parts.identity, parts.config
    admin = AdminService(lab, identity, parts.endpoint, config.tls.ca, config.tokens.lifetime)
    labels = LabelViews(frozenset(config.hidden_labels.keys), config.deprecated_labels.keys)
    v1, client = jumpstarter_pb2.DESCRIPTOR.services_by_name, client_pb2.DESCRIPTOR.services_by_name
    ours = controller_pb2.DESCRIPTOR.services_by_name
    return [
        (v1["ControllerService"], ControllerService(lab, identity, parts.routers)),
        (client["ClientService"], ClientService(lab, identity, config.tokens.lifetime, labels)),
        (ours["LabControllerService"], LabService(lab, identity, labels)),
        (ours["RouterControlService"], RouterControlService(lab.database, identity)),
        (admin_pb2.DESCRIPTOR.services_by_name["AdminService"], admin),
    ]


@asynccontextmanager
async def running_controller(config: ControllerConfig, role: Role = "all") -> AsyncIterator[RunningController]:
    """Context in which the controller serves.

    Raises ConfigurationError for what cannot be read or bound, `Unavailable` for a database that cannot be reached.
    """
    database = await asyncio.to_thread(open_database, config.database)
    try:
        await asyncio.to_thread(database.write_now, ensure_key)
        async with _serving(config, role, database) as controller:
            yield controller
    finally:
        await asyncio.to_thread(database.close)


@asynccontextmanager
async def _serving(config: ControllerConfig, role: Role, database: Database) -> AsyncIterator[RunningController]:
    leases = config.leases
    policy = SchedulePolicy(leases.offline_after, leases.retention, leases.spot_grace, leases.audit_retention)
    lab = Lab(database, policy, Limits(config.lease_policy.max_tags))
    identity, calls = _identity(config, database), Calls()
    server = grpc.aio.server(options=server_options())
    address, client_address = _bind(server, config)
    endpoint = config.endpoint or address
    router = built_in_router(database) if role == "all" else None
    built_in = None if router is None else Route(config.router.endpoint or endpoint, router.instance)
    services = _services(_Parts(config, lab, identity, Routers(built_in), endpoint))
    server.add_generic_rpc_handlers(tuple(calls.bind(descriptor, target) for descriptor, target in services))
    if router is not None:
        server.add_generic_rpc_handlers((router_handler(router, calls.guarded),))
    health = Health([descriptor.full_name for descriptor, _ in services], [] if router is None else [_ROUTER_SERVICE])
    health.add_to(server)
    database.outage.watchers.append(health.database_down)
    async with AsyncExitStack() as stack:
        metrics = None
        if config.metrics is not None:
            metrics = stack.enter_context(_metrics(database, router, config.metrics.listen))
        await stack.enter_async_context(identity.running())
        await stack.enter_async_context(lab.running())
        stack.push_async_callback(calls.ended)
        await stack.enter_async_context(_background(health.follow()))
        login = None
        if config.login is not None:
            from jumpstarter_controller.login import serving_login  # only for those who want it

            login = await stack.enter_async_context(serving_login(config, endpoint, health.serving))
        await server.start()
        try:
            yield RunningController(address, endpoint, client_address, login, metrics, database, lab, router)
        finally:
            await health.ends()
            # In this order: others take over before the first exporter of ours looks for them.
            await lab.leave()
            for _, target in services:
                if isinstance(target, RouterControlService):
                    target.stop()
            await calls.stop()
            await stop_server(server, _GRACE)


def _bind(server: Any, config: ControllerConfig) -> tuple[str, str | None]:
    """Listen: for everybody, and where a client certificate is required."""
    tls = config.tls
    check_authority(tls.certificate, tls.ca)
    everybody = Certificate(tls.certificate, tls.key, tls.client_ca if tls.client_listen is None else None)
    address = bind(server, config.listen, everybody.credentials())
    if tls.client_listen is None:
        return address, None
    return address, bind(server, tls.client_listen, Certificate(tls.certificate, tls.key, tls.client_ca).credentials())


def _identity(config: ControllerConfig, database: Database) -> Identity:
    return Identity(
        database,
        Issuers(config.authentication, config.home),
        provisioning=config.namespace if config.provisioning.enabled else None,
        certificates=config.tls.client_ca is not None,
        key_lifetime=config.tokens.key_lifetime,
    )


def _metrics(database: Database, router: Router | None, listen: str) -> Any:
    from jumpstarter_controller.metrics import Metrics  # only for those who want it

    return Metrics(database, lambda: 0 if router is None else router.open_tunnels).served(listen)


@asynccontextmanager
async def _background(work: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
