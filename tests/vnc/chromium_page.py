# SPDX-License-Identifier: Apache-2.0
"""A page in a headless Chromium of our own: wait until it shows something, take a picture of it."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1000,700",
    "--remote-debugging-port=0",
]  # fmt: skip
SECONDS = 60


class Page:
    """The page, through the DevTools protocol."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._number = 0
        #: URLs the page has asked for since it was opened.
        self.requests: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._connection.recv(SECONDS))
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            if message.get("method") == "Network.webSocketCreated":
                self.requests.append(message["params"]["url"])
            if message.get("id") == self._number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result

    def wait_for(self, condition: str) -> None:
        """Return when a JavaScript expression is true."""
        expression = f"new Promise(done => setInterval(() => {{ if ({condition}) done(true); }}, 20))"
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True)
        assert result["result"].get("value") is True, result

    def open(self, url: str) -> None:
        """Show another page."""
        self.requests.clear()
        self.call("Page.navigate", url=url)

    def screenshot(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def chromium_page(profile: Path) -> Iterator[Page]:
    """An empty page in a browser that ends with the block."""
    argv = ["chromium", *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, start_new_session=True) as browser:
        try:
            assert browser.stderr is not None
            said = next(line for line in browser.stderr if "DevTools listening on" in line)
            match = re.search(r"ws://([^/]+)/", said)
            assert match is not None
            with urllib.request.urlopen(f"http://{match[1]}/json/list", timeout=SECONDS) as answer:
                target = next(each for each in json.load(answer) if each["type"] == "page")
            with connect(target["webSocketDebuggerUrl"], proxy=None, max_size=None) as connection:
                page = Page(connection)
                page.call("Network.enable")
                page.call("Page.enable")
                yield page
        finally:
            os.killpg(browser.pid, signal.SIGKILL)  # it has a session of its own: its helpers go with it
