# SPDX-License-Identifier: Apache-2.0
"""Tokens of external issuers, verified with the keys that they publish (OpenID Connect discovery, JWKS)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import jwt

from jumpstarter_controller.errors import Refused
from jumpstarter_controller.identity.jwks import Key, KeysUnavailable, fetch_keys, trust
from jumpstarter_controller.identity.keys import MAX_TOKEN, unauthenticated
from jumpstarter_controller.identity.settings import AuthenticationSettings, JWTSettings

__all__ = ["Issuer", "Issuers", "Proven"]

logger = logging.getLogger(__name__)

#: Signatures by a public key only: what HS256 "signs" anybody could who knows that key.
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
#: Seconds after which published keys are asked for again, while the old ones serve.
_FRESH = 3600.0
#: Seconds between two requests to an issuer: for a key that it did not have, and after a failure.
_UNKNOWN_KEY_PAUSE, _FAILURE_PAUSE = 30.0, 5.0
_MAX_USERNAME = 256


class Proven(NamedTuple):
    """What a token of an issuer proves: a user name, with prefix, until a time (seconds since 1970)."""

    username: str
    expires_at: float


class Issuer:
    """One issuer and its keys. now: seconds that only grow (of the event loop). Raises ConfigurationError."""

    def __init__(self, settings: JWTSettings, skew: float, home: Path) -> None:
        self.settings = settings
        self._url = settings.issuer.url
        self._skew = skew
        self._context = trust(settings.issuer.authority(home), self._url)
        self._keys: dict[str, Key] = {}
        self._fetched_at: float | None = None
        self._not_before = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self._failure: str | None = None

    async def verify(self, token: str, now: float) -> Proven:
        """What the token proves at ``now`` (seconds since 1970).

        Raises UNAUTHENTICATED, or UNAVAILABLE when the issuer's keys cannot be had.
        """
        try:
            header = jwt.get_unverified_header(token)
            algorithm = header.get("alg")
            if algorithm not in _ALGORITHMS:
                raise unauthenticated(f"token is not valid: algorithm {str(algorithm)[:20]} is not accepted")
            key = await self._key(header.get("kid"))
            if key.algorithm is not None and key.algorithm != algorithm:
                raise unauthenticated(f"token is not valid: its key is for {key.algorithm}")
            claims: dict[str, Any] = jwt.decode(
                token,
                key.public,
                algorithms=[algorithm],
                audience=self.settings.issuer.audiences,
                issuer=self._url,
                # The times are compared with the lab's clock, below.
                options={"require": ["exp"], "verify_exp": False, "verify_iat": False, "verify_nbf": False},
            )
        except (jwt.PyJWTError, UnicodeError, ValueError) as error:
            raise unauthenticated(f"token is not valid: {str(error)[:200]}") from error
        self._check_times(claims, now)
        # Who is let in is still within the skew; what is remembered of it ends with it.
        return Proven(self._username(claims), float(claims["exp"]) + self._skew)

    def _check_times(self, claims: dict[str, Any], now: float) -> None:
        for name in ("exp", "nbf", "iat"):
            if name in claims and (isinstance(claims[name], bool) or not isinstance(claims[name], (int, float))):
                raise unauthenticated(f"token is not valid: {name} is not a time")
        if not now < claims["exp"] + self._skew:
            raise unauthenticated("token is expired")
        for name in ("nbf", "iat"):
            if name in claims and not claims[name] <= now + self._skew:
                raise unauthenticated(f"token is not valid yet: {name} is more than {self._skew:g}s from now")

    def _username(self, claims: dict[str, Any]) -> str:
        mapping = self.settings.claim_mappings.username
        value = claims.get(mapping.claim)
        if not isinstance(value, str) or not value or not value.isprintable():
            raise unauthenticated(f"token is not valid: it has no claim {mapping.claim} that names a user")
        if mapping.claim == "email" and claims.get("email_verified", True) is not True:
            raise unauthenticated("token is not valid: the issuer has not verified its email")
        name = mapping.prefix + value
        if len(name) > _MAX_USERNAME:
            raise unauthenticated(f"token is not valid: its user name is longer than {_MAX_USERNAME} characters")
        return name

    async def _key(self, kid: object) -> Key:
        loop = asyncio.get_running_loop()
        found = self._find(kid)
        if found is not None:
            if self._fetched_at is None or loop.time() - self._fetched_at > _FRESH:
                self._fetch()  # nobody waits for it
            return found
        fetching = self._fetch()
        if fetching is not None:
            await asyncio.shield(fetching)
            found = self._find(kid)
        if found is not None:
            return found
        if self._fetched_at is None:
            raise Refused(
                grpc.StatusCode.UNAVAILABLE,
                f"issuer {self._url} cannot be asked for its keys: {self._failure or 'no answer yet'}; try again later",
            )
        raise unauthenticated(f"token is not valid: issuer {self._url} does not publish the key that signed it")

    def _find(self, kid: object) -> Key | None:
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid) if isinstance(kid, str) else None

    def _fetch(self) -> asyncio.Task[None] | None:
        """The request for keys that is under way; None when it is too soon for one."""
        if self._fetching is not None:
            return self._fetching
        if asyncio.get_running_loop().time() < self._not_before:
            return None
        self._fetching = asyncio.create_task(self._fetch_once(), name=f"keys of {self._url}")
        self._fetching.add_done_callback(self._fetched)
        return self._fetching

    async def _fetch_once(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            keys = await asyncio.to_thread(fetch_keys, self._url, self._context)
        except KeysUnavailable as error:
            self._failure = str(error)
            self._not_before = loop.time() + _FAILURE_PAUSE
            kept = f"; the {len(self._keys)} keys it had stay" if self._keys else ""
            logger.warning("issuer %s: %s%s", self._url, error, kept)
            return
        if keys.keys() != self._keys.keys():
            logger.info("issuer %s publishes %d keys", self._url, len(keys))
        self._keys, self._failure = keys, None
        self._fetched_at = loop.time()
        self._not_before = loop.time() + _UNKNOWN_KEY_PAUSE

    def _fetched(self, task: asyncio.Task[None]) -> None:
        self._fetching = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._not_before = task.get_loop().time() + _FAILURE_PAUSE
            logger.error("issuer %s: its keys could not be taken", self._url, exc_info=error)

    async def close(self) -> None:
        """Give up a request that is under way."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)


class Issuers:
    """The external issuers of a configuration. home: where relative paths begin. Raises ConfigurationError."""

    def __init__(self, settings: AuthenticationSettings | None = None, home: Path = Path()) -> None:
        wanted: Iterable[JWTSettings] = settings.jwt if settings is not None else ()
        skew = settings.clock_skew if settings is not None else 0.0
        self._issuers = {each.issuer.url: Issuer(each, skew, home) for each in wanted}

    def of(self, token: str) -> Issuer | None:
        """The issuer that a token names, of which nothing is proven; None when it is none of these."""
        if not self._issuers or len(token) > MAX_TOKEN:
            return None
        try:
            claims = jwt.decode(token, options={"verify_signature": False})
        except (jwt.PyJWTError, UnicodeError, ValueError):
            return None
        named = claims.get("iss")
        return self._issuers.get(named) if isinstance(named, str) else None

    def prefix_of(self, username: str) -> str:
        """The prefix that the issuer of this user puts before its names."""
        prefixes = (issuer.settings.claim_mappings.username.prefix for issuer in self._issuers.values())
        return max((prefix for prefix in prefixes if username.startswith(prefix)), key=len, default="")

    async def close(self) -> None:
        """Give up requests that are under way."""
        for issuer in self._issuers.values():
            await issuer.close()
