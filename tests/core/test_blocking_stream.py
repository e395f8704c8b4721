# SPDX-License-Identifier: Apache-2.0
"""The blocking end of a stream: bytes in order, errors where they belong, neither side ahead without bound."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import anyio
import pytest
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import ObjectStream
from anyio.from_thread import BlockingPortal, start_blocking_portal

from jumpstarter.streams.blocking import BlockingStream


class Peer(ObjectStream[bytes]):
    """A stream the test drives: what is sent is kept once `taking` is set, what `give` holds is received."""

    def __init__(self) -> None:
        self.taking = threading.Event()
        self.sent: list[bytes] = []
        self.give: list[bytes | Exception] = []
        self.given = 0
        self.eof = False
        self.closed = False
        self.fail: Exception | None = None

    async def send(self, item: bytes) -> None:
        while not self.taking.is_set():
            await anyio.sleep(0.001)
        if self.fail is not None:
            raise self.fail
        self.sent.append(item)

    async def receive(self) -> bytes:
        if not self.give:
            raise EndOfStream
        item = self.give.pop(0)
        if isinstance(item, Exception):
            raise item
        self.given += len(item)
        return item

    async def send_eof(self) -> None:
        self.eof = True

    async def aclose(self) -> None:
        self.closed = True


@pytest.fixture
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


def test_bytes_leave_in_order_and_the_end_comes_last(portal: BlockingPortal) -> None:
    peer = Peer()
    peer.taking.set()
    stream = BlockingStream(peer, portal)
    for i in range(1000):
        stream.send(i.to_bytes(4, "big"))
    stream.send_eof()
    assert b"".join(peer.sent) == b"".join(i.to_bytes(4, "big") for i in range(1000))
    assert peer.eof


def test_a_sender_waits_when_the_peer_does_not_take(portal: BlockingPortal) -> None:
    peer = Peer()
    stream = BlockingStream(peer, portal)
    accepted = 0
    done = threading.Event()

    def send() -> None:
        nonlocal accepted
        for _ in range(16):
            stream.send(b"x" * (1 << 20))
            accepted += 1
        done.set()

    thread = threading.Thread(target=send)
    thread.start()
    assert not done.wait(0.2)
    assert accepted <= 6  # 4 MiB on their way, one in the stream's hands
    peer.taking.set()
    assert done.wait(60)
    thread.join()
    stream.flush()
    assert sum(map(len, peer.sent)) == 16 << 20


def test_an_error_of_earlier_bytes_is_raised_by_the_next_send(portal: BlockingPortal) -> None:
    peer = Peer()
    peer.fail = BrokenResourceError("gone")
    peer.taking.set()
    stream = BlockingStream(peer, portal)
    stream.send(b"x")
    with pytest.raises(BrokenResourceError):
        stream.flush()
    with pytest.raises(BrokenResourceError):
        stream.send(b"y")


def test_reading_ahead_is_bounded(portal: BlockingPortal) -> None:
    peer = Peer()
    peer.give = [b"x" * (1 << 20) for _ in range(64)]
    stream = BlockingStream(peer, portal)
    got = len(stream.receive())
    portal.call(anyio.sleep, 0.05)
    assert peer.given <= 6 << 20
    while got < 64 << 20:
        got += len(stream.receive())
    with pytest.raises(EndOfStream):
        stream.receive()
    with pytest.raises(EndOfStream):
        stream.receive()


def test_what_came_before_an_error_is_received_first(portal: BlockingPortal) -> None:
    peer = Peer()
    peer.give = [b"a", b"b", BrokenResourceError("cut")]
    stream = BlockingStream(peer, portal)
    assert [stream.receive(), stream.receive()] == [b"a", b"b"]
    with pytest.raises(BrokenResourceError, match="cut"):
        stream.receive()


def test_receive_hands_out_no_more_than_asked_for_and_loses_nothing(portal: BlockingPortal) -> None:
    peer = Peer()
    peer.give = [b"abcdef", b"g"]
    stream = BlockingStream(peer, portal)
    assert [stream.receive(4), stream.receive(4), stream.receive(4)] == [b"abcd", b"ef", b"g"]


def test_closing_sends_what_was_handed_over_and_refuses_more(portal: BlockingPortal) -> None:
    peer = Peer()
    peer.taking.set()
    stream = BlockingStream(peer, portal)
    stream.send(b"last")
    stream.close()
    stream.close()
    assert peer.sent == [b"last"]
    assert peer.closed
    for refused in (lambda: stream.send(b"x"), stream.receive):
        with pytest.raises(ClosedResourceError):
            refused()
