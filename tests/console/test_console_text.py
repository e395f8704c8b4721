# SPDX-License-Identifier: Apache-2.0
"""Protects: waiting for text, the log and its secrets, lost bytes, lost consoles."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from console_harness import ScriptedConsole

from jumpstarter_agent.console import (
    BoardGone,
    ConsoleError,
    ConsoleLost,
    ConsoleSession,
    ConsoleTimeout,
    KernelPanic,
    Login,
    LoginFailed,
    Phase,
    WrongPhase,
)
from jumpstarter_agent.console.checksum import posix_cksum


def _run(
    scenario: Callable[[ConsoleSession, ScriptedConsole], Awaitable[None]],
    console: ScriptedConsole | None = None,
    log: Path | None = None,
) -> None:
    async def go() -> None:
        device = console or ScriptedConsole()
        async with ConsoleSession(device, name="console", log_path=log) as session:
            await scenario(session, device)

    asyncio.run(asyncio.wait_for(go(), 60))


async def _said(session: ConsoleSession, device: ScriptedConsole, data: bytes) -> None:
    end = session.seq + len(data)
    device.say(data)
    while session.seq < end:
        await asyncio.sleep(0)


def test_a_match_may_arrive_in_any_pieces() -> None:
    async def scenario(session: ConsoleSession, device: ScriptedConsole) -> None:
        waiting = asyncio.create_task(session.expect(r"value=(?P<v>\d+);", timeout=15, since=0))
        for byte in b"noise value=4711; more":
            device.say(bytes([byte]))
            await asyncio.sleep(0)
        found = await waiting
        assert (found.before, found.match, found.groupdict["v"]) == (b"noise ", b"value=4711;", b"4711")
        assert session.log(found.seq, found.end_seq - found.seq).data == b"value=4711;"

    _run(scenario)


def test_the_earliest_of_several_patterns_wins() -> None:
    async def scenario(session: ConsoleSession, device: ScriptedConsole) -> None:
        await _said(session, device, b"xx second first")
        found = await session.expect(["first", b"second", re.compile(rb"never")], timeout=15, since=0)
        assert (found.index, found.seq) == (1, 3)

    _run(scenario)


def test_text_from_before_counts_only_when_asked_for() -> None:
    async def scenario(session: ConsoleSession, device: ScriptedConsole) -> None:
        await _said(session, device, b"early\n")
        assert (await session.expect("^early", timeout=15, since=0)).match == b"early"
        with pytest.raises(ConsoleTimeout):
            await session.expect("early", timeout=0.05)

    _run(scenario)


def test_a_timeout_tells_the_phase_and_the_last_lines() -> None:
    async def scenario(session: ConsoleSession, device: ScriptedConsole) -> None:
        await _said(session, device, b"U-Boot 2023.01 (x)\r\nMMC: no card\r\n=> ")
        with pytest.raises(ConsoleTimeout, match=r"console: waiting for 'login': .*bootloader.*MMC: no card \| =>"):
            await session.expect("login", timeout=0.05)

    _run(scenario)


def test_a_bad_pattern_is_named() -> None:
    async def scenario(session: ConsoleSession, device: ScriptedConsole) -> None:
        with pytest.raises(ConsoleError, match=r"'\(x' is no regular expression"):
            await session.expect("(x", timeout=1)

    _run(scenario)


def test_a_panic_ends_the_wait_at_once_unless_it_is_waited_for() -> None:
    panic = b"[  1.0] Kernel panic - not syncing: Attempted to kill init!\r\n"

    async def scenario(session: ConsoleSession, device: ScriptedConsole) -> None:
        waiting = asyncio.create_task(session.expect("login:", timeout=40))
        await asyncio.sleep(0)
        await _said(session, device, panic)
        with pytest.raises(KernelPanic, match="Attempted to kill init"):
            await asyncio.wait_for(waiting, 15)
        waiting = asyncio.create_task(session.expect("Kernel panic", timeout=40))
        await asyncio.sleep(0)
        await _said(session, device, panic)
        assert (await waiting).match == b"Kernel panic"

    _run(scenario)


def test_the_end_of_the_stream_is_an_error_for_who_waits() -> None:
    async def scenario(session: ConsoleSession, device: ScriptedConsole) -> None:
        waiting = asyncio.create_task(session.expect("x", timeout=40))
        await asyncio.sleep(0)
        device.end()
        with pytest.raises(ConsoleLost, match="byte stream ended"):
            await asyncio.wait_for(waiting, 15)
        with pytest.raises(ConsoleLost):
            await session.send("x")

    _run(scenario)


def test_lost_bytes_are_counted_and_noted(tmp_path: Path) -> None:
    async def scenario(session: ConsoleSession, device: ScriptedConsole) -> None:
        device.say(b"one\n")
        device.say(b"two\n", skip=100)
        await session.expect("two", timeout=15, since=0)
        assert session.lost_bytes == 100

    _run(scenario, log=tmp_path / "console.log")
    assert "100 bytes of the console were lost" in (tmp_path / "console.log").read_text()


def test_the_log_is_printable_private_and_without_secrets(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "console.log"

    async def scenario(session: ConsoleSession, device: ScriptedConsole) -> None:
        await session.send("hunter2\r", secret=True)
        await _said(session, device, b"echo hunter2\r\n\x1b[31mred\x1b[0m \xff\x01 \xc3\xa9\r\nhalf")

    _run(scenario, log=log)
    text = log.read_text(encoding="utf-8")
    assert "hunter2" not in text and "\x1b" not in text
    assert "< echo ********\n" in text
    assert "< red \\xff\\x01 é\n" in text
    assert "< half\n" in text
    assert log.stat().st_mode & 0o077 == 0
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z \+\d+\.\d{6} > \(secret\)\n", text)


def _getty(password: bytes, refuse: bool = False) -> ScriptedConsole:
    """A device that wants root and a password."""
    state = {"at": "login"}

    def answer(data: bytes) -> bytes:
        if state["at"] == "login":
            state["at"] = "password" if data.strip() else "login"
            return b"\r\nPassword: " if data.strip() else b"\r\nboard login: "
        if state["at"] == "password":
            good = data.strip() == password and not refuse
            state["at"] = "shell" if good else "login"
            return b"\r\nWelcome\r\nroot@board:~# " if good else b"\r\nLogin incorrect\r\nboard login: "
        return b""

    return ScriptedConsole(answer)


def test_login_with_a_password_that_no_log_shows(tmp_path: Path) -> None:
    device = _getty(b"s3cret")

    async def scenario(session: ConsoleSession, device: ScriptedConsole) -> None:
        await session.login(Login("root", "s3cret"), timeout=10)
        assert session.phase is Phase.SHELL

    _run(scenario, device, tmp_path / "console.log")
    assert bytes(device.written).endswith(b"root\rs3cret\r")
    assert "s3cret" not in (tmp_path / "console.log").read_text()
    assert "s3cret" not in repr(Login("root", "s3cret"))


def test_a_refused_password_is_a_login_failure() -> None:
    async def scenario(session: ConsoleSession, device: ScriptedConsole) -> None:
        with pytest.raises(LoginFailed, match="refuses to log in 'root': Login incorrect"):
            await session.login(Login("root", "wrong"), timeout=10)

    _run(scenario, _getty(b"right"))


def test_a_missing_password_is_a_login_failure() -> None:
    async def scenario(session: ConsoleSession, device: ScriptedConsole) -> None:
        with pytest.raises(LoginFailed, match="asks 'root' for a password and none is configured"):
            await session.login(Login("root"), timeout=10)

    _run(scenario, _getty(b"right"))


@pytest.mark.parametrize(
    ("said", "phase", "hint"),
    [
        (b"U-Boot 2023.01 (x)\r\n=> ", "bootloader", "boot with until: shell"),
        (b"board login: ", "login", "configure a login"),
        (b"Kernel panic - not syncing: dead\r\n", "panic", "power cycle"),
        (b"", "silent", "is the board on"),
    ],
)
def test_a_command_in_the_wrong_phase_is_refused_and_may_be_retried(said: bytes, phase: str, hint: str) -> None:
    async def scenario(session: ConsoleSession, device: ScriptedConsole) -> None:
        await _said(session, device, said)
        with pytest.raises(WrongPhase, match=hint) as caught:
            await session.exec("true")
        assert (caught.value.current, caught.value.wanted, caught.value.retriable) == (phase, "shell", True)

    _run(scenario)


def test_switching_off_ends_the_operation_that_waits() -> None:
    async def scenario(session: ConsoleSession, device: ScriptedConsole) -> None:
        await _said(session, device, b"# ")
        waiting = asyncio.create_task(session.exec("true"))
        await asyncio.sleep(0.01)
        session.notify_power("off")
        with pytest.raises(BoardGone, match="power was switched off"):
            await asyncio.wait_for(waiting, 15)

    _run(scenario)


def test_a_kernel_that_starts_is_not_told_more_than_its_fifo_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that finds its FIFO full may never hear of it, and the console is deaf from then on."""
    monkeypatch.setattr("jumpstarter_agent.console.boot._QUIET", 0.05)
    monkeypatch.setattr("jumpstarter_agent.console.boot._REACTION", 0.05)
    unread: list[bytes] = []

    def answer(data: bytes) -> bytes:
        if len(unread) < 4:
            unread.append(data)
            return b"[    0.000000] Booting Linux on physical CPU 0x0\r\n" if len(unread) == 3 else b""
        if (question := re.search(rb'"@"p"(\w+)\$', data)) is not None:
            return b"@p" + question.group(1) + b"21@\r\nodd prompt) "
        return b"\r\nodd prompt) "

    async def scenario(session: ConsoleSession, device: ScriptedConsole) -> None:
        await _said(session, device, b"U-Boot 2023.01 (x)\r\nStarting kernel ...\r\n\r\n")
        with pytest.raises(WrongPhase, match="still booting"):
            await session.exec("true")
        assert unread == [b"\r"]
        await session.boot("shell", timeout=40)
        assert session.phase is Phase.SHELL and unread[1:] == [b"\n"] * 3

    _run(scenario, ScriptedConsole(answer))


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65536, 70001])
def test_the_checksum_is_the_one_of_posix(size: int, tmp_path: Path) -> None:
    import subprocess

    data = bytes(i * 7 % 251 for i in range(size))
    said = subprocess.run(["cksum"], input=data, capture_output=True, check=True).stdout.split()
    assert said == [b"%d" % posix_cksum(data), b"%d" % size]
