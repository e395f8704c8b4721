# SPDX-License-Identifier: Apache-2.0
"""A small OpenID Connect issuer on loopback, for tests. What the standards demand of a client, it demands.

It also serves a lab's login page when it is given one, for tests of what that page may say.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

CLIENT_ID = "jumpstarter-cli"
_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_EXCHANGE_GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"


class Denied(Exception):
    """An error of OAuth: its code."""


@dataclass
class LoopbackIssuer:
    """The issuer. passwords: of its users. lifetime: of access tokens, in seconds.

    subject_tokens: foreign tokens that it exchanges, and for whom. login_page: what /v1/auth/config answers. requests:
    (path, form) of all it was asked. user: who logs in in the browser.
    """

    url: str = ""
    passwords: dict[str, str] = field(default_factory=lambda: {"alice": "s3cret-password"})
    subject_tokens: dict[tuple[str, str], str] = field(default_factory=dict)
    user: str = "alice"
    lifetime: float = 3600.0
    login_page: dict[str, Any] | None = None
    document: dict[str, Any] = field(default_factory=dict)
    deny: str = ""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._codes: dict[str, dict[str, str]] = {}
        self._refresh: dict[str, str] = {}
        self._devices: dict[str, tuple[str, str | None]] = {}
        self._lock = threading.Condition()

    # --- what tests do -----------------------------------------------------------------------------------------

    def token(self, user: str, **claims: Any) -> str:
        """An access token."""
        now = time.time()
        body = {
            "iss": self.url,
            "aud": CLIENT_ID,
            "sub": f"id-of-{user}",
            "preferred_username": user,
            "iat": int(now),
            "exp": int(now + self.lifetime),
            "jti": secrets.token_hex(8),
            **claims,
        }
        return jwt.encode(body, self._key, algorithm="ES256", headers={"kid": "test"})

    def refresh_token(self, user: str) -> str:
        """A refresh token, good once."""
        token = secrets.token_urlsafe(16)
        self._refresh[token] = user
        return token

    def forget_refresh_tokens(self) -> None:
        """None of them is good any more."""
        self._refresh.clear()

    def approve(self, user_code: str, user: str) -> None:
        """A person enters the code of the device flow."""
        with self._lock:
            device = next(d for d, (code, _) in self._devices.items() if code == user_code)
            self._devices[device] = (user_code, user)

    def asked(self, path: str) -> list[dict[str, str]]:
        """The forms that were sent to `path`."""
        return [form for where, form in self.requests if where == path]

    # --- endpoints ---------------------------------------------------------------------------------------------

    def discovery(self) -> dict[str, Any]:
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "device_authorization_endpoint": f"{self.url}/device",
            "jwks_uri": f"{self.url}/jwks",
            "id_token_signing_alg_values_supported": ["ES256"],
            **self.document,
        }

    def jwks(self) -> dict[str, Any]:
        key = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self._key.public_key()))
        return {"keys": [{**key, "kid": "test", "use": "sig", "alg": "ES256"}]}

    def authorize(self, query: dict[str, str]) -> str:
        """Where the browser goes on: the user has agreed."""
        target = urlsplit(query["redirect_uri"])
        assert target.scheme == "http" and target.hostname == "localhost" and target.path == "/callback", query
        assert query["client_id"] == CLIENT_ID and query["response_type"] == "code", query
        assert query["code_challenge_method"] == "S256" and len(query["code_challenge"]) == 43, query
        assert len(query["state"]) >= 22, query
        if self.deny:
            answer = {"error": self.deny, "error_description": "the user said no"}
        else:
            code = secrets.token_urlsafe(16)
            self._codes[code] = {**query, "user": self.user}
            answer = {"code": code}
        return f"{query['redirect_uri']}?{urlencode({**answer, 'state': query['state'], 'iss': self.url})}"

    def grant(self, form: dict[str, str]) -> dict[str, Any]:
        """The token endpoint."""
        if form.get("client_id") != CLIENT_ID:
            raise Denied("invalid_client")
        match form.get("grant_type"):
            case "password":
                if self.passwords.get(form["username"]) != form["password"]:
                    raise Denied("invalid_grant")
                user = form["username"]
            case "authorization_code":
                user = self._by_code(form)
            case "refresh_token":
                found = self._refresh.pop(form["refresh_token"], None)
                if found is None:
                    raise Denied("invalid_grant")
                return self._answer(found, offline=True)
            case str() as kind if kind == _DEVICE_GRANT:
                user = self._by_device(form)
            case str() as kind if kind == _EXCHANGE_GRANT:
                key = (form["subject_token"], form.get("connector_id", ""))
                if key not in self.subject_tokens:
                    raise Denied("invalid_request")
                user = self.subject_tokens[key]
            case _:
                raise Denied("unsupported_grant_type")
        scope = form.get("scope") or self._scope_of_code
        return self._answer(user, offline="offline_access" in scope.split())

    _scope_of_code = ""

    def _by_code(self, form: dict[str, str]) -> str:
        asked = self._codes.pop(form["code"], None)
        if asked is None or asked["redirect_uri"] != form["redirect_uri"]:
            raise Denied("invalid_grant")
        digest = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest())
        if digest.rstrip(b"=").decode() != asked["code_challenge"]:
            raise Denied("invalid_grant")
        self._scope_of_code = asked["scope"]
        return asked["user"]

    def _by_device(self, form: dict[str, str]) -> str:
        with self._lock:
            if form["device_code"] not in self._devices:
                raise Denied("expired_token")
            user = self._devices[form["device_code"]][1]
            if user is None:
                raise Denied("authorization_pending")
            del self._devices[form["device_code"]]
        return user

    def device(self, form: dict[str, str]) -> dict[str, Any]:
        """The device authorization endpoint."""
        if form.get("client_id") != CLIENT_ID:
            raise Denied("invalid_client")
        code, user_code = secrets.token_urlsafe(16), secrets.token_hex(4).upper()
        with self._lock:
            self._devices[code] = (user_code, None)
        self._scope_of_code = form["scope"]
        return {
            "device_code": code,
            "user_code": user_code,
            "verification_uri": f"{self.url}/activate",
            "expires_in": 60,
            "interval": 0,
        }

    def _answer(self, user: str, offline: bool) -> dict[str, Any]:
        answer = {"access_token": self.token(user), "token_type": "Bearer", "expires_in": int(self.lifetime)}
        return {**answer, "refresh_token": self.refresh_token(user)} if offline else answer

    # --- server ------------------------------------------------------------------------------------------------

    @contextmanager
    def serving(self, certificate: Path, key: Path) -> Iterator[LoopbackIssuer]:
        """Context: serve HTTPS on a free port of 127.0.0.1 with this certificate (PEM files)."""
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer._get(self)

            def do_POST(self) -> None:
                issuer._post(self)

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        # The handshake in the connection's own thread: a client that refuses us must not stop the others.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"https://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.requests.append((parts.path, query))
        if parts.path == "/.well-known/openid-configuration":
            _send(request, 200, self.discovery())
        elif parts.path == "/jwks":
            _send(request, 200, self.jwks())
        elif parts.path == "/authorize":
            request.send_response(302)
            request.send_header("Location", self.authorize(query))
            request.send_header("Content-Length", "0")
            request.end_headers()
        elif parts.path == "/v1/auth/config" and self.login_page is not None:
            _send(request, 200, self.login_page)
        else:
            _send(request, 404, {"error": "not found"})

    def _post(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"])).decode()
        form = {key: values[0] for key, values in parse_qs(body, keep_blank_values=True).items()}
        path = urlsplit(request.path).path
        self.requests.append((path, form))
        endpoints = {"/token": self.grant, "/device": self.device}
        try:
            _send(request, 200, endpoints[path](form))
        except Denied as error:
            _send(request, 400, {"error": str(error), "error_description": f"{error} for a test"})


def _send(request: BaseHTTPRequestHandler, status: int, data: dict[str, Any]) -> None:
    body = json.dumps(data).encode()
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)
