# SPDX-License-Identifier: Apache-2.0
"""Protects the ustreamer driver, with the real ustreamer: it shows a picture of ours, as no device is there."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import select
import signal
import stat
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image
from video_pictures import login_screen, save

from jumpstarter.common.exceptions import ConfigurationError, DriverError
from jumpstarter.common.utils import serve
from jumpstarter_driver_composite.driver import Composite
from jumpstarter_driver_network.driver import EchoNetwork
from jumpstarter_driver_ustreamer.driver import UStreamer
from jumpstarter_testing import eventually


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(login_screen(), tmp_path_factory.mktemp("shown") / "blank.jpg")


@pytest.fixture
def driver(blank: Path) -> UStreamer:
    return UStreamer(args={"device": "/dev/no-such-video", "blank": str(blank)})


@pytest.fixture(scope="module")
def client(blank: Path) -> Iterator[Any]:
    with serve(UStreamer(args={"device": "/dev/no-such-video", "blank": str(blank)})) as client:
        yield client


def is_true(value: bool) -> None:
    assert value


def pid(driver: UStreamer) -> int:
    assert driver._server._process is not None
    return driver._server._process.pid


def test_state_has_the_values_of_old_and_new_clients(client: Any) -> None:
    state = client.state()
    assert (state.ok, state.online, state.width, state.height) == (True, False, 640, 480)
    assert 0 < state.result.encoder.quality <= 100 and state.result.encoder.type == "CPU"
    assert state.result.source.resolution.width == 640
    assert state.problem, "why there is no picture has to be said"
    assert {"ok", "result"} <= set(client.call("state")), "what 0.9 reads"


def test_snapshot_is_what_it_shows(client: Any) -> None:
    picture = client.snapshot()
    assert picture.size == (640, 480) and picture.format == "JPEG"
    assert picture.getpixel((320, 205)) > (240, 240, 240) and picture.getpixel((10, 470))[2] > 50


def test_pictures_travel_as_they_are_and_as_base64_for_old_clients(client: Any, monkeypatch: Any) -> None:
    calls: list[str] = []
    real = client.call
    monkeypatch.setattr(client, "call", lambda method, *args: (calls.append(method), real(method, *args))[1])
    data = client.snapshot_bytes()
    assert data[:2] == b"\xff\xd8" and calls == [], "the picture went through a value, a third longer than it is"
    monkeypatch.setattr(client, "methods", None)  # as with a peer that does not describe its drivers
    assert Image.open(io.BytesIO(client.snapshot_bytes())).size == (640, 480) and calls == ["snapshot"]


def test_its_socket_is_for_the_exporter_alone_and_gone_with_the_session(driver: UStreamer) -> None:
    with serve(driver) as client:
        client.state()
        assert driver._server._folder is not None
        folder = Path(driver._server._folder.name)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        descriptor = os.pidfd_open(pid(driver))
    assert not folder.exists()
    assert select.select([descriptor], [], [], 5)[0], "ustreamer outlived the session"
    os.close(descriptor)


def test_nothing_runs_before_a_session_and_it_runs_from_its_start(driver: UStreamer) -> None:
    assert driver._server._process is None
    with serve(driver):
        assert driver._server._process is not None and driver._server._process.running


def test_a_crash_is_found_logged_and_mended_without_a_call(driver: UStreamer, caplog: pytest.LogCaptureFixture) -> None:
    with serve(driver) as client:
        client.state()
        first = pid(driver)
        os.kill(first, signal.SIGSEGV)
        eventually(lambda: is_true(pid(driver) != first))
        assert re.search(r"ustreamer ended \(killed by SIGSEGV\).*starting it again", caplog.text)
        state = client.state()
        assert state.restarts == 1 and "SIGSEGV" in state.last_exit
        lines = CliRunner().invoke(client.cli(), ["state"], catch_exceptions=False).output
        assert "Restarts:   1 (ustreamer ended (killed by SIGSEGV)" in lines


def test_a_call_right_after_a_crash_gets_its_picture(driver: UStreamer) -> None:
    with serve(driver) as client:
        client.state()
        os.kill(pid(driver), signal.SIGKILL)
        assert client.snapshot().size == (640, 480)


def test_one_that_does_not_come_up_says_why_and_is_tried_ever_more_seldom(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    driver = UStreamer(args={"resolution": "nonsense"})
    with serve(Composite(children={"video": driver})) as client:
        with pytest.raises(DriverError, match=r"ustreamer ended \(exit status 1\): .*nonsense") as caught:
            client.video.snapshot()
        assert caught.value.driver == "video" and caught.value.code == "UNAVAILABLE"
        eventually(lambda: is_true(caplog.text.count("starting it again in") >= 2))
        pauses = [float(text) for text in re.findall(r"starting it again in ([\d.]+) s", caplog.text)]
        assert pauses == sorted(pauses) and pauses[-1] > pauses[0]
    assert driver._server._timer is None


def test_one_that_hangs_is_given_up_and_holds_nobody_up(tmp_path: Path) -> None:
    program, go, gate = tmp_path / "fake-ustreamer", tmp_path / "go", tmp_path / "gate"
    os.mkfifo(gate)
    program.write_text(f"#!/bin/sh\n[ -e {go} ] && exit 3\nexec cat {gate}\n")
    program.chmod(0o755)
    with serve(UStreamer(executable=str(program), start_timeout=0.2)) as alone:
        with pytest.raises(DriverError, match=r"does not answer 0.2 s after its start"):
            alone.state()
    driver = UStreamer(executable=str(program), start_timeout=60)
    with serve(Composite(children={"video": driver, "echo": EchoNetwork()})) as client:
        errors: list[Exception] = []

        def ask() -> None:
            try:
                client.video.state()
            except DriverError as error:
                errors.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        with client.echo.stream() as stream:
            stream.send(b"x")
            assert stream.receive() == b"x"
        assert asking.is_alive(), "the loop waited for ustreamer"
        with gate.open("wb"):  # it hangs there now
            go.touch()
        asking.join(30)
        assert "exit status 3" in str(errors[0])


def test_a_call_under_way_does_not_bring_it_back_after_the_session(driver: UStreamer) -> None:
    with serve(driver) as client:
        client.state()
    with pytest.raises(ConnectionError, match="ended with the session"):
        asyncio.run(driver.picture())
    assert driver._server._process is None
    with serve(driver) as client:
        assert client.state().ok


def test_it_dies_with_an_exporter_that_is_killed(blank: Path, tmp_path: Path) -> None:
    config = {"args": {"device": "/dev/no-such-video", "blank": str(blank)}}
    export = {"video": {"type": "jumpstarter_driver_ustreamer.driver.UStreamer", "config": config}}
    (tmp_path / "e.json").write_text(json.dumps({"metadata": {"namespace": "a", "name": "b"}, "export": export}))
    argv = [sys.executable, "-m", "jumpstarter.exporter", "--config", tmp_path / "e.json", "--listen"]
    argv += [f"unix:{tmp_path}/s"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as exporter:
        try:
            assert exporter.stdout is not None and exporter.stdout.readline().startswith("READY")

            def ustreamer() -> int:
                tasks = Path(f"/proc/{exporter.pid}/task").glob("*/children")
                children = [int(pid) for task in tasks for pid in task.read_text().split()]
                lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in children}
                (found,) = [pid for pid, line in lines.items() if line[0].endswith(b"/ustreamer")]
                return found

            descriptor = os.pidfd_open(eventually(ustreamer, timeout=10))
        finally:
            exporter.kill()
    assert select.select([descriptor], [], [], 5)[0], "ustreamer outlived its exporter"
    os.close(descriptor)


def test_live_stream_in_a_browser_needs_the_url_that_was_given(client: Any) -> None:
    with client.serve() as url:
        with urllib.request.urlopen(f"{url}/stream", timeout=10) as stream:
            assert stream.headers["Content-Type"].startswith("multipart/x-mixed-replace")
            seen = b""
            while seen.count(b"\xff\xd8\xff") < 2:  # more than one picture
                seen += stream.read1(65536)
        with urllib.request.urlopen(f"{url}/snapshot", timeout=10) as answer:
            assert Image.open(io.BytesIO(answer.read())).size == (640, 480)
        with urllib.request.urlopen(f"{url}/", timeout=10) as answer:
            assert b'src="stream"' in answer.read()
            assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        root = url.rpartition("/")[0]
        assert url.startswith("http://127.0.0.1:")
        for request, status in (
            (urllib.request.Request(f"{root}/snapshot"), 404),
            (urllib.request.Request(f"{root}/guess/snapshot"), 404),
            (urllib.request.Request(f"{url}/snapshot", headers={"Host": "evil.test"}), 403),
            (urllib.request.Request(f"{url}/snapshot", headers={"Origin": "http://evil.test"}), 403),
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=10)
            assert refused.value.code == status
            refused.value.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/", timeout=10)


def test_commands(client: Any, tmp_path: Path) -> None:
    run = CliRunner()
    state = run.invoke(client.cli(), ["state"], catch_exceptions=False).output
    assert "Online:     False" in state and "Resolution: 640x480" in state and "Encoder:    CPU" in state
    for name, kind in (("a.jpg", "JPEG"), ("b.png", "PNG")):
        path = tmp_path / name
        assert run.invoke(client.cli(), ["snapshot", "-o", str(path)], catch_exceptions=False).output == f"{path}\n"
        assert Image.open(path).format == kind
    for name, words in (
        ("c.foo", "c.foo: a picture's name ends in one of .png"),
        ("no/c.png", "there is no directory"),
    ):
        done = run.invoke(client.cli(), ["snapshot", "-o", str(tmp_path / name)], terminal_width=400)
        assert done.exit_code == 2 and words in done.output


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"executable": "no-such-ustreamer"}, '"no-such-ustreamer" is not installed on the exporter host'),
        ({"args": {"host": "0.0.0.0"}}, '"host" cannot be set'),
        ({"args": {"passwd": "x"}}, '"passwd" cannot be set'),
        ({"args": {"unix": "/tmp/x"}}, '"unix" cannot be set'),
        ({"args": {"--device": "/dev/video0"}}, "without dashes"),
        ({"args": {"persistent": False}}, "leave it out"),
    ],
)
def test_wrong_configurations_show_when_the_exporter_starts(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        UStreamer(**config)
