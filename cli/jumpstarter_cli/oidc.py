# SPDX-License-Identifier: Apache-2.0
"""Tokens from an OpenID Connect issuer, for a public client.

Authorization code with PKCE (RFC 7636) and a checked state, device flow (RFC 8628), password, token exchange
(RFC 8693) and refresh. Secrets go to the endpoints that the issuer itself names, over https, and are never logged.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

from jumpstarter.common.exceptions import JumpstarterException
from jumpstarter_cli.https import HttpRefusal, check_url, request_json
from jumpstarter_cli.oidc_callback import CallbackServer

__all__ = ["DeviceCode", "Issuer", "OidcError", "Tokens", "claims_of"]

DEFAULT_CLIENT_ID = "jumpstarter-cli"
_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_EXCHANGE_GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:"
#: Seconds a person has in the browser.
_BROWSER_SECONDS = 600.0


class OidcError(JumpstarterException):
    """The issuer gave no token. code: its error code ("invalid_grant"), "" when it gave none."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Tokens:
    """What a grant brings. refresh: None when the issuer gave none."""

    access: str = field(repr=False)
    refresh: str | None = field(repr=False, default=None)


@dataclass(frozen=True)
class DeviceCode:
    """What a person has to do on another device. expires: seconds."""

    url: str
    complete_url: str | None
    code: str
    expires: float


def claims_of(token: str) -> dict[str, Any]:
    """The claims of a JWT, unverified: to show, never to decide. Raises ValueError for what is no JWT."""
    parts = token.split(".")
    if len(parts) != 3:
        raise ValueError("the token is no JWT")
    try:
        data = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except ValueError:
        raise ValueError("the token is no JWT") from None
    if not isinstance(data, dict):
        raise ValueError("the token is no JWT")
    return data


class Issuer:
    """An issuer, found by its discovery document. Raises `OidcError`, `ConnectionError`, `ConfigurationError`."""

    def __init__(
        self, url: str, client_id: str, context: ssl.SSLContext, *, allow_http: bool = False, offline: bool = True
    ) -> None:
        self.url = check_url(url, "issuer", allow_http=allow_http)
        self.client_id = client_id
        self._context = context
        self._allow_http = allow_http
        self._scope = "openid profile offline_access" if offline else "openid profile"
        where = f"{url.rstrip('/')}/.well-known/openid-configuration"
        self._document = request_json(where, context, "issuer")
        said = str(self._document.get("issuer", ""))
        if said.rstrip("/") != url.rstrip("/"):
            # Another issuer's document: its endpoints would get our secrets.
            raise OidcError(f'issuer {url}: its discovery document says that it is "{said}"')

    def _endpoint(self, name: str, what: str) -> str:
        url = self._document.get(name)
        if not isinstance(url, str) or not url:
            raise OidcError(f"issuer {self.url}: it offers no {what} ({name} is missing in its discovery document)")
        return check_url(url, f"issuer {self.url}: {name}", allow_http=self._allow_http)

    def _post(self, url: str, form: Mapping[str, str], what: str) -> dict[str, Any]:
        try:
            return request_json(url, self._context, f"issuer {self.url}", {"client_id": self.client_id, **form})
        except HttpRefusal as error:
            code = str(error.data.get("error", ""))
            said = " ".join(str(error.data.get("error_description", "")).split())[:200]
            reason = ": ".join(part for part in (code, said) if part) or f"HTTP status {error.status}"
            raise OidcError(f"issuer {self.url}: {what} refused: {reason}", code) from None

    def _tokens(self, form: Mapping[str, str], what: str) -> Tokens:
        answer = self._post(self._endpoint("token_endpoint", "tokens"), form, what)
        access, refresh = answer.get("access_token"), answer.get("refresh_token")
        if not isinstance(access, str) or not access:
            raise OidcError(f"issuer {self.url}: {what}: the answer has no access_token")
        return Tokens(access, refresh if isinstance(refresh, str) and refresh else None)

    # --- grants ------------------------------------------------------------------------------------------------

    def password(self, username: str, password: str) -> Tokens:
        """By name and password."""
        form = {"grant_type": "password", "username": username, "password": password, "scope": self._scope}
        return self._tokens(form, f"password of {username}")

    def refresh(self, token: str) -> Tokens:
        """By a refresh token. The old one stays in use when the issuer sends no new one."""
        found = self._tokens({"grant_type": "refresh_token", "refresh_token": token}, "refresh")
        return Tokens(found.access, found.refresh or token)

    def exchange(self, token: str, connector_id: str | None) -> Tokens:
        """For a token of somebody else (a CI system's, mostly). connector_id: which somebody, for Dex."""
        form = {
            "grant_type": _EXCHANGE_GRANT,
            "subject_token": token,
            "subject_token_type": f"{_TOKEN_TYPE}id_token",
            "requested_token_type": f"{_TOKEN_TYPE}access_token",
            "scope": self._scope,
        }
        if connector_id:
            form["connector_id"] = connector_id
        return self._tokens(form, "token exchange")

    def authorization_code(self, port: int, show: Callable[[str], None]) -> Tokens:
        """By a browser on this machine. show: gets the URL to open. port: of the callback, 0 for any."""
        endpoint = self._endpoint("authorization_endpoint", "login by a browser")
        verifier, state = secrets.token_urlsafe(64), secrets.token_urlsafe(32)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        with CallbackServer(port, state, self.url) as callback:
            query = {
                "response_type": "code",
                "client_id": self.client_id,
                "redirect_uri": callback.url,
                "scope": self._scope,
                "state": state,
                "code_challenge": challenge,
                "code_challenge_method": "S256",
            }
            show(f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{urlencode(query)}")
            answer = callback.wait(_BROWSER_SECONDS)
        if answer is None:
            raise OidcError(f"issuer {self.url}: nobody logged in within {_BROWSER_SECONDS / 60:g} minutes")
        if "error" in answer:
            said = ": ".join(answer[key] for key in ("error", "error_description") if answer.get(key))
            raise OidcError(f"issuer {self.url}: login refused: {' '.join(said.split())[:200]}", answer["error"])
        form = {
            "grant_type": "authorization_code",
            "code": answer["code"],
            "redirect_uri": callback.url,
            "code_verifier": verifier,
        }
        return self._tokens(form, "login")

    def device(self, show: Callable[[DeviceCode], None], sleep: Callable[[float], None] = time.sleep) -> Tokens:
        """By a browser anywhere. show: gets the code to enter there."""
        endpoint = self._endpoint("device_authorization_endpoint", "device flow")
        answer = self._post(endpoint, {"scope": self._scope}, "device flow")
        try:
            device_code = str(answer["device_code"])
            interval, expires = float(answer.get("interval", 5)), float(answer.get("expires_in", 600))
            complete = answer.get("verification_uri_complete")
            show(DeviceCode(str(answer["verification_uri"]), complete and str(complete), answer["user_code"], expires))
        except (KeyError, TypeError, ValueError) as error:
            raise OidcError(f"issuer {self.url}: device flow: the answer is not usable ({error})") from None
        deadline = time.monotonic() + expires
        form = {"grant_type": _DEVICE_GRANT, "device_code": device_code}
        while True:
            sleep(max(interval, 0.05))
            try:
                return self._tokens(form, "device flow")
            except OidcError as error:
                if error.code == "slow_down":
                    interval += 5
                elif error.code != "authorization_pending":
                    raise
            if time.monotonic() > deadline:
                raise OidcError(f"issuer {self.url}: nobody entered the code within {expires:g} s", "expired_token")
