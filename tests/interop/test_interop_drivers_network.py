# SPDX-License-Identifier: Apache-2.0
"""Network, VNC and ustreamer drivers and clients of the real Jumpstarter 0.9 against ours, both ways."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from original_exporters import our_client, our_exporter, running, their_exporter

sys.path.insert(0, str(Path(__file__).parents[1] / "video"))

from video_pictures import login_screen, save

from jumpstarter_driver_network.adapters import NovncAdapter

BUS = """<busconfig>
<type>session</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow own="*"/>
<allow receive_type="method_return"/><allow receive_type="error"/><allow receive_type="signal"/></policy>
</busconfig>"""
NAMES = ["call", "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "ListNames"]

# What a user of 0.9 writes; run with its packages only.
PROGRAM = f"""
import subprocess
from jumpstarter.utils.env import env
from jumpstarter_driver_network.adapters import TcpPortforwardAdapter
import socket
with env() as client:
    with client.ws.stream() as stream:
        stream.send(b"hello")
        print(stream.receive())
    print(client.ws.address().partition(":")[0])
    with TcpPortforwardAdapter(client=client.screen.tcp) as address, socket.create_connection(address) as local:
        print(local.recv(12))
    print(client.bus.kind)
    with client.bus:
        done = subprocess.run(["busctl", "--user", "--timeout=10", *{NAMES!r}], capture_output=True, text=True)
        print("org.freedesktop.DBus" in done.stdout, done.stderr)
    state = client.video.state()
    print(state.ok, state.result.source.online, state.result.source.resolution.width)
    print(client.video.snapshot().size)
    print(client.screen.get_default_encrypt())
    with client.screen.stream() as stream:
        print(stream.receive())
"""


@contextmanager
def _websocket_echo() -> Iterator[int]:
    from websockets.asyncio.server import serve

    async def echo(connection: Any) -> None:
        async for message in connection:
            await connection.send(message)

    made: list[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = []
    ready = threading.Event()

    async def run() -> None:
        stop = asyncio.Event()
        async with serve(echo, "127.0.0.1", 0) as server:
            made.append((asyncio.get_running_loop(), stop, server.sockets[0].getsockname()[1]))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert ready.wait(10)
        yield made[0][2]
    finally:
        made[0][0].call_soon_threadsafe(made[0][1].set)
        thread.join(20)


@pytest.fixture
def services(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """An exporter's drivers, with a real service behind each; the same words in 0.9's configuration and in ours."""
    (tmp_path / "bus.conf").write_text(BUS.format(path=tmp_path / "bus"))
    blank = save(login_screen(), tmp_path / "blank.jpg")
    bus = ["dbus-daemon", f"--config-file={tmp_path}/bus.conf", "--nofork", "--print-address"]
    qemu = ["qemu-system-aarch64", "-machine", "none", "-nodefaults", "-display", "none", "-monitor", "none", "-S"]
    qemu += ["-vnc", f"unix:{tmp_path}/vnc", "-chardev", f"socket,id=q,path={tmp_path}/qmp,server=on,wait=on"]
    with ExitStack() as stack:
        daemon = stack.enter_context(running(bus, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))
        screen = stack.enter_context(running([*qemu, "-mon", "chardev=q,mode=control"], stderr=subprocess.PIPE))
        assert daemon.stdout is not None and screen.stderr is not None
        assert daemon.stdout.readline().startswith("unix:")
        assert any("waiting" in line for line in screen.stderr)
        qmp = stack.enter_context(socket.socket(socket.AF_UNIX))
        qmp.connect(str(tmp_path / "qmp"))
        assert b"QMP" in qmp.recv(4096)  # the VNC server is there as well now
        port = stack.enter_context(_websocket_echo())
        network = "jumpstarter_driver_network.driver"
        yield {
            "ws": {"type": f"{network}.WebsocketNetwork", "config": {"url": f"ws://127.0.0.1:{port}/"}},
            "bus": {"type": f"{network}.DbusNetwork", "config": {"kind": "session"}},
            "video": {
                "type": "jumpstarter_driver_ustreamer.driver.UStreamer",
                "config": {"args": {"blank": str(blank), "device": "/dev/no-such-video"}},
            },
            "screen": {
                "type": "jumpstarter_driver_vnc.driver.Vnc",
                "children": {"tcp": {"type": f"{network}.UnixNetwork", "config": {"path": str(tmp_path / "vnc")}}},
            },
        }


def test_a_client_of_the_original_uses_our_drivers(original: Path, services: dict[str, Any], tmp_path: Path) -> None:
    with our_exporter(original, tmp_path, services, **_surroundings(tmp_path)) as theirs:
        said = theirs.python(PROGRAM)
    assert said.splitlines() == [
        "b'hello'",
        "ws",
        "b'RFB 003.008\\n'",
        "session",
        "True ",
        "True False 640",
        "(640, 480)",
        "False",
        "b'RFB 003.008\\n'",
    ]


def test_our_client_uses_drivers_of_the_original(original: Path, services: dict[str, Any], tmp_path: Path) -> None:
    surroundings = {**_surroundings(tmp_path), "TMPDIR": str(tmp_path)}
    with their_exporter(original, tmp_path, services, **surroundings) as address:
        with our_client(address) as client:
            _use(client)
        asyncio.run(_look(address))


def _surroundings(folder: Path) -> dict[str, str]:
    """What either exporter finds its services by."""
    return {"DBUS_SESSION_BUS_ADDRESS": f"unix:path={folder}/bus", "NO_PROXY": "127.0.0.1"}


async def _look(address: str) -> None:
    """The action screenshot, which has no client classes."""
    from jumpstarter.client.aio import connect
    from jumpstarter_agent.screen import find_screen

    async with connect(address, insecure=True) as session:
        picture = await find_screen(session.nodes, "video").take(None, 20)
        assert picture.image.size == (640, 480) and not picture.online
        assert (await find_screen(session.nodes, "screen").take(None, 20)).image.size == (640, 480)


def _use(client: Any) -> None:
    with client.ws.stream() as stream:
        stream.send(b"hello")
        assert stream.receive() == b"hello"
    assert client.ws.address().startswith("ws://127.0.0.1:")
    assert client.bus.kind == "session"
    with client.bus:
        done = subprocess.run(["busctl", "--user", *NAMES], capture_output=True, text=True, timeout=30, check=False)
        assert "org.freedesktop.DBus" in done.stdout, done.stderr
    state = client.video.state()
    assert (state.ok, state.online, state.width, state.height, state.restarts) == (True, False, 640, 480, 0)
    assert client.video.snapshot().size == (640, 480)
    assert client.screen.snapshot().size == (640, 480)
    assert client.screen.get_default_encrypt() is False
    with NovncAdapter(client=client.screen) as url:
        assert url.startswith("http://127.0.0.1:")
