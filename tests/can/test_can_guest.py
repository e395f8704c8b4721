# SPDX-License-Identifier: Apache-2.0
"""Protects the CAN drivers on the Linux kernel's CAN: SocketCAN and ISO-TP sockets in the guest, against can-utils."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import can
import pytest
from guest_exporter import GuestExporter, guest_exporter
from guest_machine import Guest

from jumpstarter.common.exceptions import DriverError, DriverInvalidArgument

pytestmark = pytest.mark.xdist_group("can-guest")  # one exporter in the guest for all

DRIVER = "jumpstarter_driver_can.driver"


@dataclass
class Board:
    """An exporter in the guest, with virtual buses: `classic` and `fd`."""

    guest: Guest
    exporter: GuestExporter
    client: Any
    classic: str
    fd: str


@pytest.fixture(scope="module")
def board(guest: Guest) -> Iterator[Board]:
    guest.modprobe("vcan", "can_raw", "can_bcm", "can_isotp")
    classic, fd = guest.name("vc"), guest.name("vf")
    for name, size in ((classic, 16), (fd, 72)):
        guest.shell(f"ip link add {name} type vcan && ip link set {name} mtu {size} && ip link set {name} up")
    ids = {"txid": 0x7E0, "rxid": 0x7E8}
    export = {
        "can": {"type": f"{DRIVER}.Can", "config": {"channel": classic, "interface": "socketcan"}},
        "canfd": {"type": f"{DRIVER}.Can", "config": {"channel": fd, "interface": "socketcan", "fd": True}},
        "isotp": {"type": f"{DRIVER}.IsoTpSocket", "config": {"channel": classic, "address": ids}},
        "isotpfd": {
            "type": f"{DRIVER}.IsoTpSocket",
            "config": {"channel": fd, "address": ids, "params": {"can_fd": True, "tx_data_length": 64}},
        },
        "python": {
            "type": f"{DRIVER}.IsoTpPython",
            "config": {
                "channel": classic,
                "interface": "socketcan",
                "address": {"txid": 0x18DA10F1, "rxid": 0x18DAF110, "addressing_mode": "Normal_29bits"},
                "params": {"blocking_send": True},
            },
        },
        "absent": {"type": f"{DRIVER}.IsoTpSocket", "config": {"channel": "nocan0", "address": ids}},
    }
    try:
        with guest_exporter(guest, export) as exporter, exporter.client() as client:
            yield Board(guest, exporter, client, classic, fd)
    finally:
        guest.shell(f"ip link delete {classic}; ip link delete {fd}")


def test_frames_of_cansend_are_received_and_ours_are_seen_by_candump(board: Board) -> None:
    bus = board.client.can
    assert board.classic in bus.channel_info
    board.guest.run(["cansend", board.classic, "123#DEADBEEF"])
    board.guest.run(["cansend", board.classic, "1F334455#R4"])
    first, second = bus.recv(10), bus.recv(10)
    assert (first.arbitration_id, bytes(first.data), first.is_extended_id) == (0x123, b"\xde\xad\xbe\xef", False)
    assert (second.arbitration_id, second.is_remote_frame, second.dlc) == (0x1F334455, True, 4)
    with board.guest.start(["candump", "-L", "-n", "3", board.classic]) as dump:
        # Once the raw socket is there, whatever is sent is seen.
        board.guest.shell("until grep -q '^ *[^ ]' /proc/net/can/rcvlist_all; do sleep 0.02; done")
        while dump.rc is None and not re.search(b"7AB#0102", dump.stdout):
            bus.send(can.Message(arbitration_id=0x7AB, data=b"\x01\x02", is_extended_id=False))
        bus.send_many([can.Message(arbitration_id=0x12345678, data=b"\x03"), can.Message(arbitration_id=5)])
        bus.send_many([can.Message(arbitration_id=5)] * 3)
        dump.wait(20)
        assert b"7AB#0102" in dump.stdout


def test_periodic_frames_are_sent_by_the_kernel(board: Board) -> None:
    bus = board.client.can
    with board.guest.start(["candump", "-L", "-n", "6", f"{board.classic},0D1:7FF"]) as dump:
        task = bus.send_periodic(can.Message(arbitration_id=0x0D1, data=b"\xaa", is_extended_id=False), 0.02)
        dump.wait(20)
        status = board.guest.shell("cat /proc/net/can-bcm/*")
        task.stop()
    times = [float(found) for found in re.findall(r"\((\d+\.\d+)\) \S+ 0D1#AA", dump.stdout.decode())]
    assert len(times) == 6 and 0.08 < times[-1] - times[0] < 0.5
    assert re.search(r"0x?0*D1|20000|0D1", status, re.IGNORECASE), status  # it is the broadcast manager's job
    while bus.recv(0.3) is not None:
        pass


def test_can_fd_frames_pass_and_a_classic_bus_refuses_them(board: Board) -> None:
    bus = board.client.canfd
    assert bus.protocol is can.CanProtocol.CAN_FD
    board.guest.run(["cansend", board.fd, "123##1" + "AB" * 64])
    frame = bus.recv(10)
    assert (frame.is_fd, frame.bitrate_switch, bytes(frame.data)) == (True, True, b"\xab" * 64)
    with pytest.raises(DriverError, match="was not sent"):
        board.client.can.send(can.Message(arbitration_id=1, is_fd=True, data=bytes(64)))


@pytest.mark.parametrize("name", ["isotp", "isotpfd"])
@pytest.mark.parametrize("size", [5, 2048])
def test_iso_tp_messages_of_the_kernel_are_those_of_can_utils(board: Board, name: str, size: int) -> None:
    fd = name == "isotpfd"
    bus = board.fd if fd else board.classic
    # -s is where the peer sends from, -d where it receives from: the other way round than ours.
    ids = ["-s", "7E8", "-d", "7E0", *(["-L", "72:64:0"] if fd else [])]
    message = bytes(number & 0xFF for number in range(size))
    link = board.client.children[name]
    link.start()
    try:
        with board.guest.start(["isotprecv", *ids, bus]) as receiver:
            _bound(board.guest, bus, 2)
            link.send(message, send_timeout=20)
            receiver.wait(20)
            assert bytes.fromhex(receiver.stdout.decode()) == message
        assert not link.available()
        with board.guest.start(["isotpsend", *ids, bus]) as sender:
            sender.write(" ".join(f"{byte:02X}" for byte in message) + "\n")
            sender.close_stdin()
            assert link.recv(block=True, timeout=20) == message
    finally:
        link.stop()


def _bound(guest: Guest, bus: str, sockets: int) -> None:
    """Return when that many ISO-TP sockets listen on the bus: only then a message has a receiver."""
    lines = f"cat /proc/net/can/rcvlist_* | grep -c '^ *{bus} .*isotp'"
    guest.shell(f'until [ "$({lines})" -ge {sockets} ]; do sleep 0.02; done')


def test_timeouts_and_failures_of_the_kernels_sockets_are_told(board: Board) -> None:
    link = board.client.isotp
    with pytest.raises(DriverInvalidArgument, match="not started"):
        link.send(b"x")
    with pytest.raises(DriverError, match="nocan0: cannot be opened.*No such device"):
        board.client.absent.start()
    link.start()
    try:
        with pytest.raises(DriverInvalidArgument, match="started already"):
            link.start()
        began = time.monotonic()
        assert link.recv(timeout=0.3) is None
        assert 0.3 <= time.monotonic() - began < 5
        assert link.recv(timeout=0) is None
        with pytest.raises(DriverError, match="100 bytes were not sent: the receiver did not answer"):
            link.send(bytes(100))
        with pytest.raises(DriverError, match="not sent within 0.2 s") as caught:
            link.send(bytes(100), send_timeout=0.2)
        assert caught.value.code == "DEADLINE_EXCEEDED"
        for call in (link.transmitting, link.stop_sending, link.stop_receiving):
            with pytest.raises(NotImplementedError):
                call()
        with pytest.raises(DriverError, match="no answer within 3 s"):
            link.request(b"hi", 3)
    finally:
        link.stop()


def test_our_iso_tp_in_python_talks_to_the_kernels(board: Board) -> None:
    link = board.client.python
    ids = ["-s", "18DAF110", "-d", "18DA10F1"]
    message = bytes(range(200))
    link.start()
    try:
        with board.guest.start(["isotprecv", *ids, board.classic]) as receiver:
            _bound(board.guest, board.classic, 1)
            link.send(message, send_timeout=20)
            receiver.wait(20)
            assert bytes.fromhex(receiver.stdout.decode()) == message
        received = None
        for _ in range(5):
            # The kernel gives a receiver one second to ask for the rest; on a busy machine a program may need more.
            with board.guest.start(["isotpsend", *ids, board.classic]) as sender:
                sender.write(" ".join(f"{byte:02X}" for byte in message) + "\n")
                sender.close_stdin()
                received = link.recv(block=True, timeout=10)
            if received is not None:
                break
        assert received == message, link.errors()
    finally:
        link.stop()


def test_j_sends_what_candump_sees(board: Board) -> None:
    j = Path(sys.executable).with_name("j")
    with board.guest.start(["candump", "-L", "-n", "1", f"{board.classic},321:7FF"]) as dump:
        board.guest.shell(f"until grep -q '{board.classic} *321' /proc/net/can/rcvlist_*; do sleep 0.02; done")
        done = subprocess.run(
            [j, "can", "send", "321#CAFE"],
            env={**os.environ, **board.exporter.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        dump.wait(20)
        assert dump.stdout.strip().endswith(b"321#CAFE")
