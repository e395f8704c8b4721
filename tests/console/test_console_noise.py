# SPDX-License-Identifier: Apache-2.0
"""Protects: no damage on the line (lost, flipped, inserted bytes, kernel messages in the middle of anything) reaches
the output, the status or a file. The damage is random but seeded; every run must really have been damaged."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from console_harness import LosingConsole, Noise, NoisyConsole, PtyConsole, shells

from jumpstarter_agent.console import ConsoleSession, ConsoleSettings

CASES = {
    "kernel messages": {"spam": 2e-3},
    "lost bytes": {"drop": 6e-4},
    "flipped bits": {"flip": 6e-4},
    "inserted bytes": {"insert": 6e-4},
    "everything": {"spam": 5e-4, "drop": 2e-4, "flip": 2e-4, "insert": 2e-4},
}


def _session(tmp_path: Path, seed: int, **rates: float) -> tuple[ConsoleSession, NoisyConsole]:
    to_device = {name: rate for name, rate in rates.items() if name != "spam"}
    console = NoisyConsole(
        PtyConsole(["busybox", "ash", "-i"], tmp_path), Noise(seed, **rates), Noise(seed + 1, **to_device)
    )
    return ConsoleSession(console, name="noisy", settings=ConsoleSettings(quiet_kernel=False)), console


@pytest.mark.parametrize("argv", shells(), ids=lambda argv: argv[0])
def test_what_was_typed_while_the_board_booted_does_not_swallow_what_comes_then(
    tmp_path: Path, argv: list[str]
) -> None:
    """A kernel that does not read yet lost the beginning of a question, and a quote was open when the shell came."""

    async def scenario() -> None:
        device = PtyConsole(argv, tmp_path)
        await device.write(b'e$((3*7))@"\n')
        async with ConsoleSession(device, name="board", settings=ConsoleSettings(quiet_kernel=False)) as session:
            await session.boot("shell", timeout=60)
            assert (await session.exec("echo heard")).stdout == b"heard\n"

    asyncio.run(asyncio.wait_for(scenario(), 120))


@pytest.mark.parametrize("argv", shells(), ids=lambda argv: argv[0])
def test_a_damaged_setting_of_the_terminal_is_made_again(tmp_path: Path, argv: list[str]) -> None:
    """Without it a byte that becomes a ^S stops the console for good, and one that becomes a ^D ends the shell."""

    async def scenario() -> None:
        console = LosingConsole(PtyConsole(argv, tmp_path), b"icanon", b"icrnl")
        async with ConsoleSession(console, name="board", settings=ConsoleSettings(quiet_kernel=False)) as session:
            await session.exec("true")
            settings = (await session.exec("stty -a </dev/tty")).stdout
            await console.inner.write(b"\x13\x04\n")
            assert (await session.exec("echo heard")).stdout == b"heard\n"
        assert b"-ixon" in settings and b"-echo " in settings and not console.lost

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_console_that_was_stopped_goes_on(tmp_path: Path) -> None:
    """^S: of somebody who was there before, or of a damaged byte."""

    async def scenario() -> None:
        device = PtyConsole(["dash", "-i"], tmp_path)
        async with ConsoleSession(device, name="board", settings=ConsoleSettings(quiet_kernel=False)) as session:
            await session.expect("# ", timeout=60, since=0)
            await device.write(b"\x13")
            assert (await session.exec("stty ixon </dev/tty; echo heard")).stdout == b"heard\n"
            await device.write(b"\x13")
            assert (await session.exec("echo again")).stdout == b"again\n"

    asyncio.run(asyncio.wait_for(scenario(), 120))


@pytest.mark.parametrize("lost", [b")@", b'@"'], ids=["bracket", "quote"])
@pytest.mark.parametrize("argv", shells(), ids=lambda argv: argv[0])
def test_a_question_that_is_damaged_on_the_way_does_not_swallow_the_next(
    tmp_path: Path, argv: list[str], lost: bytes
) -> None:
    """The shell waits for the end of what it was asked; by then the device would pass for one that does not answer."""

    async def scenario() -> None:
        console = LosingConsole(PtyConsole(argv, tmp_path), lost, lost)
        async with ConsoleSession(console, name="board", settings=ConsoleSettings(quiet_kernel=False)) as session:
            assert (await session.exec("echo heard")).stdout == b"heard\n"
        assert not console.lost

    asyncio.run(asyncio.wait_for(scenario(), 120))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [1, 20])
def test_commands_survive_a_damaging_line(tmp_path: Path, case: str, seed: int) -> None:
    async def scenario() -> None:
        session, console = _session(tmp_path, seed, **CASES[case])
        async with session:
            await session.probe()
            for number in range(15):
                result = await session.exec(f"printf 'out {number}'; printf 'err {number}' >&2; exit {number * 17}")
                assert (result.rc, result.stdout, result.stderr) == (
                    number * 17,
                    b"out %d" % number,
                    b"err %d" % number,
                )
        assert console.to_host.damaged > 0

    asyncio.run(asyncio.wait_for(scenario(), 120))


@pytest.mark.parametrize("case", CASES)
def test_a_command_runs_once_however_often_it_had_to_be_sent(tmp_path: Path, case: str) -> None:
    async def scenario() -> None:
        session, _ = _session(tmp_path, 7, **{name: rate * 3 for name, rate in CASES[case].items()})
        async with session:
            for number in range(10):
                await session.exec(f"echo {number} >>{tmp_path}/ran")
        assert (tmp_path / "ran").read_text().split() == [str(number) for number in range(10)]

    asyncio.run(asyncio.wait_for(scenario(), 150))


@pytest.mark.parametrize("case", CASES)
def test_files_survive_a_damaging_line(tmp_path: Path, case: str) -> None:
    content = random.Random(3).randbytes(60_000)

    async def scenario() -> None:
        session, console = _session(tmp_path, 5, **CASES[case])
        async with session:
            sent = await session.put(content, str(tmp_path / "on device"))
            assert (tmp_path / "on device").read_bytes() == content
            got = await session.fetch(str(tmp_path / "on device"), tmp_path / "back")
            assert (tmp_path / "back").read_bytes() == content
        assert console.to_host.damaged > 5
        # Only what was damaged may have been sent again: with one hit in a thousand bytes that is a fraction. A block
        # whose answer is late counts as lost, and on a busy machine that may happen to each of them, and twice.
        assert sent.moved_bytes < 4 * len(content)
        assert got.moved_bytes < 4 * len(content)

    asyncio.run(asyncio.wait_for(scenario(), 150))


def test_large_output_survives_a_damaging_line(tmp_path: Path) -> None:
    content = random.Random(4).randbytes(100_000)
    (tmp_path / "content").write_bytes(content)

    async def scenario() -> None:
        session, console = _session(tmp_path, 11, **CASES["everything"])
        async with session:
            result = await session.exec(f"cat {tmp_path}/content; cat {tmp_path}/content >&2; exit 3")
        assert (result.rc, result.stdout == content, result.stderr == content) == (3, True, True)
        assert console.to_host.damaged > 20

    asyncio.run(asyncio.wait_for(scenario(), 150))


def test_a_storm_of_kernel_messages(tmp_path: Path) -> None:
    """One in 250 bytes of what the device says is followed by a message: most lines have one in them."""

    async def scenario() -> None:
        session, console = _session(tmp_path, 2, spam=0.004)
        async with session:
            for _ in range(3):
                result = await session.exec("seq 1 300; exit 9")
                assert (result.rc, result.stdout) == (9, b"".join(b"%d\n" % n for n in range(1, 301)))
        assert console.to_host.damaged > 20

    asyncio.run(asyncio.wait_for(scenario(), 150))
