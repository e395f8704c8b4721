# SPDX-License-Identifier: Apache-2.0
"""Protects the console's client: pexpect, the pipe command and the interactive terminal."""

from __future__ import annotations

import io
import os
import termios
import threading
import time
import tty
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest
from click.testing import CliRunner

from jumpstarter.common.exceptions import DriverError
from jumpstarter.common.utils import serve
from jumpstarter_driver_pyserial.driver import PySerial
from jumpstarter_driver_pyserial.pipe import run_pipe
from jumpstarter_driver_pyserial.terminal import Escape, run_terminal


class Watched(io.BytesIO):
    """A sink that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()

    def write(self, data: bytes) -> int:  # type: ignore[override]
        with self._changed:
            count = super().write(data)
            self._changed.notify_all()
        return count

    def wait_for(self, data: bytes) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: data in self.getvalue(), 60), self.getvalue()


def test_pexpect_talks_to_the_device(device) -> None:
    with serve(PySerial(url=device.url)) as client, client.pexpect() as console:
        console.sendline("version")
        assert device.hear(8) == b"version\n"
        device.say(b"U-Boot 2023.01\r\n=> ")
        assert console.expect(rb"U-Boot (\S+)", timeout=60) == 0
        assert console.match.group(1) == b"2023.01"
        console.expect("=> ", timeout=60)


def test_pexpect_opens_no_network_port(device) -> None:
    def listening() -> set[str]:
        with open("/proc/self/net/tcp") as table:
            ours = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_socket(fd)}
            return {line.split()[9] for line in table if " 0A " in line and f"socket:[{line.split()[9]}]" in ours}

    def _is_socket(fd: str) -> bool:
        try:
            return os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
        except FileNotFoundError:
            return False

    with serve(PySerial(url=device.url)) as client:
        before = listening()
        with client.pexpect():
            assert listening() == before


def test_pexpect_sees_the_end_of_the_stream(device) -> None:
    with serve(PySerial(url=device.url)) as client, client.pexpect() as console:
        client.call("close")
        console.expect(pexpect.EOF, timeout=60)


def test_pexpect_does_not_lose_what_was_sent_last(device) -> None:
    with serve(PySerial(url=device.url)) as client:
        for number in range(20):
            with client.pexpect() as console:
                console.send(f"{number:02d}")
        assert device.hear(40) == b"".join(b"%02d" % n for n in range(20))


def test_open_and_close_without_context_manager(device) -> None:
    with serve(PySerial(url=device.url)) as client:
        console = client.open()
        device.say(b"login: ")
        console.expect("login: ", timeout=60)
        client.close()
        assert console.closed
        stream = client.open_stream()
        stream.send(b"x")
        assert device.hear(1) == b"x"


def test_pipe_sends_stdin_and_ends_without_output(device) -> None:
    with serve(PySerial(url=device.url)) as client:
        result = CliRunner().invoke(client.cli(), ["pipe", "--no-output"], input=b"reset\n", catch_exceptions=False)
        assert result.exit_code == 0
        assert device.hear(6) == b"reset\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--append"], "--append needs --output"),
        (["--no-output", "-o", "x"], "exclude each other"),
        (["--no-output", "--no-input"], "nothing to do"),
    ],
)
def test_pipe_refuses_flags_that_make_no_sense_together(device, flags: list[str], message: str) -> None:
    with serve(PySerial(url=device.url)) as client:
        result = CliRunner().invoke(client.cli(), ["pipe", *flags], input=b"")
        assert result.exit_code == 2 and message in result.output
        assert not Path("x").exists()


def test_a_console_for_people_needs_a_terminal_and_names_the_command_that_does_not(device) -> None:
    with serve(PySerial(url=device.url)) as client:
        result = CliRunner().invoke(client.cli(), ["start-console"], input=b"")
        assert result.exit_code == 2 and "needs a terminal" in result.output and "`pipe`" in result.output


@pytest.mark.parametrize(("flags", "content"), [([], b"new"), (["--append"], b"oldnew")])
def test_pipe_writes_to_a_file(device, tmp_path: Path, flags: list[str], content: bytes) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    driver = PySerial(url=device.url)
    with serve(driver) as client:
        command = ["pipe", "--no-input", "-o", str(path), *flags]
        run = threading.Thread(target=lambda: CliRunner().invoke(client.cli(), command, catch_exceptions=False))
        run.start()
        until(lambda: driver.hub.streams >= 1)
        device.say(b"new")
        for item in client.follow(0):
            if item["data"]:
                break
        client.call("close")
        run.join(60)
        assert path.read_bytes() == content


def test_pipe_goes_on_after_the_end_of_its_input(device) -> None:
    with serve(PySerial(url=device.url)) as client:
        sink = Watched()
        run = threading.Thread(target=run_pipe, args=(client, io.BytesIO(b"question"), sink))
        run.start()
        assert device.hear(8) == b"question"
        device.say(b"answer")
        sink.wait_for(b"answer")
        client.call("close")
        run.join(60)
        assert not run.is_alive()


def test_pipe_fails_with_the_reason_when_somebody_else_writes(device) -> None:
    with serve(PySerial(url=device.url)) as client:
        client.call("acquire_writer", "alice")
        with pytest.raises(DriverError, match="alice .* is writing"):
            run_pipe(client, io.BytesIO(b"x"), io.BytesIO())
        with pytest.raises(DriverError, match="alice .* is writing"):
            run_pipe(client, io.BytesIO(b"x"), None)


def test_log_command_prints_what_is_kept(device) -> None:
    with serve(PySerial(url=device.url)) as client:
        device.say(b"boot messages")
        for item in client.follow(0):
            if item["data"]:
                break
        assert CliRunner().invoke(client.cli(), ["log"], catch_exceptions=False).output == "boot messages"


def test_three_ctrl_b_leave_also_when_typed_slowly() -> None:
    escape = Escape()
    assert escape.feed(b"a\x02\x02b") == (b"a\x02\x02b", False)
    assert escape.feed(b"\x02") == (b"\x02", False)
    assert escape.feed(b"\x02") == (b"\x02", False)
    assert escape.feed(b"\x02rest") == (b"", True)


def test_terminal_is_raw_while_connected_and_restored_after(device) -> None:
    user, terminal = os.openpty()
    before = termios.tcgetattr(terminal)
    with serve(PySerial(url=device.url)) as client:
        run = threading.Thread(target=run_terminal, args=(client, terminal, terminal))
        run.start()
        until(lambda: not termios.tcgetattr(terminal)[3] & termios.ICANON)
        os.write(user, b"ls\r\x03")  # Ctrl-C is the device's in raw mode
        assert device.hear(4) == b"ls\r\x03"
        device.say(b"\x1b[1mfiles\x1b[0m")
        shown = b""
        while b"files\x1b[0m" not in shown:
            shown += os.read(user, 100)
        os.write(user, b"\x02\x02\x02")
        run.join(60)
        assert not run.is_alive()
    assert termios.tcgetattr(terminal) == before
    os.close(user)
    os.close(terminal)


def test_terminal_says_why_it_was_refused(device) -> None:
    user, terminal = os.openpty()
    tty.setraw(user)
    with serve(PySerial(url=device.url)) as client:
        client.call("acquire_writer", "alice")
        os.write(user, b"x")
        with pytest.raises(DriverError, match="alice .* is writing"):
            run_terminal(client, terminal, terminal)
    os.close(user)
    os.close(terminal)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited 60 s in vain"
        time.sleep(0.005)
