# SPDX-License-Identifier: Apache-2.0
"""Protects the kinds of ports: terminals and their settings, sockets, RFC 2217, and what a wrong one says."""

from __future__ import annotations

import os
import socket
import stat
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jumpstarter.common.exceptions import (
    ConfigurationError,
    DriverError,
    DriverInvalidArgument,
    DriverMethodNotImplemented,
)
from jumpstarter.common.utils import serve
from jumpstarter_driver_pyserial.driver import PySerial


def wait_event(client: Any, text: str, since: int = 0) -> int:
    for item in client.follow(since):
        if item["event"].startswith(text):
            return int(item["seq"])
    raise AssertionError("the follower ended")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited 60 s in vain"
        time.sleep(0.005)


def receive(stream: Any, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += stream.receive()
    return data


def accept(listener: socket.socket) -> socket.socket:
    listener.settimeout(60)
    peer, _ = listener.accept()
    peer.settimeout(60)
    return peer


# --- terminals --------------------------------------------------------------------------------------------------


def test_line_settings_reach_the_terminal(device) -> None:
    driver = PySerial(url=device.url, baudrate=57600, bytesize=7, parity="e", stopbits=2, rtscts=True, xonxoff=True)
    with serve(driver) as client:
        wait_event(client, "open")
        iflag, _, cflag, _, ispeed, ospeed, _ = termios.tcgetattr(device.master)
        assert ispeed == ospeed == termios.B57600
        assert iflag & termios.IXON and iflag & termios.IXOFF
        assert cflag & termios.CSTOPB and cflag & termios.CRTSCTS
        # A pseudo terminal always reports 8 bits without parity, so those two are read from the open port.
        lines = driver.hub.lines()
        assert (lines.bytesize, lines.parity) == (7, "E")


@pytest.mark.parametrize("disable", [True, False])
def test_hang_up_on_close_can_be_disabled(device, disable: bool) -> None:
    with serve(PySerial(url=device.url, disable_hupcl=disable)) as client:
        wait_event(client, "open")
        hupcl = bool(termios.tcgetattr(device.master)[2] & termios.HUPCL)
        if disable:
            assert not hupcl


def test_disable_hupcl_clears_a_flag_that_was_set(device) -> None:
    attributes = termios.tcgetattr(device.master)
    attributes[2] |= termios.HUPCL
    termios.tcsetattr(device.master, termios.TCSANOW, attributes)
    with serve(PySerial(url=device.url, disable_hupcl=True)) as client:
        wait_event(client, "open")
        assert not termios.tcgetattr(device.master)[2] & termios.HUPCL


def test_a_terminal_is_locked_against_other_programs(device) -> None:
    with serve(PySerial(url=device.url)) as client:
        wait_event(client, "open")
        with serve(PySerial(url=device.url)) as other:
            with pytest.raises(DriverError, match="in use by another program"), other.stream():
                pass
    with serve(PySerial(url=device.url, exclusive=False)) as client:
        wait_event(client, "open")
        with serve(PySerial(url=device.url, exclusive=False)) as other, other.stream():
            pass


def test_writing_can_be_slowed_down(device) -> None:
    with serve(PySerial(url=device.url, cps=200)) as client:
        start = time.monotonic()
        client.write(b"x" * 40)
        took = time.monotonic() - start
        assert device.hear(40) == b"x" * 40
        assert took >= 0.19


def test_what_the_device_said_before_the_port_was_opened_is_kept(device) -> None:
    device.say(b"early")
    with serve(PySerial(url=device.url)) as client, client.stream():
        assert client.log()["data"] == b"early"


def test_lines_a_pseudo_terminal_does_not_have_are_refused(device) -> None:
    with serve(PySerial(url=device.url)) as client:
        with pytest.raises(DriverMethodNotImplemented, match="has no DTR"):
            client.set_dtr(True)
        with pytest.raises(DriverMethodNotImplemented, match="has no RTS"):
            client.set_rts(True)
        with pytest.raises(DriverInvalidArgument, match="seconds is 0"):
            client.send_break(0)


def test_a_terminal_that_does_not_exist_is_refused_unless_it_may_be_away(tmp_path: Path) -> None:
    missing = str(tmp_path / "ttyNone")
    with pytest.raises(FileNotFoundError, match="ttyNone"):
        PySerial(url=missing)
    with serve(PySerial(url=missing, check_present=False)) as client, client.stream() as stream:
        assert client.call("position")["open"] is False
        with pytest.raises(DriverError, match="no such file"):
            client.write(b"x")
        stream.send_eof()


def test_a_file_that_is_no_terminal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    with pytest.raises(OSError, match="is not a terminal device"):
        PySerial(url=str(path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"url": ""}, "url is empty"),
        ({"url": "nonsense://x"}, 'pyserial knows no "nonsense://"'),
        ({"url": "socket://host"}, "is not socket://host:port"),
        ({"url": "loop://", "baudrate": 0}, "baudrate cannot be 0"),
        ({"url": "loop://", "parity": "X"}, "parity cannot be 'X'"),
        ({"url": "loop://", "bytesize": 9}, "bytesize cannot be 9"),
        ({"url": "loop://", "stopbits": 3}, "stopbits cannot be 3"),
        ({"url": "loop://", "cps": 0.0}, "cps is 0, must be positive"),
        ({"url": "loop://", "log_size": 10}, "log_size is 10"),
    ],
)
def test_wrong_settings_are_refused_with_their_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        PySerial(**config)


# --- sockets ----------------------------------------------------------------------------------------------------


def test_a_unix_socket_is_connected_to_again_when_it_comes_back(tmp_path: Path) -> None:
    path = str(tmp_path / "serial.sock")
    with serve(PySerial(url=f"unix://{path}", check_present=False)) as client:
        for seq, word in ((0, b"one"), (3, b"two")):
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
                listener.listen(1)
                with accept(listener) as peer:
                    listener.close()  # or the driver may come back to this one
                    peer.sendall(word)
                    wait_event(client, "open", seq)
                    client.write(b"to " + word)
                    assert peer.recv(100) == b"to " + word
            os.unlink(path)
            wait_event(client, "lost", seq + 3)
        assert client.log()["data"] == b"onetwo"


def test_a_listening_socket_loses_no_byte_of_a_device_that_starts_later(tmp_path: Path) -> None:
    path = str(tmp_path / "serial.sock")
    with serve(PySerial(url=f"unix-listen://{path}", check_present=False)) as client, client.stream() as stream:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        expected = b""
        for number in range(3):
            with socket.socket(socket.AF_UNIX) as emulator:
                emulator.connect(path)
                banner = b"boot %d\r\n" % number
                emulator.sendall(banner)
                emulator.shutdown(socket.SHUT_WR)
                assert receive(stream, len(banner)) == banner
                expected += banner
        wait_event(client, "lost", len(expected))
        assert client.log()["data"] == expected
    assert not os.path.exists(path)


def test_a_stale_listening_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "serial.sock")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    with serve(PySerial(url=f"unix-listen://{path}")) as client, client.stream():
        with serve(PySerial(url=f"unix-listen://{path}")) as other:
            with pytest.raises(DriverError, match="already in use"), other.stream():
                pass
        with socket.socket(socket.AF_UNIX) as emulator:
            emulator.connect(path)


def test_a_tcp_console(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"socket://127.0.0.1:{listener.getsockname()[1]}"
        with serve(PySerial(url=url)) as client, accept(listener) as peer, client.stream() as stream:
            peer.sendall(b"hello")
            assert receive(stream, 5) == b"hello"
            stream.send(b"back")
            assert peer.recv(10) == b"back"


# --- ports that need a thread -----------------------------------------------------------------------------------


def test_loop() -> None:
    with serve(PySerial(url="loop://")) as client, client.stream() as stream:
        stream.send(b"echo")
        assert receive(stream, 4) == b"echo"
        assert client.log()["data"] == b"echo"


def test_rfc2217_data_and_lines_use_one_connection(rfc2217) -> None:
    with serve(PySerial(url=rfc2217.url)) as client, client.stream() as stream:
        every = bytes(range(256))  # holds the protocol's escape byte
        stream.send(every)
        assert receive(stream, 256) == every
        for state in (False, True):
            client.set_dtr(state)
            client.set_rts(state)
            assert (rfc2217.port.dtr, rfc2217.port.rts) == (state, state)
        start = time.monotonic()
        client.send_break(0.15)
        assert time.monotonic() - start >= 0.15
        assert rfc2217.port.break_condition is False
        stream.send(b"still here")
        assert receive(stream, 10) == b"still here"


def test_break_is_on_for_the_time_and_off_when_the_caller_goes_away(rfc2217) -> None:
    driver = PySerial(url=rfc2217.url)
    with serve(driver) as client, client.stream():
        call = client.portal.start_task_soon(client.call_async, "send_break", 30.0)
        until(lambda: rfc2217.port.break_condition)
        call.cancel()
        until(lambda: not rfc2217.port.break_condition)


def test_an_rfc2217_server_that_goes_away_is_noticed(rfc2217) -> None:
    with serve(PySerial(url=rfc2217.url, check_present=False)) as client, client.stream() as stream:
        stream.send(b"x")
        assert receive(stream, 1) == b"x"
        rfc2217.hang_up()
        wait_event(client, "lost", 1)
