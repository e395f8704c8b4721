# SPDX-License-Identifier: Apache-2.0
"""Transfers the exporter makes itself: only where its policy allows, whole or an error, no secrets in messages."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from drivers_for_tests import EveryKind

from jumpstarter.common.exceptions import DriverError
from jumpstarter.common.utils import serve
from jumpstarter.streams import presigned

BODY = bytes(range(256)) * 8192  # 2 MiB


class _Handler(BaseHTTPRequestHandler):
    uploads: dict[str, bytes]
    headers_seen: dict[str, dict[str, str]]

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.headers_seen[path] = dict(self.headers)  # type: ignore[attr-defined]
        if path == "/redirect":
            other = self.server.elsewhere  # type: ignore[attr-defined]
            self.send_response(302)
            self.send_header("Location", other)
            self.end_headers()
            return
        if path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[: 1 << 20] if path == "/short" else BODY)

    def do_PUT(self) -> None:
        size = int(self.headers["Content-Length"])
        self.server.uploads[self.path] = self.rfile.read(size)  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def server() -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.uploads, server.headers_seen = {}, {}  # type: ignore[attr-defined]
        server.base = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
        server.elsewhere = f"{server.base}/image"  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client(server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(presigned, "_allowed", (f"{server.base}/*",))
    with serve(EveryKind()) as client:
        yield client


def _handle(url: str, method: str = "GET", **headers: str) -> dict[str, Any]:
    return {"kind": "presigned_request", "url": url, "method": method, "headers": headers}


def test_an_allowed_url_is_read_whole(client: Any, server: Any) -> None:
    assert client.call("swallow", _handle(f"{server.base}/image?sig=abc", Authorization="Bearer x")) == len(BODY)
    assert server.headers_seen["/image"]["Authorization"] == "Bearer x"


def test_a_download_that_stops_early_is_an_error(client: Any, server: Any) -> None:
    with pytest.raises(DriverError, match=r"/short: the connection ended 1048576 bytes too early|IncompleteRead"):
        client.call("swallow", _handle(f"{server.base}/short"))


def test_http_errors_name_the_url_without_its_signature(client: Any, server: Any) -> None:
    with pytest.raises(DriverError, match="GET .*/missing: HTTP 404") as caught:
        client.call("swallow", _handle(f"{server.base}/missing?sig=secret"))
    assert "secret" not in str(caught.value)


def test_a_redirect_is_followed_only_to_where_the_policy_allows(client: Any, server: Any) -> None:
    assert client.call("swallow", _handle(f"{server.base}/redirect")) == len(BODY)
    server.elsewhere = f"http://localhost:{server.server_port}/image"
    with pytest.raises(DriverError, match="does not transfer http://localhost.*allowPresignedUrls"):
        client.call("swallow", _handle(f"{server.base}/redirect"))


def test_secrets_do_not_follow_a_redirect_to_another_origin(
    client: Any, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presigned, "_allowed", ("*",))
    server.elsewhere = f"http://localhost:{server.server_port}/image"
    headers = {"Authorization": "Bearer x", "X-Amz-Token": "y", "X-Fine": "z"}
    assert client.call("swallow", _handle(f"{server.base}/redirect", **headers)) == len(BODY)
    assert server.headers_seen["/redirect"]["Authorization"] == "Bearer x"
    seen = {k.lower(): v for k, v in server.headers_seen["/image"].items()}
    assert seen.get("x-fine") == "z"
    assert "authorization" not in seen
    assert "x-amz-token" not in seen


def test_what_a_driver_writes_is_put(client: Any, server: Any) -> None:
    client.call("pour", _handle(f"{server.base}/up", "PUT"), 2_500_000)
    assert server.uploads["/up"] == b"\xa5" * 2_500_000


def test_nothing_is_put_when_the_driver_fails(client: Any, server: Any) -> None:
    with pytest.raises(DriverError, match="device gone"):
        client.call("pour", _handle(f"{server.base}/up", "PUT"), 2_500_000, True)
    assert "/up" not in server.uploads


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "http:///x", "gopher://x", "/etc/passwd"])
def test_only_http_is_spoken(client: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presigned, "_allowed", ("*",))
    with pytest.raises(DriverError, match="is not an http"):
        client.call("swallow", _handle(url))
