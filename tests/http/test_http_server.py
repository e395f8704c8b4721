# SPDX-License-Identifier: Apache-2.0
"""Protects downloads by devices: curl and BusyBox wget against the HTTP server driver."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path

import pytest
from click.testing import CliRunner

from jumpstarter.common.exceptions import ConfigurationError, DriverError
from jumpstarter.common.utils import serve
from jumpstarter_driver_http.client import HttpServerClient
from jumpstarter_driver_http.driver import HttpServer

MIB = 1 << 20


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "www"
    folder.mkdir()
    return folder


@pytest.fixture
def web(root: Path) -> Iterator[HttpServerClient]:
    with serve(HttpServer(root_dir=str(root), host="127.0.0.1", port=0)) as client:
        client.start()
        yield client


def curl(*argv: str, code: int = 0) -> bytes:
    done = subprocess.run(["curl", "-sS", "--max-time", "30", *argv], capture_output=True, timeout=40, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout


def head(*argv: str) -> tuple[int, dict[str, str]]:
    """Status and headers of a request."""
    lines = curl("-o", os.devnull, "-D", "-", *argv).decode().splitlines()
    fields = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
    return int(lines[0].split()[1]), fields


def test_a_file_that_was_put_is_downloaded_whole(web: HttpServerClient, tmp_path: Path) -> None:
    source = tmp_path / "image"
    source.write_bytes(os.urandom(5 * MIB + 1))
    url = web.put_file("boot files/image", source)
    assert url == f"{web.get_url()}/boot%20files/image"
    assert curl(url) == source.read_bytes()
    busybox = ["busybox", "wget", "-q", "-O", str(tmp_path / "copy"), url]
    subprocess.run(busybox, check=True, timeout=30)
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()


def test_headers_let_clients_resume_and_revalidate(web: HttpServerClient, root: Path) -> None:
    content = os.urandom(100_000)
    (root / "image.img.xz").write_bytes(content)
    os.utime(root / "image.img.xz", (1_700_000_000, 1_700_000_000))
    url = f"{web.get_url()}/image.img.xz"
    status, fields = head("-I", url)
    assert (status, fields["content-length"], fields["accept-ranges"]) == (200, "100000", "bytes")
    assert fields["content-type"] == "application/x-xz" and "content-encoding" not in fields
    assert fields["last-modified"] == formatdate(1_700_000_000, usegmt=True).lower()
    etag = fields["etag"]
    assert head("-H", f"If-None-Match: {etag}", url)[0] == 304
    assert head("-H", 'If-None-Match: "other"', url)[0] == 200
    assert head("-H", f"If-Modified-Since: {formatdate(1_700_000_001, usegmt=True)}", url)[0] == 304
    assert head("-H", 'If-Match: "other"', url)[0] == 412
    assert head("-r", "0-9", "-H", 'If-Range: "other"', url)[0] == 200
    assert head("-r", "0-9", "-H", f"If-Range: {etag}", url)[0] == 206


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [
        ("0-0", 0, 1),
        ("5-9", 5, 10),
        ("99990-", 99_990, 100_000),
        ("-7", 99_993, 100_000),
        ("99999-200000", 99_999, 100_000),
    ],
)
def test_ranges(web: HttpServerClient, root: Path, wanted: str, start: int, end: int) -> None:
    content = os.urandom(100_000)
    (root / "file").write_bytes(content)
    url = f"{web.get_url()}/file"
    assert curl("-r", wanted, url) == content[start:end]
    status, fields = head("-r", wanted, url)
    assert (status, fields["content-range"]) == (206, f"bytes {start}-{end - 1}/100000")


def test_a_range_beyond_the_file_is_an_error_and_an_odd_one_is_ignored(web: HttpServerClient, root: Path) -> None:
    (root / "file").write_bytes(b"x" * 10)
    url = f"{web.get_url()}/file"
    assert head("-r", "10-", url) == (416, {**head("-r", "10-", url)[1], "content-range": "bytes */10"})
    for odd in ("bytes=5-2", "bytes=a-b", "lines=1-2", "bytes=0-1,4-5", "bytes=-"):
        assert head("-H", f"Range: {odd}", url)[0] == 200


def test_a_download_is_resumed(web: HttpServerClient, root: Path, tmp_path: Path) -> None:
    content = os.urandom(300_000)
    (root / "image").write_bytes(content)
    (tmp_path / "part").write_bytes(content[:123_456])
    curl("-C", "-", "-o", str(tmp_path / "part"), f"{web.get_url()}/image")
    assert (tmp_path / "part").read_bytes() == content


def test_nothing_outside_the_root_and_no_folder_is_served(web: HttpServerClient, root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "folder").mkdir()
    (root / "folder" / "file").write_bytes(b"x")
    (root / ".jumpstarter-0123456789abcdef.part").write_bytes(b"half")
    os.mkfifo(root / "pipe")
    url = web.get_url()
    for path in (
        "/../secret", "/%2e%2e/secret", "/folder/../../secret", "//../secret", "/link", "/", "/folder", "/folder/",
        "/folder/file/", "/pipe", "/.jumpstarter-0123456789abcdef.part", "/nope", "/%00", f"/{tmp_path}/secret",
    ):  # fmt: skip
        status, _ = head("--path-as-is", url + path)
        assert status == 404, path
    assert head("-X", "PUT", "-d", "x", f"{url}/new")[0] == 405
    assert not (root / "new").exists()


def test_a_sparse_file_of_eight_gib_is_served_without_reading_it(web: HttpServerClient, root: Path) -> None:
    with (root / "disk").open("wb") as file:
        file.truncate(8 << 30)
        file.seek((8 << 30) - 4)
        file.write(b"tail")
    url = f"{web.get_url()}/disk"
    assert head("-I", url)[1]["content-length"] == str(8 << 30)
    assert curl("-r", f"{(8 << 30) - 6}-", url) == b"\0\0tail"
    started = time.monotonic()
    with subprocess.Popen(["curl", "-sS", "--max-time", "60", url], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            got = 0
            while got < 256 * MIB:
                got += len(process.stdout.read(MIB))
        finally:
            process.kill()
    assert time.monotonic() - started < 20


def test_many_devices_download_at_once(web: HttpServerClient, root: Path) -> None:
    content = os.urandom(2 * MIB)
    (root / "image").write_bytes(content)
    url = f"{web.get_url()}/image"
    with ThreadPoolExecutor(8) as pool:
        assert all(data == content for data in pool.map(lambda _: curl(url), range(24)))


def test_a_file_that_is_replaced_meanwhile_is_sent_as_it_was(web: HttpServerClient, root: Path, tmp_path: Path) -> None:
    old = os.urandom(32 * MIB)
    (root / "image").write_bytes(old)
    with subprocess.Popen(["curl", "-sS", f"{web.get_url()}/image"], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            data = process.stdout.read(1)
            (tmp_path / "new").write_bytes(b"new")
            web.put_file("image", tmp_path / "new")
            data += process.stdout.read()
        finally:
            process.kill()
    assert hashlib.sha256(data).digest() == hashlib.sha256(old).digest()


def test_a_file_that_shrinks_meanwhile_breaks_the_download(web: HttpServerClient, root: Path) -> None:
    """The length was promised: a client must not take what it got for the whole."""
    with (root / "image").open("wb") as file:
        file.truncate(256 * MIB)
    with subprocess.Popen(
        ["curl", "-sS", f"{web.get_url()}/image"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.read(1)
            os.truncate(root / "image", 1)
            process.stdout.read()
            assert process.wait(20) in (18, 56)  # partial file, or reset
        finally:
            process.kill()


@pytest.fixture
def hasty(root: Path) -> Iterator[tuple[HttpServer, HttpServerClient]]:
    """Waits 0.3 s for a client that takes nothing; serves "image" of 64 MiB."""
    with (root / "image").open("wb") as file:
        file.truncate(64 * MIB)
    driver = HttpServer(root_dir=str(root), host="127.0.0.1", port=0, timeout=0.3)
    with serve(driver) as client:
        client.start()
        yield driver, client


def asking(web: HttpServerClient) -> socket.socket:
    """A connection with a small buffer that has asked for "image"."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    sock.settimeout(10)
    sock.connect(("127.0.0.1", web.get_port()))
    sock.sendall(b"GET /image HTTP/1.1\r\nHost: x\r\n\r\n")
    return sock


def drained(sock: socket.socket) -> int:
    """Number of bytes that still come."""
    count = 0
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(1 << 20):
            count += len(data)
    return count


def test_a_slow_device_has_all_the_time_it_needs(hasty: tuple[HttpServer, HttpServerClient]) -> None:
    """A step of fixed size within the timeout would cut it off."""
    with asking(hasty[1]) as sock:
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            assert sock.recv(1 << 14)
            time.sleep(0.005)


def test_a_device_that_takes_nothing_is_cut_off(hasty: tuple[HttpServer, HttpServerClient]) -> None:
    driver, web = hasty
    with asking(web) as sock:
        assert sock.recv(1)
        assert driver._server is not None and driver._server._runner is not None
        server = driver._server._runner.server
        assert server is not None
        deadline = time.monotonic() + 10
        while server.connections:
            assert time.monotonic() < deadline, "the connection stays"
            time.sleep(0.02)
        assert drained(sock) < 64 * MIB


def test_stop_cuts_off_who_is_downloading(hasty: tuple[HttpServer, HttpServerClient]) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with asking(hasty[1]) as sock:
        assert sock.recv(1)
        started = time.monotonic()
        hasty[1].stop()
        assert time.monotonic() - started < 5
        assert drained(sock) < 64 * MIB
    assert len(os.listdir("/proc/self/fd")) < descriptors


def test_connections_are_limited(web: HttpServerClient, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device gone wild must not take all descriptors of the exporter."""
    monkeypatch.setattr("jumpstarter_driver_http.serving._MOST", 3)
    (root / "image").write_bytes(b"x")
    kept = []
    try:
        for _ in range(3):
            kept.append(asking(web))
            assert kept[-1].recv(100)
        with asking(web) as sock, contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    finally:
        for sock in kept:
            sock.close()
    assert curl("--retry", "20", "--retry-delay", "0", "--retry-all-errors", f"{web.get_url()}/image") == b"x"


def test_a_start_that_comes_after_the_session_is_refused(root: Path) -> None:
    """It would serve for ever."""
    driver = HttpServer(root_dir=str(root), host="127.0.0.1", port=0)
    driver.close()
    with pytest.raises(ConnectionAbortedError, match="session is over"):
        driver.start()
    driver.reset()
    driver.start()
    driver.close()


def test_start_and_stop_may_be_repeated_and_the_port_is_free_again(web: HttpServerClient, root: Path) -> None:
    port = web.get_port()
    web.start()
    assert web.get_port() == port > 0
    now = web.status()
    assert (now["running"], now["url"], now["bind"]) == (True, f"http://127.0.0.1:{port}", "127.0.0.1")
    web.stop()
    web.stop()
    assert web.status()["running"] is False and web.status()["url"] is None and web.get_port() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    web.start()
    (root / "file").write_bytes(b"again")
    assert curl(f"{web.get_url()}/file") == b"again"


def test_the_session_ends_the_server_and_removes_its_files(root: Path, tmp_path: Path) -> None:
    (root / "theirs").write_bytes(b"x")
    (tmp_path / "mine").write_bytes(b"x")
    threads = threading.active_count()
    with serve(HttpServer(root_dir=str(root), host="127.0.0.1", port=0)) as client:
        client.start()
        client.put_file("deep/mine", tmp_path / "mine")
        port = client.get_port()
    assert sorted(path.name for path in root.rglob("*")) == ["theirs"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    assert threading.active_count() <= threads + 1


def test_the_next_session_finds_it_stopped(root: Path) -> None:
    """The exporter stays and only resets its drivers when a holder leaves."""
    driver = HttpServer(root_dir=str(root), host="127.0.0.1", port=0)
    with serve(driver) as client:
        client.start()
        driver.reset()
        assert client.status()["running"] is False


def test_a_busy_port_is_an_error(web: HttpServerClient, root: Path) -> None:
    with serve(HttpServer(root_dir=str(root), host="127.0.0.1", port=web.get_port())) as second:
        with pytest.raises(DriverError, match=rf"cannot listen on 127.0.0.1 port {web.get_port()}: address already"):
            second.start()
        assert second.status()["running"] is False


def test_the_advertised_address_may_differ_from_the_bound_one(root: Path) -> None:
    with serve(HttpServer(root_dir=str(root), host="lab.example.org", bind="127.0.0.1", port=0)) as client:
        client.start()
        assert client.get_url() == f"http://lab.example.org:{client.get_port()}"
        (root / "file").write_bytes(b"x")
        assert curl(f"http://127.0.0.1:{client.get_port()}/file") == b"x"
    with serve(HttpServer(root_dir=str(root), host="192.0.2.1", port=0)) as client:
        with pytest.raises(DriverError, match="field bind: names the address"):
            client.start()
    with serve(HttpServer(root_dir=str(root), host="::1", port=0)) as client:
        client.start()
        assert client.get_url() == f"http://[::1]:{client.get_port()}"
        assert curl("-g", f"{client.get_url()}/file") == b"x"


def test_a_password_is_required_when_configured(root: Path, tmp_path: Path) -> None:
    (root / "file").write_bytes(b"x")
    (tmp_path / "password").write_text("s3cret\n")
    driver = HttpServer(
        root_dir=str(root), host="127.0.0.1", port=0, username="dut", password_file=str(tmp_path / "password")
    )
    with serve(driver) as client:
        client.start()
        url = f"{client.get_url()}/file"
        status, fields = head(url)
        assert status == 401 and fields["www-authenticate"].startswith("basic")
        for wrong in ("dut:wrong", "other:s3cret", "dut"):
            assert head("-u", wrong, url)[0] == 401
        assert head("-H", "Authorization: Basic %%%", url)[0] == 401
        assert curl("-u", "dut:s3cret", url) == b"x"
    assert "s3cret" not in repr(HttpServer(root_dir=str(root), username="a", password="s3cret"))


def test_a_session_password_is_new_each_time(root: Path) -> None:
    (root / "file").write_bytes(b"x")
    with serve(HttpServer(root_dir=str(root), host="127.0.0.1", port=0, session_password=True)) as client:
        assert client.get_credentials() is None
        client.start()
        first = client.get_credentials()
        assert first is not None
        assert curl("-u", f"{first['username']}:{first['password']}", f"{client.get_url()}/file") == b"x"
        client.stop()
        client.start()
        assert head("-u", f"{first['username']}:{first['password']}", f"{client.get_url()}/file")[0] == 401


def test_tls(root: Path, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    argv += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(argv, check=True, capture_output=True, timeout=30)
    content = os.urandom(3 * MIB)
    (root / "file").write_bytes(content)
    driver = HttpServer(root_dir=str(root), host="127.0.0.1", port=0, tls_cert=str(cert), tls_key=str(key))
    with serve(driver) as client:
        client.start()
        assert client.get_url().startswith("https://")
        assert curl("--cacert", str(cert), f"{client.get_url()}/file") == content
        curl(f"{client.get_url()}/file", code=60)  # not trusted
    shutil.copy(cert, key)  # a key that is none
    with serve(
        HttpServer(root_dir=str(root), host="127.0.0.1", port=0, tls_cert=str(cert), tls_key=str(key))
    ) as client:
        with pytest.raises(DriverError, match="tls_cert"):
            client.start()
        assert client.status()["running"] is False


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"port": 70000}, "no TCP port"),
        ({"timeout": 0}, "field timeout"),
        ({"tls_cert": "/x"}, "give both or none"),
        ({"tls_cert": "/none", "tls_key": "/none"}, "/none is no file"),
        ({"username": "u"}, "needs password"),
        ({"password": "p"}, "field username: is required"),
        ({"username": "u", "password": "p", "password_file": "/f"}, "both given"),
        ({"username": "a:b", "password": "p"}, "colon"),
        ({"session_password": True, "username": "u", "password": "p"}, "session_password"),
    ],
)
def test_mistakes_in_the_configuration_are_found_at_construction(fields: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem) as error:
        HttpServer(**fields)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_constructing_a_driver_makes_no_folder_and_opens_no_port(tmp_path: Path) -> None:
    driver = HttpServer(root_dir=str(tmp_path / "later"), host="127.0.0.1", port=0)
    assert not (tmp_path / "later").exists()
    assert driver.get_port() == 0
    driver.close()


def test_commands_do_what_they_say(root: Path, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"image")
    with serve(HttpServer(root_dir=str(root), host="127.0.0.1", port=0)) as client:
        run = CliRunner()

        def cli(*argv: str) -> str:
            return run.invoke(client.cli(), argv, catch_exceptions=False).output.strip()

        assert "Serve files to the device by HTTP" in cli("--help")
        assert cli("status") == "stopped"
        assert cli("start") == client.get_url()
        assert cli("status") == f"serving at {client.get_url()}"
        assert curl(cli("put", "a/image", str(tmp_path / "image"))) == b"image"
        assert cli("storage", "list", "a/").split() == ["a/", "a/image"]
        cli("stop")
        assert cli("status") == "stopped"
