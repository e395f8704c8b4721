# SPDX-License-Identifier: Apache-2.0
"""Protects the shared console: nothing lost, nothing twice, one writer, and a port that may come and go."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from anyio import BrokenResourceError, EndOfStream

from jumpstarter.common.exceptions import DriverError, DriverInvalidArgument
from jumpstarter.common.utils import serve
from jumpstarter_driver_composite.driver import Composite
from jumpstarter_driver_power.driver import MockPower
from jumpstarter_driver_pyserial.driver import PySerial


def collect(items: Iterator[dict[str, Any]], size: int) -> tuple[bytes, int]:
    """Data of a follower until it has seen that many bytes, or knows that it lost them; checks the offsets."""
    data, dropped, expected = bytearray(), 0, None
    for item in items:
        if expected is not None:
            assert item["seq"] == expected + item["dropped"], "a gap that was not announced"
        expected = item["seq"] + len(item["data"])
        data += item["data"]
        dropped += item["dropped"]
        if len(data) + dropped >= size:
            break
    return bytes(data), dropped


def wait_event(client: Any, text: str, since: int = 0) -> int:
    """Wait until the port's log has such an event; returns its offset."""
    for item in client.follow(since):
        if item["event"].startswith(text):
            return int(item["seq"])
    raise AssertionError("the follower ended")


def receive(stream: Any, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += stream.receive()
    return data


def test_what_was_said_with_nobody_connected_is_in_the_log(device) -> None:
    with serve(PySerial(url=device.url)) as client:
        device.say(b"U-Boot 2023.01\r\n")
        data, dropped = collect(client.follow(0), 16)
        assert (data, dropped) == (b"U-Boot 2023.01\r\n", 0)
        piece = client.log()
        assert piece["data"] == data and piece["seq"] == 0 and piece["next_seq"] == 16 and piece["t"] > 0
        assert client.log(7, 4)["data"] == b"2023"
        assert client.log(-1, 5)["data"] == b".01\r\n"


def test_every_reader_sees_everything_in_order(device) -> None:
    noise = random.Random(1).randbytes(300_000)
    with serve(PySerial(url=device.url)) as client, client.stream() as raw, client.stream("tap") as tap:
        results: dict[str, bytes] = {}
        readers = [
            threading.Thread(target=lambda: results.__setitem__("raw", receive(raw, len(noise)))),
            threading.Thread(target=lambda: results.__setitem__("tap", receive(tap, len(noise)))),
            threading.Thread(target=lambda: results.__setitem__("follow", collect(client.follow(0), len(noise))[0])),
        ]
        for reader in readers:
            reader.start()
        device.say(noise)
        for reader in readers:
            reader.join(60)
        assert {name: hashlib.sha256(data).digest() for name, data in results.items()} == dict.fromkeys(
            ("raw", "tap", "follow"), hashlib.sha256(noise).digest()
        )
        assert client.call("position")["seq"] == len(noise)


def test_a_second_writer_is_refused_and_told_who_writes(device) -> None:
    with serve(PySerial(url=device.url)) as client:
        with client.stream() as first, client.stream() as second:
            first.send(b"1")
            assert device.hear(1) == b"1"
            second.send(b"2")
            with pytest.raises(BrokenResourceError):
                second.receive()
            error = client.portal.call(second.stream.error)
            assert error.code == "RESOURCE_EXHAUSTED" and "console stream 1" in str(error)
            with pytest.raises(DriverError, match="console stream 1 .* is writing"):
                client.write(b"3")
            device.say(b"answer")
            assert receive(first, 6) == b"answer"
        # The first one has left: the console is free again, and nothing of the others was written.
        client.write(b"4")
        assert device.hear(1) == b"4"


def test_a_reader_does_not_take_the_console_from_a_writer(device) -> None:
    with serve(PySerial(url=device.url)) as client, client.stream() as reader, client.stream() as writer:
        writer.send(b"x")
        assert device.hear(1) == b"x"
        device.say(b"y")
        assert receive(reader, 1) == receive(writer, 1) == b"y"


def test_a_tap_cannot_write(device) -> None:
    with serve(PySerial(url=device.url)) as client, client.stream("tap") as tap:
        tap.send(b"x")
        with pytest.raises(BrokenResourceError):
            tap.receive()
        assert "for reading only" in str(client.portal.call(tap.stream.error))


def test_a_named_writer_keeps_the_console_between_writes(device) -> None:
    with serve(PySerial(url=device.url)) as client:
        assert client.call("acquire_writer", "alice")["owner"] == "alice"
        client.call("acquire_writer", "alice")
        assert client.call("position")["writer"] == "alice"
        with pytest.raises(DriverError, match="alice .* is writing") as caught:
            client.call("acquire_writer", "bob")
        assert caught.value.code == "RESOURCE_EXHAUSTED"
        with pytest.raises(DriverError, match="alice"):
            client.write(b"no", "bob")
        with pytest.raises(DriverError, match="alice"):
            client.write(b"no")
        client.write(b"yes", "alice")
        assert device.hear(3) == b"yes"
        assert client.call("release_writer", "bob") is False
        assert client.call("release_writer", "alice") is True
        client.write(b"free")
        assert device.hear(4) == b"free"


def test_write_returns_where_the_answer_begins(device) -> None:
    with serve(PySerial(url=device.url)) as client:
        device.say(b"before")
        collect(client.follow(0), 6)
        at = client.write(b"version\n")
        assert device.hear(8) == b"version\n"
        device.say(b"U-Boot")
        assert at == 6
        assert collect(client.follow(at), 6)[0] == b"U-Boot"


def test_the_port_vanishes_and_comes_back_without_losing_the_log(device) -> None:
    with serve(PySerial(url=device.url)) as client, client.stream() as stream:
        device.say(b"one")
        assert receive(stream, 3) == b"one"
        device.unplug()
        assert wait_event(client, "lost") == 3
        with pytest.raises(DriverError, match="the port is not there") as caught:
            client.write(b"x")
        assert caught.value.code == "UNAVAILABLE"
        assert client.call("position")["open"] is False
        device.plug()
        for item in client.follow(3):
            if item["event"] == "open" and client.call("position")["open"]:
                break
        device.say(b"two")
        assert receive(stream, 3) == b"two", "the stream that was open goes on"
        stream.send(b"ok")
        assert device.hear(2) == b"ok"
        piece = client.log()
        assert piece["data"] == b"onetwo"
        assert [e["event"].split(":")[0] for e in piece["events"]] == ["open", "lost", "open"]
        assert [e["seq"] for e in piece["events"]] == [0, 3, 3]


def test_connecting_to_a_port_that_is_away_says_why(device) -> None:
    with serve(PySerial(url=device.url)) as client:
        collect(client.follow(0), 0)
        device.unplug()
        wait_event(client, "lost")
        with pytest.raises(DriverError, match=f"{device.url}: the port is not there: no such file"), client.stream():
            pass


def test_a_slow_follower_blocks_nobody_and_learns_how_much_it_lost(device) -> None:
    flood = b"".join(b"line %08d\r\n" % n for n in range(200_000))
    with serve(PySerial(url=device.url, log_size=8192)) as client:
        slow = client.follow(0)
        assert next(slow)["event"] == "open"
        watched: list[int] = []
        fast = threading.Thread(target=lambda: watched.append(len(collect(client.follow(0), len(flood))[0])))
        fast.start()
        device.say(flood)  # would hang here if the slow one held up the reading
        fast.join(60)
        assert client.call("position")["seq"] == len(flood)
        data, dropped = collect(slow, len(flood))
        assert dropped > 0
        assert len(data) + dropped == len(flood)
        assert flood.endswith(data[-8192:])


def test_a_raw_stream_that_fell_behind_ends_with_the_number_of_lost_bytes(device) -> None:
    flood = os.urandom(4096) * 1000
    with serve(PySerial(url=device.url, log_size=4096)) as client, client.stream() as stream:
        device.say(flood)
        got = 0
        with pytest.raises(BrokenResourceError):
            while True:
                got += len(stream.receive())
        error = client.portal.call(stream.stream.error)
        assert error.code == "DATA_LOSS" and "bytes from offset" in str(error)
        assert got < len(flood)


def test_an_offset_in_the_future_is_refused(device) -> None:
    with serve(PySerial(url=device.url)) as client:
        with pytest.raises(DriverInvalidArgument, match="offset 5 is in the future, the log is at 0"):
            client.log(5)
        with pytest.raises(DriverInvalidArgument, match="in the future"):
            next(client.follow(5))
        with pytest.raises(DriverInvalidArgument, match="max_bytes"):
            client.log(0, 0)


def test_writing_waits_for_a_device_that_does_not_read(device) -> None:
    data = random.Random(2).randbytes(1_000_000)
    with serve(PySerial(url=device.url)) as client, client.stream() as stream:
        sender = threading.Thread(target=stream.send, args=(data,))
        sender.start()
        device.wait_until_full()
        device.say(b"meanwhile")
        assert receive(stream, 9) == b"meanwhile", "a full device must not stop the reading"
        assert hashlib.sha256(device.hear(len(data))).digest() == hashlib.sha256(data).digest()
        sender.join(10)


def test_every_byte_value_passes(device) -> None:
    every = bytes(range(256))
    with serve(PySerial(url=device.url)) as client, client.stream() as stream:
        stream.send(every)
        assert device.hear(256) == every
        device.say(every)
        assert receive(stream, 256) == every
        assert client.log()["data"] == every


def test_what_is_sent_last_arrives(device) -> None:
    with serve(PySerial(url=device.url)) as client:
        for number in range(50):
            with client.stream() as stream:
                stream.send(b"%02d" % number)
        assert device.hear(100) == b"".join(b"%02d" % n for n in range(50))


@pytest.mark.parametrize("how", ["in the loop", "in a thread"])
def test_a_new_session_has_an_empty_log_and_no_writer(device, how: str) -> None:
    console = PySerial(url=device.url)
    with serve(Composite(children={"console": console, "power": MockPower()})) as client:
        device.say(b"secret")
        collect(client.console.follow(0), 6)
        client.console.call("acquire_writer", "alice")
        before = client.console.call("position")
        with client.console.stream() as old:
            if how == "in the loop":
                client.portal.call(console.reset)
            else:
                console.reset()
            with pytest.raises(EndOfStream):
                old.receive()
        after = client.console.call("position")
        assert (after["seq"], after["writer"]) == (0, None)
        assert after["epoch"] != before["epoch"]
        assert client.console.log()["data"] == b""
        device.say(b"x")
        assert collect(client.console.follow(0), 1)[0] == b"x"


def test_close_lets_go_of_the_port_and_the_next_use_takes_it_again(device) -> None:
    terminal = os.path.realpath(device.url)

    def handles() -> int:
        found = 0
        for fd in os.listdir("/proc/self/fd"):
            try:
                found += os.readlink(f"/proc/self/fd/{fd}") == terminal
            except FileNotFoundError:
                continue
        return found

    ours = handles()
    with serve(PySerial(url=device.url)) as client:
        with client.stream() as stream:
            assert handles() == ours + 1
            client.call("close")
            assert handles() == ours
            with pytest.raises(EndOfStream):
                stream.receive()
        client.write(b"again")
        assert device.hear(5) == b"again"
    assert handles() == ours
