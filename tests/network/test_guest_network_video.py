# SPDX-License-Identifier: Apache-2.0
"""Protects vsock and live video against a kernel that has them: the guest's. One exporter in it for both."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from guest_exporter import GuestExporter, guest_exporter
from guest_machine import Guest

from jumpstarter.common.exceptions import DriverError
from jumpstarter_testing import eventually

pytestmark = pytest.mark.xdist_group("guest-network-video")  # one exporter in the guest for all

LOOPBACK = 1  # VMADDR_CID_LOCAL
#: Below 1024 the kernel takes no port for clients: one that connects to its own port hears of a "protocol error".
NOBODYS = 1000
SERVER = """
import socket
with socket.socket(socket.AF_VSOCK) as listener:
    listener.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
    listener.listen()
    print("port", listener.getsockname()[1], flush=True)
    while True:
        peer = listener.accept()[0]
        with peer:
            data = b"".join(iter(lambda: peer.recv(1 << 16), b""))
            peer.sendall(b"%d bytes: " % len(data) + data[::-1])
"""


@pytest.fixture(scope="module")
def vsock_port(guest: Guest) -> Iterator[int]:
    guest.modprobe("vsock_loopback")
    with guest.start([sys.executable, "-c", SERVER]) as server:
        yield int(server.wait_for(r"port (\d+)", 30).group(1))


@pytest.fixture(scope="module")
def exporter(guest: Guest, vsock_port: int) -> Iterator[GuestExporter]:
    guest.modprobe("vivid")  # a video device that draws a test picture with a running counter
    device = guest.shell("for d in /sys/class/video4linux/video*; do grep -l vivid.*vid-cap $d/name; done | head -n 1")
    vsock = "jumpstarter_driver_network.driver.VsockNetwork"
    export = {
        "vm": {"type": vsock, "config": {"cid": LOOPBACK, "port": vsock_port}},
        "nobody": {"type": vsock, "config": {"cid": LOOPBACK, "port": NOBODYS}},
        "video": {
            "type": "jumpstarter_driver_ustreamer.driver.UStreamer",
            "config": {
                "args": {
                    "device": f"/dev/{Path(device.strip()).parent.name}",
                    "resolution": "320x180",
                    "desired-fps": 5,
                }
            },
        },
    }
    with guest_exporter(guest, export) as exporter:
        yield exporter


@pytest.fixture(scope="module")
def client(exporter: GuestExporter) -> Iterator[Any]:
    with exporter.client() as client:
        yield client


def test_vsock_carries_data_both_ways_with_its_half_close(client: Any) -> None:
    for data in (b"abc", os.urandom(500_000)):
        with client.vm.stream() as stream:
            stream.send(data)
            stream.send_eof()  # the answer comes after it
            assert b"".join(stream) == b"%d bytes: " % len(data) + data[::-1]


def test_a_vsock_port_where_nobody_listens_is_named(client: Any) -> None:
    with pytest.raises(DriverError, match=f"vsock 1:{NOBODYS}: connection reset by peer") as caught:
        with client.nobody.stream():
            pass
    assert (caught.value.code, caught.value.driver) == ("UNAVAILABLE", "nobody")


def test_j_tells_the_address(exporter: GuestExporter, vsock_port: int) -> None:
    j = Path(sys.executable).with_name("j")
    environment = {**os.environ, **exporter.environment}
    argv = [j, "vm", "address"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"vsock://1:{vsock_port}\n"


def test_live_pictures_of_a_video_device(client: Any) -> None:
    def online() -> Any:
        state = client.video.state()
        assert state.online, state
        return state

    state = eventually(online, timeout=30)
    assert (state.width, state.height) == (320, 180)
    first = client.video.snapshot().convert("RGB")
    assert first.size == (320, 180)
    assert len({first.getpixel((x, 90)) for x in range(10, 320, 40)}) >= 5, "vivid's colour bars"

    def another() -> None:
        assert client.video.snapshot().convert("RGB").tobytes() != first.tobytes()

    eventually(another, timeout=10)  # the counter in the picture runs
