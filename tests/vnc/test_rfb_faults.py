# SPDX-License-Identifier: Apache-2.0
"""Protects the picture over RFB from servers that are slow, odd, hostile or none. Fake: scripted servers."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import pytest
from anyio import EndOfStream

from jumpstarter_driver_vnc.rfb import Framebuffer, RfbError, snapshot

INIT = struct.pack(">HH16sI", 2, 2, b"", 4) + b"fake"
NO_SECURITY = b"RFB 003.008\n" + b"\x01\x01" + b"\0\0\0\0"


class FakeServer:
    """A stream with everything a server will ever say; `piece` bytes at a time. Silent afterwards, or closed."""

    def __init__(self, said: bytes, *, piece: int = 1 << 20, silent: bool = False) -> None:
        self.said, self.piece, self.silent = said, piece, silent
        self.heard = b""

    async def send(self, item: bytes) -> None:
        self.heard += item

    async def receive(self) -> bytes:
        if not self.said:
            if self.silent:
                await asyncio.sleep(60)
            raise EndOfStream
        data, self.said = self.said[: self.piece], self.said[self.piece :]
        return data


def take(said: bytes, **options: Any) -> Framebuffer:
    return asyncio.run(snapshot(FakeServer(said, **options), timeout=0.1 if options.get("silent") else 10))


def raw(x: int, y: int, width: int, height: int, pixels: bytes) -> bytes:
    return struct.pack(">HHHHi", x, y, width, height, 0) + pixels


def update(*rectangles: bytes) -> bytes:
    return struct.pack(">BxH", 0, len(rectangles)) + b"".join(rectangles)


def pixel(red: int, green: int, blue: int) -> bytes:
    return bytes((blue, green, red, 0))


def test_a_picture_in_pieces_of_any_size_with_other_messages_between() -> None:
    bell, cut = b"\x02", b"\x03\0\0\0" + struct.pack(">I", 3) + b"abc"
    colours = struct.pack(">BxHH", 1, 0, 1) + bytes(6)
    said = NO_SECURITY + INIT + bell + update(raw(0, 0, 2, 1, pixel(255, 0, 0) + pixel(0, 255, 0))) + cut + colours
    said += update(raw(0, 1, 1, 1, pixel(0, 0, 255))) + update(raw(1, 1, 1, 1, pixel(1, 2, 3)))
    for piece in (1, 7, 1 << 20):
        picture = take(said, piece=piece)
        assert picture.name == "fake"
        assert picture.image().tobytes() == bytes([255, 0, 0, 0, 255, 0, 0, 0, 255, 1, 2, 3])


def test_a_screen_that_changes_its_size_is_asked_for_again() -> None:
    grown = struct.pack(">HHHHi", 0, 0, 3, 1, -223)
    server = FakeServer(NO_SECURITY + INIT + update(grown) + update(raw(0, 0, 3, 1, 3 * pixel(9, 9, 9))))
    picture = asyncio.run(snapshot(server, timeout=5))
    assert (picture.width, picture.height) == (3, 1)
    assert server.heard.endswith(struct.pack(">BBHHHH", 3, 0, 0, 0, 3, 1)), "the whole of the new size"


@pytest.mark.parametrize(
    ("version", "security"), [(b"003.003", b"\0\0\0\x01"), (b"003.007", b"\x01\x01"), (b"003.889", b"\x01\x01\0\0\0\0")]
)
def test_older_and_odd_versions(version: bytes, security: bytes) -> None:
    said = b"RFB " + version + b"\n" + security + INIT + update(raw(0, 0, 2, 2, 4 * pixel(1, 1, 1)))
    assert take(said).width == 2


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "is no VNC server, it says b'SSH-2.0-Open'"),
        (b"RFB 003.008\n\0" + struct.pack(">I", 4) + b"busy", "the server refused: busy"),
        (b"RFB 003.008\n\x01\x01" + struct.pack(">II", 1, 2) + b"no", "the server refused: no"),
        (b"RFB 003.008\n\x01\x02", "wants a password, and none was given"),
        (b"RFB 003.008\n\x01\x13", "security of kind 19"),
        (NO_SECURITY + INIT[:9], "the server closed the connection"),
        (NO_SECURITY + struct.pack(">HH16sI", 2, 2, b"", 1 << 30), "a text of 1073741824 bytes"),
        (NO_SECURITY + struct.pack(">HH16sI", 60000, 60000, b"", 0), "screen is 60000x60000"),
        (NO_SECURITY + struct.pack(">HH16sI", 16000, 16000, b"", 0), "screen is 16000x16000"),  # 1 GiB of pixels
        (NO_SECURITY + INIT + update(raw(1, 0, 2, 2, b"")), "is outside of the screen"),
        (NO_SECURITY + INIT + update(struct.pack(">HHHHi", 0, 0, 1, 1, 7)), "encoding 7"),
        (NO_SECURITY + INIT + b"\x09", "message of kind 9"),
    ],
)
def test_servers_that_refuse_or_make_no_sense_are_named(said: bytes, message: str) -> None:
    with pytest.raises(RfbError, match=message):
        take(said)


def test_what_no_second_try_can_mend_is_told_apart() -> None:
    for said, final in ((b"RFB 003.008\n\x01\x02", True), (b"RFB 003.008\n\0" + struct.pack(">I", 4) + b"busy", False)):
        with pytest.raises(RfbError) as caught:
            take(said)
        assert caught.value.final is final


def test_a_server_that_answers_with_a_part_is_asked_for_the_rest() -> None:
    """As the protocol has it: one update for each request."""
    server = FakeServer(NO_SECURITY + INIT + update(raw(0, 0, 2, 1, bytes(8))) + update(raw(0, 1, 2, 1, bytes(8))))
    asyncio.run(snapshot(server, timeout=5))
    assert server.heard.endswith(struct.pack(">BBHHHH", 3, 0, 0, 0, 2, 2) + struct.pack(">BBHHHH", 3, 1, 0, 0, 2, 2))


@pytest.mark.timeout(30)
def test_a_server_cannot_keep_its_client_busy_with_nothing() -> None:
    """A rectangle of 12 bytes with 16384 empty lines, 65535 times."""
    init = struct.pack(">HH16sI", 1, 16384, b"", 0)
    with pytest.raises(RfbError, match="the server closed the connection"):
        take(NO_SECURITY + init + update(*[raw(0, 0, 0, 16384, b"")] * 65535))


TOP = raw(0, 0, 2, 1, bytes(8))


@pytest.mark.parametrize("said", [b"", b"RFB 003.008\n", NO_SECURITY + INIT + update(TOP, TOP) + update(TOP)])
def test_half_a_picture_is_none_however_often_it_comes(said: bytes) -> None:
    with pytest.raises(TimeoutError, match=r"no complete picture within 0.1 s"):
        take(said, silent=True)
