# SPDX-License-Identifier: Apache-2.0
"""An OpenID Connect issuer for tests: a real HTTPS server with discovery and keys, and tokens signed by them."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from controller_harness import run_cli
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

__all__ = ["OidcIssuer", "serving_issuer"]

_KEYS: dict[str, Any] = {
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


class OidcIssuer:
    """What the issuer has. keys: private ones by kid; asked: how often for its keys; broken: it answers 500."""

    def __init__(self, url: str, ca: Path) -> None:
        self.url = url
        self.ca = ca
        self.keys: dict[str, tuple[str, Any]] = {}
        self.asked = 0
        self.broken = False
        #: Not set: answers have to wait.
        self.answers = threading.Event()
        self.answers.set()
        self.extra: list[dict[str, Any]] = []
        self.calls_itself = url

    def add_key(self, kid: str, algorithm: str = "RS256") -> None:
        """Make a key and publish it."""
        self.keys[kid] = (algorithm, _KEYS[algorithm]())

    def published(self) -> dict[str, Any]:
        """The answer of jwks_uri."""
        found = []
        for kid, (algorithm, key) in self.keys.items():
            number = jwt.get_algorithm_by_name(algorithm)
            jwk = json.loads(number.to_jwk(key.public_key()))
            found.append({**jwk, "kid": kid, "alg": algorithm, "use": "sig"})
        return {"keys": self.extra + found}

    def claims(self, subject: str = "alice", **more: Any) -> dict[str, Any]:
        """What a token says."""
        now = int(time.time())
        basic = {"iss": self.url, "aud": "jumpstarter-cli", "sub": subject, "iat": now, "exp": now + 600}
        return {key: value for key, value in {**basic, **more}.items() if value is not None}

    def token(self, subject: str = "alice", kid: str = "one", **more: Any) -> str:
        """A token; ``more`` changes its claims, None removes them."""
        algorithm, key = self.keys[kid]
        return jwt.encode(self.claims(subject, **more), key, algorithm=algorithm, headers={"kid": kid})

    def settings(self, prefix: str = "corp:", claim: str = "sub") -> dict[str, Any]:
        """Its entry in the controller's configuration."""
        return {
            "issuer": {"url": self.url, "audiences": ["jumpstarter-cli"], "certificateAuthority": str(self.ca)},
            "claimMappings": {"username": {"claim": claim, "prefix": prefix}},
        }


@contextmanager
def serving_issuer(folder: Path) -> Iterator[OidcIssuer]:
    """Context: an issuer with a key "one", on a port of its own."""
    folder.mkdir()
    run_cli("ca", "init", "--dir", folder, "--name", "issuer")
    run_cli("ca", "issue", "--dir", folder, "localhost")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.answers.wait(300)
            if self.path.endswith("/keys"):
                issuer.asked += 1
            if issuer.broken:
                self.send_error(500)
                return
            discovery = {"issuer": issuer.calls_itself, "jwks_uri": f"{issuer.url}/keys"}
            body = json.dumps(issuer.published() if self.path.endswith("/keys") else discovery).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    issuer = OidcIssuer(f"https://localhost:{server.server_port}", folder / "ca.crt")
    issuer.add_key("one")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield issuer
    finally:
        issuer.answers.set()
        server.shutdown()
        thread.join()
        server.server_close()
