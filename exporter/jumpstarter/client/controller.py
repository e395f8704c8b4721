# SPDX-License-Identifier: Apache-2.0
"""What a client asks of a controller, ours or a Jumpstarter 0.9 one.

async with connect_controller(config) as controller:
    for exporter in await controller.list_exporters("board=rpi4"):
        print(exporter.name)
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import grpc

from jumpstarter.client.backoff import Backoff
from jumpstarter.client.records import (
    DriverInfo,
    ExporterInfo,
    LeaseInfo,
    LeaseState,
    LeaseWish,
    exporter_from_detail,
    exporter_from_message,
    lease_from_message,
    set_duration,
    set_time,
    short_name,
    state_from_message,
)
from jumpstarter.common.controller import error_from_rpc, is_outage, is_token_refused, open_channel, presented_tls
from jumpstarter.common.exceptions import AuthenticationError, ControllerError, JumpstarterException, LeaseError
from jumpstarter_protocol.jumpstarter.client.v1 import client_pb2, client_pb2_grpc
from jumpstarter_protocol.jumpstarter.lab.v1 import controller_pb2, controller_pb2_grpc
from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2, jumpstarter_pb2_grpc

if TYPE_CHECKING:
    from jumpstarter.config.client import ClientConfigV1Alpha1

__all__ = [
    "ControllerClient",
    "DriverInfo",
    "ExporterInfo",
    "LeaseInfo",
    "LeaseState",
    "LeaseWish",
    "connect_controller",
]

logger = logging.getLogger(__name__)

_CALL_SECONDS = 30.0
#: A dial may wait in the controller for an exporter that is getting ready.
_DIAL_SECONDS = 45.0
_PAGE = 500
#: With these a controller says that it failed itself, or a proxy that it lost the controller.
_PASSING = (grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED)
_FINAL_WORDS = ("not found", "permission denied")
#: Seconds between looks at a lease of a controller that does not push: short at first, for a free exporter.
_POLL_FIRST, _POLL_LONGEST = 0.2, 5.0


class ControllerClient:
    """A controller, seen by one client identity. Made by `connect_controller`.

    config: the identity. where: how messages name the controller. lab: it is one of ours. features: names of what it
    can beyond 0.9. renew_token: called when the controller does not accept the token; returns whether ``config.token``
    is a new one now.

    Calls raise ConnectionError when the controller cannot be reached, AuthenticationError when it does not accept the
    token, LeaseError (calls about leases) or ControllerError when it refuses, with its own line.
    """

    def __init__(self, config: ClientConfigV1Alpha1, channel: grpc.aio.Channel) -> None:
        self.config = config
        self.where = f"controller {config.endpoint}"
        self.lab = False
        self.version = ""
        self.features: frozenset[str] = frozenset()
        self.renew_token: Callable[[], Awaitable[bool]] = self._reload_token
        self._home = f"namespaces/{config.metadata.namespace or 'default'}"
        self._client: Any = client_pb2_grpc.ClientServiceStub(channel)
        self._lab: Any = controller_pb2_grpc.LabControllerServiceStub(channel)
        self._controller: Any = jumpstarter_pb2_grpc.ControllerServiceStub(channel)

    @property
    def name(self) -> str:
        """The client's own name."""
        return self.config.metadata.name

    async def learn(self) -> None:
        """Ask what the controller is. Raises ConnectionError when it cannot be reached."""
        try:
            answer = await self._lab.GetInfo(
                controller_pb2.GetInfoRequest(), timeout=_CALL_SECONDS, wait_for_ready=False
            )
        except grpc.aio.AioRpcError as error:
            if is_outage(error):
                raise error_from_rpc(error, self.where) from None
            return  # a 0.9 controller, whichever way it says that it does not know the question
        self.lab, self.version, self.features = True, answer.version, frozenset(answer.features)

    async def _ask(
        self,
        method: Any,
        request: Any,
        what: str,
        kind: type[ControllerError] = ControllerError,
        timeout: float = _CALL_SECONDS,
    ) -> Any:
        for last in (False, True):
            try:
                return await method(request, timeout=timeout)
            except grpc.aio.AioRpcError as error:
                if last or not is_token_refused(error) or not await self.renew_token():
                    raise self._error(error, what, kind) from None
        raise AssertionError("the second attempt returns or raises")

    def _error(self, error: Any, what: str, kind: type[ControllerError]) -> Exception:
        found = error_from_rpc(error, f"{self.where}: {what}", kind)
        if isinstance(found, AuthenticationError):
            found.set_config(self.config)
        return found

    async def _reload_token(self) -> bool:
        """Take the token from the configuration's file, where `jmp login` may have put a newer one."""
        config = self.config
        if config.path is None or not config.path.is_file():
            return False
        try:
            token = type(config).from_file(config.path).token
        except (JumpstarterException, OSError) as error:
            # Somebody is editing it, perhaps: what is held with the old token is not lost for that.
            logger.warning("%s: no new token: %s", self.where, error)
            return False
        if not token or token == config.token:
            return False
        config.token = token
        logger.info("%s: the token has been read again from %s", self.where, config.path)
        return True

    # --- exporters ---------------------------------------------------------------------------------------------

    async def list_exporters(
        self, selector: str = "", *, show_hidden_labels: bool = False, page_size: int = _PAGE
    ) -> list[ExporterInfo]:
        """Exporters whose labels match, by name. Drivers and holders only from our own controllers."""
        fields: dict[str, Any] = {
            "parent": self._home,
            "page_size": page_size,
            "filter": selector,
            "show_hidden_labels": show_hidden_labels,
        }
        asked: tuple[Any, Any, Callable[[Any], ExporterInfo]]
        if self.lab:
            asked = self._lab.ListExporters, controller_pb2.ListExportersRequest(**fields), exporter_from_detail
        else:
            asked = self._client.ListExporters, client_pb2.ListExportersRequest(**fields), exporter_from_message
        method, request, make = asked
        found: list[ExporterInfo] = []
        async for page in self._pages(method, request, "list exporters"):
            found += [make(message) for message in page.exporters]
        return found

    async def get_exporter(self, name: str) -> ExporterInfo:
        """One exporter. What only our own controllers tell is empty here."""
        request = client_pb2.GetExporterRequest(name=self._path("exporters", name))
        return exporter_from_message(await self._ask(self._client.GetExporter, request, f"exporter {name}"))

    async def _pages(
        self, method: Any, request: Any, what: str, kind: type[ControllerError] = ControllerError
    ) -> AsyncIterator[Any]:
        while True:
            page = await self._ask(method, request, what, kind)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def _path(self, kind: str, name: str) -> str:
        return name if name.startswith("namespaces/") else f"{self._home}/{kind}/{name}"

    # --- leases ------------------------------------------------------------------------------------------------

    async def create_lease(self, wish: LeaseWish) -> LeaseInfo:
        """Ask for an exporter. The lease may wait in a queue, or have ended already because nothing matches."""
        lease = client_pb2.Lease(
            selector=wish.selector,
            exporter_name=wish.exporter_name,
            tags=wish.tags,
            context=wish.context,
            allow_disabled=wish.allow_disabled,
        )
        set_duration(lease.duration, wish.duration)
        set_time(lease.begin_time, wish.begin_time)
        set_time(lease.end_time, wish.end_time)
        what = f"create lease for {wish.target}"
        if self.lab:
            extended = controller_pb2.CreateLeaseRequest(parent=self._home, lease_id=wish.name, lease=lease)
            set_duration(extended.heartbeat, wish.heartbeat)
            set_duration(extended.minimum_duration, wish.minimum_duration)
            if wish.wait_for_match:
                extended.no_match = controller_pb2.CreateLeaseRequest.NO_MATCH_WAIT
            return lease_from_message(await self._ask(self._lab.CreateLease, extended, what, LeaseError))
        if wish.wait_for_match:
            raise LeaseError(f"{self.where}: {what}: it cannot wait for an exporter that does not exist yet (0.9)")
        request = client_pb2.CreateLeaseRequest(parent=self._home, lease_id=wish.name, lease=lease)
        return lease_from_message(await self._ask(self._client.CreateLease, request, what, LeaseError))

    async def get_lease(self, name: str) -> LeaseInfo:
        """One lease of the namespace, also one that has ended."""
        request = client_pb2.GetLeaseRequest(name=self._path("leases", name))
        what = f"lease {short_name(name)}"
        return lease_from_message(await self._ask(self._client.GetLease, request, what, LeaseError))

    async def list_leases(
        self, selector: str = "", *, only_active: bool = True, tag_filter: str = "", page_size: int = _PAGE
    ) -> list[LeaseInfo]:
        """Leases of the namespace that ask for these labels and bear these tags, of all clients."""
        request = client_pb2.ListLeasesRequest(
            parent=self._home, page_size=page_size, filter=selector, only_active=only_active, tag_filter=tag_filter
        )
        found: list[LeaseInfo] = []
        async for page in self._pages(self._client.ListLeases, request, "list leases", LeaseError):
            found += [lease_from_message(message) for message in page.leases]
        return found

    async def update_lease(
        self,
        name: str,
        *,
        duration: float | None = None,
        begin_time: datetime | None = None,
        end_time: datetime | None = None,
        client: str | None = None,
    ) -> LeaseInfo:
        """Change what is given. duration: seconds from the lease's begin. client: name of the new holder."""
        lease = client_pb2.Lease(name=self._path("leases", name))
        set_duration(lease.duration, duration)
        set_time(lease.begin_time, begin_time)
        set_time(lease.end_time, end_time)
        if client is not None:
            lease.client = self._path("clients", client)
        request = client_pb2.UpdateLeaseRequest(lease=lease)
        given = {"duration": duration, "begin_time": begin_time, "end_time": end_time, "client": client}
        request.update_mask.paths.extend(field for field, value in given.items() if value is not None)
        what = f"update lease {short_name(name)}"
        return lease_from_message(await self._ask(self._client.UpdateLease, request, what, LeaseError))

    async def delete_lease(self, name: str) -> None:
        """Give a lease back; it stays visible, as ended."""
        request = client_pb2.DeleteLeaseRequest(name=self._path("leases", name))
        await self._ask(self._client.DeleteLease, request, f"delete lease {short_name(name)}", LeaseError)

    async def heartbeat(self, name: str) -> float:
        """Say that the holder of a lease is alive. Returns the seconds within which to say it again, 0 for never."""
        request = controller_pb2.HeartbeatRequest(name=self._path("leases", name))
        answer = await self._ask(self._lab.Heartbeat, request, f"lease {short_name(name)}", LeaseError)
        within: float = answer.within.seconds + answer.within.nanos / 1e9
        return within

    async def dial(self, name: str) -> tuple[str, str]:
        """Ask for a tunnel to the exporter of a lease: the router's endpoint and the token to show there."""
        request = jumpstarter_pb2.DialRequest(lease_name=short_name(name))
        what = f"lease {short_name(name)}"
        answer = await self._ask(self._controller.Dial, request, what, LeaseError, _DIAL_SECONDS)
        return answer.router_endpoint, answer.router_token

    async def watch_lease(self, name: str) -> AsyncGenerator[LeaseState, None]:
        """The lease now and after every change, up to the state that says that it has ended.

        Lasts through outages of the controller, whatever their length. Raises LeaseError when the lease does not exist
        (any more) or is not ours to see, AuthenticationError when the token is not accepted any more.
        """
        source = self._push if self.lab else self._poll
        backoff, away, seen, renewed = Backoff(), False, False, False
        while True:
            try:
                async with aclosing(source(self._path("leases", name))) as states:
                    async for state in states:
                        if away:
                            logger.warning("%s is back", self.where)
                            away = False
                        backoff.reset()
                        seen, renewed = True, False
                        yield state
                        if state.ended:
                            return
            except grpc.aio.AioRpcError as error:
                # Once: an issuer may go on to give tokens that the controller does not accept.
                if not renewed and is_token_refused(error) and await self.renew_token():
                    renewed = True
                    continue
                passing = is_outage(error) or error.code() is grpc.StatusCode.CANCELLED or (seen and _is_passing(error))
                if not passing:
                    raise self._error(error, f"lease {short_name(name)}", LeaseError) from None
                if not away:
                    logger.warning("%s does not answer (%s); trying again", self.where, error.details())
                    away = True
            await backoff.wait()

    async def _push(self, path: str) -> AsyncGenerator[LeaseState, None]:
        call = self._lab.WatchLease(controller_pb2.WatchLeaseRequest(name=path))
        try:
            async for message in call:
                yield state_from_message(message)
        finally:
            call.cancel()

    async def _poll(self, path: str) -> AsyncGenerator[LeaseState, None]:
        pause, last = Backoff(_POLL_FIRST, _POLL_LONGEST), None
        while True:
            message = await self._client.GetLease(client_pb2.GetLeaseRequest(name=path), timeout=_CALL_SECONDS)
            seen = message.SerializeToString(deterministic=True)
            message_without_age = client_pb2.Lease.FromString(seen)
            message_without_age.ClearField("effective_duration")
            if message_without_age != last:
                last = message_without_age
                pause.reset()
                lease = lease_from_message(message)
                yield LeaseState(lease, lease.ended, message=lease.message)
            await pause.wait()

    # --- ourselves ---------------------------------------------------------------------------------------------

    async def rotate_token(self) -> tuple[str, datetime]:
        """A new token for this client, and when it expires (UTC). The present one stays good."""
        request = client_pb2.RotateTokenRequest(parent=self._home)
        answer = await self._ask(self._client.RotateToken, request, "rotate the token")
        return answer.token, answer.expiry.ToDatetime(tzinfo=UTC)


def _is_passing(error: Any) -> bool:
    """Whether a failure says nothing about a lease that was there before: the controller, or what is between, failed.

    A 0.9 controller says everything with UNKNOWN, also that its own database did not answer; its words for what
    concerns the lease are few.
    """
    if is_token_refused(error):
        return False
    if error.code() is grpc.StatusCode.UNKNOWN:
        return not any(words in (error.details() or "") for words in _FINAL_WORDS)
    return error.code() in _PASSING


@asynccontextmanager
async def connect_controller(config: ClientConfigV1Alpha1) -> AsyncIterator[ControllerClient]:
    """A controller to ask as the identity ``config``.

    Raises ConfigurationError without endpoint or token, ConnectionError when the controller cannot be reached.
    """
    async with open_channel(config, tls=await presented_tls(config)) as channel:
        controller = ControllerClient(config, channel)
        await controller.learn()
        yield controller
