# SPDX-License-Identifier: Apache-2.0
"""Fake: registries that lie, drip and fish for logins; what a real one would never do."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class HostileRegistry:
    """One artifact ``lab/x``. host: ``127.0.0.1:port``. seen: the Authorization headers that came.
    hesitates: a blob that was ``asked`` for is answered when this is set."""

    def __init__(self) -> None:
        self.host = ""
        self.seen: list[str] = []
        self.asks_for_login = False
        self.blob = b"image"
        self.announced: int | None = None
        self.titles = ["os.img"]
        self.media_type = "application/octet-stream"
        self.drips = False
        self.dripping = threading.Event()
        self.hesitates: threading.Event | None = None
        self.asked = threading.Event()
        self.over = threading.Event()

    def manifest(self) -> bytes:
        """As it is sent."""
        layer = {
            "mediaType": self.media_type, "digest": f"sha256:{hashlib.sha256(self.blob).hexdigest()}",
            "size": len(self.blob) if self.announced is None else self.announced,
        }  # fmt: skip
        layers = [{**layer, "annotations": {"org.opencontainers.image.title": title}} for title in self.titles]
        return json.dumps({"schemaVersion": 2, "layers": layers}).encode()


@contextmanager
def hostile_registry() -> Iterator[HostileRegistry]:
    """Run one."""
    registry = HostileRegistry()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            return

        def do_GET(self) -> None:
            registry.seen += self.headers.get_all("Authorization", [])
            if registry.asks_for_login:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="give it to me"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = (
                registry.manifest() if "/manifests/" in self.path else registry.blob if "/blobs/" in self.path else b""
            )
            if "/blobs/" in self.path and registry.hesitates is not None:
                registry.asked.set()
                registry.hesitates.wait(60)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if "/blobs/" in self.path and registry.drips:
                self.wfile.write(data[:1])
                registry.dripping.set()
                registry.over.wait(60)
                return
            self.wfile.write(data)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    registry.host = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        registry.over.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
