# SPDX-License-Identifier: Apache-2.0
"""Images named by URL are downloaded by the client's side, whole or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from storage_helpers import pack

from jumpstarter.client.imaging import ImagingError
from jumpstarter_driver_storage.driver import FileFlasher


class Server:
    """Serves bytes by path; ``cut`` announces more than it sends."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.cut = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path in outer.redirects:
                    self.send_response(302)
                    self.send_header("Location", outer.redirects[path])
                    self.end_headers()
                elif path in outer.files:
                    data = outer.files[path]
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data[: len(data) - outer.cut])
                else:
                    self.send_error(404)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    server = Server()
    yield server
    server.close()


@pytest.fixture
def flasher(client: Callable[[Any], Any], tmp_path: Path) -> Any:
    return client(FileFlasher(path=str(tmp_path / "disk")))


def left_over(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").rglob(".download-*"))


def test_an_image_is_downloaded_and_flashed(server: Server, flasher: Any, image: Path, tmp_path: Path) -> None:
    server.files["/disk.img.xz"] = pack(image, "xz").read_bytes()
    server.redirects["/latest"] = f"{server.url}/disk.img.xz"
    assert flasher.flash(f"{server.url}/latest?token=secret").changed
    assert (tmp_path / "disk").read_bytes() == image.read_bytes()
    assert not flasher.flash(f"{server.url}/disk.img.xz").changed
    assert left_over(tmp_path) == []


def test_a_download_that_stops_early_is_refused(server: Server, flasher: Any, image: Path, tmp_path: Path) -> None:
    server.files["/disk.img"] = image.read_bytes()
    server.cut = 1000
    with pytest.raises(ImagingError, match="nothing was written") as caught:
        flasher.flash(f"{server.url}/disk.img")
    assert caught.value.code == "download"
    assert not (tmp_path / "disk").exists()
    assert left_over(tmp_path) == []


def test_errors_name_the_url_without_its_secrets(server: Server, flasher: Any) -> None:
    url = server.url.replace("http://", "http://user:password@")
    with pytest.raises(ImagingError, match="/missing: the server answers 404") as caught:
        flasher.flash(f"{url}/missing?token=secret")
    assert "secret" not in str(caught.value) and "password" not in str(caught.value)


def test_a_redirect_cannot_lead_to_a_local_file(server: Server, flasher: Any, image: Path) -> None:
    server.redirects["/trap"] = f"file://{image}"
    with pytest.raises(ImagingError) as caught:
        flasher.flash(f"{server.url}/trap")
    assert caught.value.code == "download"
