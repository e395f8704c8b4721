# SPDX-License-Identifier: Apache-2.0
"""Protects the driver of HTTP cameras, with a real ustreamer as camera: password, limits, what lessees reach."""

from __future__ import annotations

import http.client as http_client
import socket
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from self_signed_certificate import self_signed
from video_pictures import login_screen, save

from jumpstarter.client.adapters import UnixPortforwardAdapter
from jumpstarter.common.exceptions import ConfigurationError, DriverError
from jumpstarter.common.utils import serve
from jumpstarter_driver_composite.driver import Composite
from jumpstarter_driver_network.driver import EchoNetwork
from jumpstarter_driver_video.common import jpeg_size
from jumpstarter_driver_video.driver import HttpVideo
from jumpstarter_testing import eventually

PASSWORD = "cam s3cret"


class Camera:
    """A TCP port that leads to ustreamer's unix socket."""

    def __init__(self, path: Path, tls: ssl.SSLContext | None = None) -> None:
        self._path = path
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        self._open: list[socket.socket] = []

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._open:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # over already
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._tls is not None:
                try:
                    near = self._tls.wrap_socket(near, server_side=True)
                except OSError:
                    continue  # a client that does not trust us
            far = _connect(self._path)
            self._open += [near, far]
            for source, target in ((near, far), (far, near)):
                thread = threading.Thread(target=_copy, args=(source, target), daemon=True)
                thread.start()
                self._threads.append(thread)


def _connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(str(path))
    except OSError:
        sock.close()
        raise
    return sock


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return  # the other direction sees it as well


@pytest.fixture
def camera(tmp_path: Path) -> Iterator[Camera]:
    """A camera that wants a password."""
    path = tmp_path / "camera"
    blank = save(login_screen(), tmp_path / "blank.jpg")
    argv = ["ustreamer", "--unix", path, "--blank", blank, "--device", "/dev/no-such", "--user", "admin"]
    argv += ["--passwd", PASSWORD]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as process:
        try:
            eventually(lambda: _connect(path).close())
            camera = Camera(path)
            yield camera
            camera.close()
        finally:
            process.kill()


def video(camera: Camera, **config: object) -> HttpVideo:
    settings: dict[str, object] = {"username": "admin", "password": PASSWORD, **config}
    return HttpVideo(url=f"http://127.0.0.1:{camera.port}/stream", **settings)  # type: ignore[arg-type]


def test_pictures_from_the_stream_and_from_their_own_url(camera: Camera, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text(PASSWORD + "\n")
    url = f"http://127.0.0.1:{camera.port}"
    quoted = PASSWORD.replace(" ", "%20")
    for driver in (
        video(camera),
        video(camera, snapshot_url=f"{url}/snapshot"),
        video(camera, password=None, password_file=str(secret)),
        HttpVideo(url=f"http://admin:{quoted}@127.0.0.1:{camera.port}/stream"),
    ):
        with serve(driver) as client:
            assert client.snapshot().size == (640, 480)
            state = client.state()
            assert (state.online, state.width, state.height, state.problem) == (True, 640, 480, "")
            assert client.stream_path() == "/stream"


def test_the_password_stays_on_the_exporter(camera: Camera) -> None:
    driver = video(camera)
    assert PASSWORD not in repr(driver)
    with serve(driver) as client, client.serve() as url:
        with urllib.request.urlopen(f"{url}/stream", timeout=10) as stream:
            assert stream.headers["Content-Type"].startswith("multipart/x-mixed-replace")
            seen = b""
            while b"\xff\xd8\xff" not in seen:
                seen += stream.read1(65536)
    with serve(video(camera, password="wr0ng")) as client:
        with pytest.raises(DriverError, match=r"HTTP status 401.*see username and password") as caught:
            client.snapshot()
        assert "wr0ng" not in str(caught.value)
        state = client.state()
        assert not state.online and "401" in state.problem and "wr0ng" not in state.problem


def test_https_with_a_certificate_of_its_own(tmp_path: Path) -> None:
    """Only one that is trusted is talked to; a password is never sent to another."""
    certificate = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    path = tmp_path / "camera"
    blank = save(login_screen(), tmp_path / "blank.jpg")
    argv = ["ustreamer", "--unix", path, "--blank", blank, "--device", "/dev/no-such"]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as process:
        try:
            eventually(lambda: _connect(path).close())
            camera = Camera(path, context)
            url = f"https://127.0.0.1:{camera.port}/stream"
            with serve(HttpVideo(url=url, ca_file=str(certificate))) as client:
                assert client.snapshot().size == (640, 480)
            with serve(HttpVideo(url=url)) as client, pytest.raises(DriverError, match="certificate verify failed"):
                client.snapshot()
            camera.close()
        finally:
            process.kill()


def test_lessees_reach_the_stream_and_nothing_else_of_the_camera(camera: Camera) -> None:
    with serve(video(camera)) as client, UnixPortforwardAdapter(client=client) as path:
        for line in ("GET /state", "GET /", "POST /stream", "GET /stream?x=1"):
            with socket.socket(socket.AF_UNIX) as local:
                local.settimeout(10)
                local.connect(path)
                local.sendall(f"{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
                status = local.recv(4096).partition(b"\r\n")[0]
            assert b" 404 " in status or b" 400 " in status, line


def answer_once(body: bytes, *, silent: bool = False) -> tuple[socket.socket, int]:
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        try:
            peer, _ = listener.accept()
        except OSError:
            return
        with peer:
            peer.recv(65536)
            if silent:
                peer.recv(1)  # until the other side gives up
            peer.sendall(body)

    threading.Thread(target=run, daemon=True).start()
    return listener, int(listener.getsockname()[1])


def http(body: bytes, kind: str = "image/jpeg") -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (http(b"<html>login</html>", "text/html"), "18 bytes that are no JPEG picture .as text/html"),
        (http(b"\xff\xd8\xff\xe0 cut"), "of a JPEG picture without its end"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "HTTP status 302"),
        (http(b"", "multipart/x-mixed-replace; boundary=x"), "the camera's stream"),
        (b"SSH-2.0-x\r\n\r\n", "http://127.0.0.1"),
    ],
)
def test_what_is_no_picture_is_no_success(answer: bytes, message: str) -> None:
    listener, port = answer_once(answer)
    with listener, serve(HttpVideo(url=f"http://127.0.0.1:{port}/", timeout=5)) as client:
        with pytest.raises(DriverError, match=message) as caught:
            client.snapshot()
        assert caught.value.code == "UNAVAILABLE"


def test_a_silent_camera_is_given_up_and_holds_nobody_up() -> None:
    listener, port = answer_once(b"", silent=True)
    with listener, serve(HttpVideo(url=f"http://127.0.0.1:{port}/", timeout=0.2)) as alone:
        with pytest.raises(DriverError, match=r"no answer within 0.2 s") as caught:
            alone.snapshot()
        assert caught.value.code == "DEADLINE_EXCEEDED"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        driver = HttpVideo(url=f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout=60)
        with serve(Composite(children={"video": driver, "echo": EchoNetwork()})) as client:
            errors: list[DriverError] = []

            def ask() -> None:
                try:
                    client.video.snapshot()
                except DriverError as error:
                    errors.append(error)

            asking = threading.Thread(target=ask)
            asking.start()
            peer, _ = listener.accept()
            with peer, client.echo.stream() as stream:
                stream.send(b"x")
                assert stream.receive() == b"x"
                assert asking.is_alive(), "the loop waited for the camera"
                peer.sendall(http(b"at last"))
            asking.join(30)
            assert "7 bytes that are no JPEG picture" in str(errors[0])


@contextmanager
def stream_of(driver: HttpVideo) -> Iterator[str]:
    with serve(driver) as client, client.serve() as url:
        yield f"{url}/stream"


@pytest.mark.parametrize("path", ["/a%20b?x=%41&t=1%2C2", "/x?u=a@b&z=[1]"])
def test_a_path_may_be_written_in_any_way(path: str) -> None:
    listener, port = answer_once(http(b"\xff\xd8picture", "image/jpeg"))
    with listener, stream_of(HttpVideo(url=f"http://127.0.0.1:{port}{path}")) as url:
        with urllib.request.urlopen(url, timeout=10) as stream:
            assert stream.read() == b"\xff\xd8picture"


def test_a_stream_that_stops_is_broken_off_rather_than_ended() -> None:
    """A viewer of a stream that ends well shows its last picture for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        driver = HttpVideo(url=f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout=0.3)
        with stream_of(driver) as url, ThreadPoolExecutor(1) as pool:
            opening = pool.submit(urllib.request.urlopen, url, timeout=10)
            peer, _ = listener.accept()
            with peer:
                peer.recv(65536)
                peer.sendall(http(b"--x", "multipart/x-mixed-replace; boundary=x"))
                with opening.result(10) as stream, pytest.raises((http_client.IncompleteRead, ConnectionError)):
                    stream.read()  # nothing more comes, and the connection stays


def test_what_a_camera_sends_is_no_page_of_ours() -> None:
    listener, port = answer_once(http(b"<script>alert(1)</script>", "text/html"))
    with listener, stream_of(HttpVideo(url=f"http://127.0.0.1:{port}/")) as url:
        with pytest.raises(urllib.error.HTTPError, match="502") as refused:
            urllib.request.urlopen(url, timeout=10)
        assert b"no pictures but text/html" in refused.value.read()
    listener, port = answer_once(http(b"<script/>", "image/svg+xml"))
    with listener, stream_of(HttpVideo(url=f"http://127.0.0.1:{port}/")) as url:
        with urllib.request.urlopen(url, timeout=10) as stream:
            assert stream.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")


def test_a_live_page_says_why_there_is_no_picture(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with serve(HttpVideo(url=f"http://127.0.0.1:{port}/")) as client, client.serve() as url:
        for what in ("stream", "snapshot"):
            with pytest.raises(urllib.error.HTTPError, match="502") as refused:
                urllib.request.urlopen(f"{url}/{what}", timeout=10)
            assert b"connection refused" in refused.value.read()
    assert "Traceback" not in caplog.text


def test_a_camera_that_is_not_there_is_offline_and_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with serve(HttpVideo(url=f"http://u:s3cret@127.0.0.1:{port}/")) as client:
        state = client.state()
        assert not state.online and state.problem == f"http://127.0.0.1:{port}/: connection refused"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"url": "rtsp://cam/"}, "no http:// or https:// URL"),
        ({"url": "http://cam:99999/"}, "no http:// or https:// URL"),
        ({"url": "http:///x"}, "no http:// or https:// URL"),
        ({"url": "http://cam/", "snapshot_url": "cam.jpg"}, "snapshot_url"),
        ({"url": "http://cam/", "password": "a", "password_file": "b"}, "both given"),
        ({"url": "http://cam/", "timeout": 0}, "timeout is 0"),
    ],
)
def test_wrong_configurations_show_when_the_exporter_starts(config: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        HttpVideo(**config)  # type: ignore[arg-type]


def test_a_missing_ca_file_is_named() -> None:
    with serve(HttpVideo(url="https://127.0.0.1:1/", ca_file="/no/such/ca.pem")) as client:
        with pytest.raises(DriverError, match="ca_file: /no/such/ca.pem: No such file"):
            client.snapshot()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 5}])
def test_the_size_of_a_jpeg_is_read_as_pillow_reads_it(options: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (123, 45)).save(path, **options)
    assert jpeg_size(path.read_bytes()) == (123, 45)
