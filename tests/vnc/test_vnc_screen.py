# SPDX-License-Identifier: Apache-2.0
"""Protects the way to a screen: QEMU's VNC server, seen by noVNC in Chromium, by vncdotool, and by ourselves."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from chromium_page import Page, chromium_page
from click.testing import CliRunner
from conftest_qemu import board
from PIL import Image, ImageChops, ImageStat

from jumpstarter.common.exceptions import ConfigurationError, DriverError
from jumpstarter.common.utils import serve
from jumpstarter_driver_network.adapters import NovncAdapter
from jumpstarter_driver_network.driver import UnixNetwork
from jumpstarter_driver_network.novnc import find_novnc
from jumpstarter_driver_vnc.driver import Vnc
from jumpstarter_imagehash import ImageHash, compare

pytestmark = pytest.mark.xdist_group("vnc-screen")  # one virtual machine for all

ARTEFACTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"
#: True when the screen of the machine is drawn: QEMU's text is brighter than anything of the page.
DRAWN = """(() => {
  const canvas = document.querySelector("canvas");
  if (!canvas || canvas.width != 640) return false;
  const data = canvas.getContext("2d").getImageData(0, 0, 640, 480).data;
  for (let at = 0; at < data.length; at += 4) if (data[at] > 150) return true;
  return false;
})()"""


def black_share(picture: Image.Image) -> float:
    """How much of a picture is (almost) black."""
    histogram = picture.convert("L").histogram()
    return sum(histogram[:40]) / sum(histogram)


def websocket_url(url: str) -> tuple[str, str]:
    """Where the page connects to, and the origin it has."""
    parts = urlsplit(url)
    return f"ws://{parts.netloc}/{parse_qs(parts.query)['path'][0]}", f"http://{parts.netloc}"


# --- pictures ---------------------------------------------------------------------------------------------------


def test_a_picture_of_the_screen(machine: Any) -> None:
    picture = machine.snapshot()
    assert picture.size == (640, 480)
    assert {color for _, color in picture.getcolors()} == {(0, 0, 0), (170, 170, 170)}
    text = picture.convert("L").getbbox()
    assert text is not None and 100 < text[0] < 200 and 200 < text[1] < text[3] < 260, "the line in the middle"
    assert compare(ImageHash(machine).snapshot(), picture).distance == 0


def test_command_screenshot(machine: Any, tmp_path: Path) -> None:
    path = tmp_path / "screen.png"
    assert (
        CliRunner().invoke(machine.cli(), ["screenshot", "-o", str(path)], catch_exceptions=False).output == f"{path}\n"
    )
    with Image.open(path) as picture:
        assert picture.size == (640, 480)


def test_a_machine_that_is_off_or_has_no_screen_says_so() -> None:
    with serve(board(vnc=True)) as client, pytest.raises(DriverError, match="the virtual machine is off"):
        client.snapshot()
    with serve(board(vnc=False)) as client, pytest.raises(ValueError, match='no screen: "vnc" is off'):
        client.novnc()


# --- the browser ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium_page(tmp_path_factory.mktemp("chromium") / "profile") as page:
        yield page


def test_chromium_shows_the_screen_with_novnc(machine: Any, page: Page) -> None:
    shot = ARTEFACTS / "novnc-qemu.png"
    with machine.novnc() as url:
        assert "novnc.com" not in url and url.startswith("http://127.0.0.1:")
        page.open(url)
        page.wait_for(DRAWN)
        page.screenshot(shot)
        # Nothing came from anywhere else.
        assert {urlsplit(each).netloc for each in page.requests if ":" in each[:6]} <= {urlsplit(url).netloc, ""}
        assert any(each.startswith("ws://127.0.0.1") for each in page.requests)
    with Image.open(shot) as picture:
        # The machine's 640x480 fill the height; without a connection noVNC shows a grey page with its logo.
        middle = picture.convert("RGB").crop((200, 250, 800, 450))
        assert black_share(middle) > 0.9
        bright = ImageStat.Stat(middle.convert("L")).extrema[0][1]
        assert bright > 150, "the line of text is not there"


def test_chromium_shows_the_screen_with_our_own_page(machine: Any, page: Page, tmp_path: Path) -> None:
    shot = ARTEFACTS / "novnc-own-page.png"
    folder = tmp_path / "npm"  # as npm's package is: the library, and no page
    for source in (find_novnc() / "core", find_novnc() / "vendor"):
        shutil.copytree(source, folder / source.name)
    with NovncAdapter(client=machine.vnc, folder=folder) as url:
        assert "/novnc_page.html?" in url
        page.open(url)
        page.wait_for(DRAWN)
        page.screenshot(shot)
    with Image.open(shot) as picture:
        assert black_share(picture.convert("RGB").crop((200, 100, 800, 500))) > 0.9
        assert ImageStat.Stat(picture.convert("L").crop((200, 200, 800, 340))).extrema[0][1] > 150


def test_the_page_fetches_nothing_from_elsewhere(machine: Any) -> None:
    with machine.novnc() as url, urllib.request.urlopen(url, timeout=10) as page:
        text = page.read().decode()
        policy = page.headers["Content-Security-Policy"]
        assert page.headers["Referrer-Policy"] == "no-referrer" and page.headers["Cache-Control"] == "no-store"
    sources = re.findall(r"""(?:src|href)=["']?(https?:[^"' >]+)""", text)
    assert [source for source in sources if "novnc.com" not in source] == []  # noVNC's logo links there, on a click
    assert "default-src 'self'" in policy and "http" not in policy.replace(urlsplit(url).netloc, "")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"path": "vnc.html"}, 404),
        ({"path": "websockify"}, 404),
        ({"path": "AAAA/websockify"}, 404),
        ({"path": "../../../../etc/passwd"}, 404),
        ({"Origin": "http://evil.test"}, 403),
        ({"Host": "evil.test"}, 403),
        ({"Host": "evil.test", "Origin": "http://evil.test"}, 403),
    ],
)
def test_nobody_without_the_url_and_no_other_page_gets_in(machine: Any, change: dict[str, str], status: int) -> None:
    with machine.novnc() as url:
        socket_url, origin = websocket_url(url)
        target = socket_url.replace("ws://", "http://")
        headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        headers |= {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Origin": origin, **change}
        if "path" in headers:
            target = f"{origin}/{headers.pop('path')}"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(target, headers=headers), timeout=10)
        assert refused.value.code == status
        refused.value.close()
    with socket.socket() as late, pytest.raises(ConnectionRefusedError):
        late.connect(("127.0.0.1", urlsplit(url).port))


def test_two_pages_have_different_urls(machine: Any) -> None:
    with machine.novnc() as one, machine.novnc() as two:
        assert urlsplit(one).path != urlsplit(two).path
        assert len(urlsplit(one).path.split("/")[1]) >= 32


# --- the bridge -------------------------------------------------------------------------------------------------


@contextmanager
def tcp_to_websocket(url: str) -> Iterator[int]:
    """A TCP port for programs that know no WebSocket; gives one connection to the page's."""
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    target, origin = websocket_url(url)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            peer, _ = listener.accept()
            with peer, connect(target, origin=origin, proxy=None, compression=None) as ws:  # type: ignore[arg-type]

                def down() -> None:
                    try:
                        for message in ws:
                            peer.sendall(message)  # type: ignore[arg-type]
                    except (ConnectionClosed, OSError):
                        return  # the program has seen enough

                thread = threading.Thread(target=down)
                thread.start()
                while data := peer.recv(65536):
                    ws.send(data)
                ws.close()
                thread.join(5)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)


def test_vncdotool_sees_the_same_through_the_bridge(machine: Any, tmp_path: Path) -> None:
    """A VNC client that is not ours, through the WebSocket that noVNC uses: pictures and keys."""
    vncdo = Path(sys.executable).with_name("vncdo")
    with machine.novnc() as url, tcp_to_websocket(url) as port:
        argv = [vncdo, "--server", f"127.0.0.1::{port}", "--timeout", "60", "key", "a", "capture", "seen.png"]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "seen.png") as seen:
        assert ImageChops.difference(seen.convert("RGB"), machine.snapshot()).getbbox() is None


def test_a_machine_that_goes_off_ends_the_connection_and_says_why(machine: Any) -> None:
    from websockets.asyncio.client import connect

    async def look(url: str) -> tuple[int | None, str]:
        target, origin = websocket_url(url)
        async with asyncio.timeout(20), connect(target, origin=origin, proxy=None) as ws:  # type: ignore[arg-type]
            await ws.wait_closed()
            return ws.close_code, ws.close_reason or ""

    with serve(board(vnc=True)) as client, client.novnc() as url:
        code, reason = asyncio.run(look(url))
    assert code == 1011 and "the virtual machine is off" in reason


# --- the driver Vnc ---------------------------------------------------------------------------------------------


@pytest.fixture
def with_password(tmp_path: Path) -> Iterator[Vnc]:
    """A driver for a QEMU of our own whose screen wants a password."""
    path = tmp_path / "vnc"
    argv = ["qemu-system-aarch64", "-machine", "none", "-nodefaults", "-display", "none", "-monitor", "none"]
    argv += ["-object", "secret,id=s,data=opensesame", "-vnc", f"unix:{path},password-secret=s", "-S"]
    argv += ["-chardev", f"socket,id=q,path={tmp_path}/qmp,server=on,wait=on", "-mon", "chardev=q,mode=control"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:  # "waiting for connection": the VNC server is made after it
                if "waiting" in line:
                    break
            with _connect(tmp_path / "qmp") as qmp:
                assert b"QMP" in qmp.recv(4096)
                yield Vnc(children={"tcp": UnixNetwork(path=str(path))})
        finally:
            process.kill()


def _connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    return sock


def test_a_server_with_a_password(with_password: Vnc, tmp_path: Path) -> None:
    with serve(with_password) as client:
        assert client.snapshot(password="opensesame").size == (640, 480)
        with pytest.raises(ConnectionError, match="wants a password, and none was given"):
            client.snapshot()
        out = tmp_path / "with-password.png"
        arguments = ["snapshot", "-o", str(out), "--password-file", "-"]
        CliRunner().invoke(client.cli(), arguments, input="opensesame\n", catch_exceptions=False)
        with Image.open(out) as picture:
            assert picture.size == (640, 480)
        with pytest.raises(ConnectionError, match="the server refused: ") as caught:
            client.snapshot(password="wrong")
        assert "wrong" not in str(caught.value)


def test_driver_vnc_gives_the_client_its_session_and_picture(machine: Any, tmp_path: Path) -> None:
    with machine.vnc.stream():
        pass
    path = machine.vnc.address().removeprefix("unix://")
    with serve(Vnc(children={"tcp": UnixNetwork(path=path)}, default_encrypt=True)) as client:
        assert client.get_default_encrypt() is True
        assert client.snapshot().size == (640, 480)
        with client.stream() as stream:
            assert stream.receive().startswith(b"RFB 003.008")
        with client.session(encrypt=False) as url, urllib.request.urlopen(url, timeout=10) as page:
            assert b"noVNC" in page.read()
        out = tmp_path / "s.jpg"
        CliRunner().invoke(client.cli(), ["snapshot", "-o", str(out)], catch_exceptions=False)
        with Image.open(out) as picture:
            assert (picture.format, picture.size) == ("JPEG", (640, 480))
        assert {"tcp", "session", "snapshot"} <= set(client.cli().commands)


def test_a_vnc_driver_without_its_child_shows_when_the_exporter_starts() -> None:
    with pytest.raises(ConfigurationError, match='needs a child "tcp"'):
        Vnc()


# --- noVNC's files ----------------------------------------------------------------------------------------------


def test_missing_novnc_names_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("JUMPSTARTER_NOVNC", raising=False)
    found = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda self: "rfb.js" not in self.name and found(self))
    with pytest.raises(FileNotFoundError, match="apt install novnc .*npm install --prefix .*@novnc/novnc@") as caught:
        find_novnc()
    monkeypatch.undo()
    # What the message says is where it is looked for afterwards.
    prefix = re.search(r"--prefix (\S+)", str(caught.value))
    assert prefix is not None
    package = Path(prefix[1]) / "node_modules/@novnc/novnc"
    (package / "core").mkdir(parents=True)
    (package / "core" / "rfb.js").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert find_novnc() == package
    monkeypatch.setenv("JUMPSTARTER_NOVNC", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match=r"elsewhere is not noVNC's directory: there is no core/rfb\.js"):
        find_novnc()


def test_no_port_is_open_for_ssh(machine: Any, tmp_path: Path) -> None:
    """fabric reaches a device through a socket of this user alone, not through a TCP port for everybody."""
    import fabric

    from jumpstarter_driver_network.adapters import FabricAdapter
    from jumpstarter_driver_network.driver import EchoNetwork

    with serve(EchoNetwork()) as client:
        with FabricAdapter(client, config=fabric.Config(lazy=True)) as connection:
            path = connection.gateway
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
            with connection.open_gateway() as sock:
                assert sock.family == socket.AF_UNIX
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
