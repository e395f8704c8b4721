# SPDX-License-Identifier: Apache-2.0
"""Verifies who calls: by a token of ours, by one of an external issuer, or by a certificate."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from jumpstarter_controller.errors import permission_denied
from jumpstarter_controller.identity.cache import CallerCache
from jumpstarter_controller.identity.callers import Caller
from jumpstarter_controller.identity.calls import OpenCalls
from jumpstarter_controller.identity.certificates import certificate_caller
from jumpstarter_controller.identity.keys import IDENTITY_TOPIC, KeyRing
from jumpstarter_controller.identity.oidc import Issuer, Issuers
from jumpstarter_controller.identity.rotation import rotate_when_due
from jumpstarter_controller.identity.tokens import token_caller
from jumpstarter_controller.identity.users import find_user, lost_access, provision_user
from jumpstarter_controller.state.bus import Subscription
from jumpstarter_controller.state.database import Database, Unavailable

__all__ = ["Identity"]

logger = logging.getLogger(__name__)

_Found = TypeVar("_Found", Caller, Caller | None)

#: Seconds between two looks at the age of the signing key.
_ROTATION_LOOK = 3600.0
#: Seconds after which calls are checked again that could not be checked.
_RETRY_SECONDS = 5.0


class Identity:
    """Verifies callers; use within `running`, which lets it remember them and end the calls of those who lose access.

    issuers: external ones. provisioning: the namespace in which somebody without a client gets one, None for nobody.
    certificates: some port asks for them. key_lifetime: seconds after which a signing key is replaced, None for never.
    """

    def __init__(
        self,
        database: Database,
        issuers: Issuers | None = None,
        *,
        provisioning: str | None = None,
        certificates: bool = False,
        key_lifetime: float | None = None,
    ) -> None:
        self._key_lifetime = key_lifetime
        self.certificates = certificates
        self._database = database
        self._issuers = issuers or Issuers()
        self._provisioning = provisioning
        self._ring = KeyRing()
        self._cache: CallerCache | None = None
        self._calls = OpenCalls()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Context in which callers are remembered and revocations heard."""
        bus = self._database.bus
        with bus.subscribe(IDENTITY_TOPIC) as forget, bus.subscribe(IDENTITY_TOPIC) as check:
            self._cache = CallerCache(forget)
            tasks = [asyncio.create_task(self._end_calls(check), name="identity guard")]
            if self._key_lifetime is not None:
                tasks.append(asyncio.create_task(self._rotate_keys(self._key_lifetime), name="key rotation"))
            try:
                yield
            finally:
                self._cache = None
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await self._issuers.close()

    def serves(self, task: asyncio.Task[object], caller: Caller) -> None:
        """``task`` works for this caller; it is ended when the caller loses access."""
        self._calls.add(task, caller)

    async def authenticate(self, token: str) -> Caller:
        """Who this token belongs to. Raises UNAUTHENTICATED saying why it is refused, PERMISSION_DENIED for a user of
        an external issuer who is nobody here."""
        now = self._database.clock()
        digest = CallerCache.digest(b"token", token.encode(errors="surrogatepass"))

        async def look_up() -> Caller:
            issuer = self._issuers.of(token)
            if issuer is None:
                return await self._database.read(token_caller, self._ring, token)
            return await self._external(issuer, token, now)

        return await self._verified(digest, now, look_up)

    async def of_certificate(self, pem: bytes) -> Caller | None:
        """Who this certificate, which TLS has accepted, belongs to; None when it is not one of a client or exporter.

        Raises UNAUTHENTICATED.
        """
        digest = CallerCache.digest(b"certificate", pem)
        look_up = partial(self._database.read, certificate_caller, pem)
        return await self._verified(digest, self._database.clock(), look_up)

    async def _verified(self, digest: bytes, now: float, look_up: Callable[[], Awaitable[_Found]]) -> _Found:
        """Who showed the proof with this digest, by what is remembered or by looking it up."""
        cache = self._cache
        if cache is None:
            return await look_up()
        if (known := cache.get(digest, now)) is not None:
            return known
        while True:
            generation = cache.generation()
            caller = await look_up()
            # What was read before a revocation and arrives after it counts no more: `_end_calls` has been there.
            if generation == cache.generation():
                break
        if caller is not None:
            # A certificate is good for as long as its connection, and is looked up again like everything else.
            until = float("inf") if caller.expires_at is None else caller.expires_at
            cache.put(digest, caller, now, until, generation)
        return caller

    async def _external(self, issuer: Issuer, token: str, now: float) -> Caller:
        proven = await issuer.verify(token, now)
        caller = await self._database.read(find_user, proven)
        if caller is None and self._provisioning is not None:
            prefix = self._issuers.prefix_of(proven.username)
            await self._database.write(provision_user, self._provisioning, proven, prefix)
            caller = await self._database.read(find_user, proven)
        if caller is None:
            raise permission_denied(
                f'permission denied: no client or exporter has the username "{proven.username}"; an administrator '
                "gives it to one (jmp admin)"
            )
        return caller

    async def _rotate_keys(self, lifetime: float) -> None:
        while True:
            await self._database.patient_write(rotate_when_due, lifetime)
            await asyncio.sleep(min(_ROTATION_LOOK, lifetime))

    async def _end_calls(self, changes: Subscription) -> None:
        while True:
            await changes.changed()
            try:
                refused = await self._database.read(lost_access, self._calls.callers())
            except Unavailable as error:
                logger.warning("calls of those who may have lost access go on for now: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)
                changes.wake()
                continue
            self._calls.end(refused)
