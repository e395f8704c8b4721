# SPDX-License-Identifier: Apache-2.0
"""The end of a login in the browser: a web server on this machine that takes one answer."""

from __future__ import annotations

import hmac
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from jumpstarter.common.exceptions import ConfigurationError

__all__ = ["CallbackServer"]

_PAGE = (
    "<!doctype html><meta charset=utf-8><title>jmp login</title><body style='font-family:sans-serif;margin:3em'>"
    "<h1>{title}</h1><p>{text}</p>"
)


class CallbackServer:
    """Context: a server on 127.0.0.1. An answer that does not bring our state is refused, and the wait goes on."""

    def __init__(self, port: int, state: str, issuer: str) -> None:
        self._state = state
        self._issuer = issuer
        self._answer: dict[str, str] | None = None
        self._there = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner._handle(self)

            def log_message(self, *_: Any) -> None:
                """Nothing: the code is in the request line."""

        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        except OSError as error:
            raise ConfigurationError(
                f"port {port} of this machine cannot be used for the login ({error.strerror or error}); "
                "choose another with --callback-port"
            ) from None
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        #: Where the issuer shall send the browser.
        self.url = f"http://localhost:{self._server.server_address[1]}/callback"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait(self, seconds: float) -> dict[str, str] | None:
        """The parameters of the answer: "code", or "error". None when none came in time."""
        self._there.wait(seconds)
        return self._answer

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        if parts.path != "/callback":
            self._say(request, 404, "Not found", "This is not the page of the login.")
            return
        answer = dict(parse_qsl(parts.query))
        ours = hmac.compare_digest(answer.get("state", "").encode(), self._state.encode())
        # The issuer may say who it is (RFC 9207): an answer of another one is not for us.
        ours = ours and answer.get("iss", self._issuer).rstrip("/") == self._issuer.rstrip("/")
        if not ours or not (answer.get("code") or answer.get("error")):
            self._say(request, 400, "Not accepted", "This answer does not belong to the login that jmp began.")
            return
        if self._there.is_set():
            self._say(request, 400, "Not accepted", "This login is over.")
            return
        if "error" in answer:
            self._say(request, 200, "Not logged in", "The reason is in the terminal. You can close this page.")
        else:
            self._say(request, 200, "Logged in", "You can close this page and return to the terminal.")
        self._answer = answer
        self._there.set()

    @staticmethod
    def _say(request: BaseHTTPRequestHandler, status: int, title: str, text: str) -> None:
        body = _PAGE.format(title=title, text=text).encode()
        request.send_response(status)
        request.send_header("Content-Type", "text/html; charset=utf-8")
        request.send_header("Content-Length", str(len(body)))
        request.send_header("Cache-Control", "no-store")
        request.send_header("Referrer-Policy", "no-referrer")
        request.end_headers()
        request.wfile.write(body)
