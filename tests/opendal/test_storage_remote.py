# SPDX-License-Identifier: Apache-2.0
"""Storages behind opendal: an S3 server, a HTTP server, and one in memory."""

from __future__ import annotations

import asyncio
import functools
import http.client
import os
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import opendal
import pytest

from jumpstarter.common.exceptions import DriverError, DriverMethodNotImplemented
from jumpstarter.common.utils import serve
from jumpstarter.streams.presigned import allow_urls
from jumpstarter_driver_opendal.adapter import OpendalAdapter
from jumpstarter_driver_opendal.client import OpendalClient
from jumpstarter_driver_opendal.driver import MockFlasher, Opendal

MIB = 1 << 20
PASSWORD = "hunter2-very-secret"


def s3_settings(endpoint: str) -> dict[str, str]:
    return {"bucket": "images", "endpoint": endpoint, "region": "us-east-1", "access_key_id": "lab"}


@pytest.fixture
def s3(s3_endpoint: str, tmp_path: Path) -> Iterator[OpendalClient]:
    (tmp_path / "key").write_text(PASSWORD + "\n")
    driver = Opendal(scheme="s3", kwargs={**s3_settings(s3_endpoint), "secret_access_key_file": str(tmp_path / "key")})
    with serve(driver) as client:
        yield client


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A plain HTTP server over tmp_path/web."""
    (tmp_path / "web").mkdir()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "web"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_s3_takes_and_gives_files(s3: OpendalClient, tmp_path: Path) -> None:
    source = tmp_path / "image"
    source.write_bytes(os.urandom(9 * MIB + 5))  # more than one part of a multipart upload
    assert s3.put("boards/image", source).changed is True
    assert (tmp_path / "buckets/images/boards/image").read_bytes() == source.read_bytes()
    assert s3.put("boards/image", source).changed is False
    s3.get("boards/image", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert s3.stat("boards/image").content_length == 9 * MIB + 5
    assert list(s3.list("boards/")) == ["boards/image"]
    s3.delete("boards/image")
    assert not s3.exists("boards/image")


def test_an_upload_to_s3_that_breaks_off_makes_no_object(s3: OpendalClient, tmp_path: Path) -> None:
    async def half() -> None:
        async with s3.rpc.resource_stream() as (stream, handle):
            writing = asyncio.ensure_future(s3.call_async("file_write", file.fd, handle))
            for _ in range(6):
                await stream.send(bytes(MIB))
            await stream.reset()
            await writing

    file = s3.open("image", "wb")
    with pytest.raises(DriverError):
        s3.portal.call(half)
    file.close()
    assert not s3.exists("image")


def test_presigned_requests_of_s3_work_for_whoever_has_them(s3: OpendalClient) -> None:
    s3.write_bytes("file", b"content")
    request = s3.presign_read("file", 60)
    parts = urlsplit(request.url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    connection.request(request.method, f"{parts.path}?{parts.query}", headers=request.headers)
    assert connection.getresponse().read() == b"content"
    connection.close()
    assert s3.presign_write("file", 60).method == "PUT"
    assert s3.presign_stat("file", 60).method == "HEAD"


def test_secrets_of_a_storage_are_in_no_text(s3_endpoint: str) -> None:
    driver = Opendal(scheme="s3", kwargs={**s3_settings(s3_endpoint), "secret_access_key": PASSWORD})
    assert PASSWORD not in repr(driver)
    with serve(driver) as client:
        with pytest.raises(DriverError) as error:
            client.read_bytes("nope")
        assert "not there" in str(error.value) and PASSWORD not in str(error.value)
        assert "\n" not in str(error.value)
    with serve(Opendal(scheme="s3", kwargs={**s3_settings("http://127.0.0.1:1"), "secret_access_key": "x"})) as client:
        with pytest.raises(DriverError) as error:
            client.exists("nope")
        assert "\n" not in str(error.value)


def test_a_web_server_is_a_storage_to_read_from(web: str, tmp_path: Path) -> None:
    content = os.urandom(3 * MIB)
    (tmp_path / "web" / "image").write_bytes(content)
    with serve(Opendal(scheme="http", kwargs={"endpoint": web})) as client:
        assert client.read_bytes("image") == content
        assert client.stat("image").content_length == len(content)
        assert not client.exists("other")
        with pytest.raises(DriverMethodNotImplemented):
            client.write_bytes("image", b"x")


def test_a_url_is_downloaded_by_the_client_and_stored(web: str, tmp_path: Path) -> None:
    (tmp_path / "web" / "image").write_bytes(b"from the web")
    root = tmp_path / "root"
    with serve(Opendal(scheme="fs", kwargs={"root": str(root)})) as client:
        client.write_from_path("one", f"{web}/image")
        assert client.put("one", f"{web}/image").changed is False
        file = client.open("two", "wb")
        file.write_from_path(f"{web}/image")
        file.close()
    assert (root / "one").read_bytes() == (root / "two").read_bytes() == b"from the web"


def test_operators_of_the_client_are_sources_and_targets(s3_endpoint: str, tmp_path: Path) -> None:
    remote = opendal.Operator("s3", **s3_settings(s3_endpoint), secret_access_key="x")
    remote.write("image", b"in the bucket")
    with serve(Opendal(scheme="memory", kwargs={})) as client:
        allow_urls([f"{s3_endpoint}/*"])
        try:
            client.write_from_path("image", "image", operator=remote)  # the exporter fetches by itself
        finally:
            allow_urls([])
        assert client.read_bytes("image") == b"in the bucket"
        client.read_into_path("image", "copy", operator=remote)
        assert remote.read("copy") == b"in the bucket"
        local = opendal.Operator("fs", root=str(tmp_path))
        (tmp_path / "local").write_bytes(b"local file")
        client.write_from_path("local", "local", operator=local)
        assert client.read_bytes("local") == b"local file"


def test_an_adapter_lends_files_to_any_driver(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"an image")
    operator = opendal.Operator("fs", root=str(tmp_path))
    with serve(MockFlasher(state_dir=str(tmp_path / "state"))) as client:
        with OpendalAdapter(client=client, operator=operator, path="image") as handle:
            client.call("flash", handle)
        with OpendalAdapter(client=client, operator=operator, path="back", mode="wb") as handle:
            client.call("dump", handle)
        with pytest.raises(ValueError, match="not supported"):
            with OpendalAdapter(client=client, operator=None, path="x", original_url="http://x", compression="xz"):
                pass
        with OpendalAdapter(client=client, operator=None, path="x", original_url="http://h/a%2Fb") as handle:
            assert handle["url"] == "http://h/a%2Fb"
    assert (tmp_path / "back").read_bytes() == b"an image"
