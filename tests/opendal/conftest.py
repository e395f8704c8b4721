# SPDX-License-Identifier: Apache-2.0
"""A storage over a folder of the test, and an S3 server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import localbucket
import pytest

from jumpstarter.common.utils import serve
from jumpstarter_driver_opendal.client import OpendalClient
from jumpstarter_driver_opendal.driver import Opendal


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered about local files stays the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def driver(root: Path) -> Opendal:
    return Opendal(scheme="fs", kwargs={"root": str(root)})


@pytest.fixture
def client(driver: Opendal) -> Iterator[OpendalClient]:
    with serve(driver) as client:
        yield client


@pytest.fixture
def s3_endpoint(tmp_path: Path) -> Iterator[str]:
    """Address of an S3 server (localbucket) with the bucket "images"."""
    (tmp_path / "buckets" / "images").mkdir(parents=True)
    handler = type("Handler", (localbucket.S3Handler,), {"data_root": tmp_path / "buckets"})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
