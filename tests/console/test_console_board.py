# SPDX-License-Identifier: Apache-2.0
"""Protects: the same against real software: U-Boot and Linux in an emulated board, booted once for all tests but the
destructive ones, which run last."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from console_harness import Board, pass_time

from jumpstarter_agent.console import (
    BoardGone,
    ConsoleSession,
    ExecTimeout,
    KernelPanic,
    Phase,
    UbootError,
    WrongPhase,
)

pytestmark = pytest.mark.xdist_group("console-board")


class Bench:
    """The board, its console, and the loop they live in."""

    def __init__(self, runner: asyncio.Runner, directory: Path, image: Path) -> None:
        self.run = runner.run
        self.directory = directory
        self.board = Board(directory, image)
        self.console = ConsoleSession(self.board, name="virt-arm64", log_path=directory / "console.log")

    def exec(self, cmd: str, **kwargs: object) -> tuple[int, bytes, bytes]:
        result = self.run(self.console.exec(cmd, **kwargs))  # type: ignore[arg-type]
        return result.rc, result.stdout, result.stderr


@pytest.fixture(scope="module")
def bench(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory, virt_arm64_image: Path) -> Iterator[Bench]:
    bench = Bench(runner, tmp_path_factory.mktemp("board"), virt_arm64_image)
    bench.run(bench.console.start())
    yield bench
    bench.run(bench.console.aclose())


@pytest.fixture
def uboot(bench: Bench) -> ConsoleSession:
    """The console at the prompt of U-Boot."""
    if bench.console.phase is not Phase.BOOTLOADER:
        bench.run(bench.console.boot("bootloader", timeout=60, power_cycle=bench.board.cycle))
    return bench.console


@pytest.fixture
def linux(bench: Bench) -> Bench:
    """The board with a shell."""
    if bench.console.phase is not Phase.SHELL:
        bench.run(bench.console.boot("shell", timeout=120, power_cycle=bench.board.cycle))
    return bench


def test_the_countdown_is_stopped_and_u_boot_tells_its_version(bench: Bench, uboot: ConsoleSession) -> None:
    assert uboot.bootloader_version is not None
    assert bench.run(uboot.uboot_version()).startswith(uboot.bootloader_version)
    # Its own banner is no restart.
    assert uboot.phase is Phase.BOOTLOADER and len(uboot.phases) == 1


def test_u_boot_commands_have_a_status(bench: Bench, uboot: ConsoleSession) -> None:
    good = bench.run(uboot.uboot_run("echo one; echo 'two  three'"))
    assert (good.rc, good.lines, good.left) == (0, ["one", "two  three"], None)
    assert bench.run(uboot.uboot_run("false")).rc == 1
    unknown = bench.run(uboot.uboot_run("frobnicate"))
    assert unknown.rc == 1 and "Unknown command 'frobnicate'" in unknown.lines[0]


def test_u_boot_variables_keep_their_exact_values(bench: Bench, uboot: ConsoleSession) -> None:
    values: dict[str, str | None] = {
        "plain": "1",
        "spaces": "a  b ; echo c",
        "quotes": 'it\'s "quoted"',
        "dollars": "${bootcmd} $x `y`",
        "slashes": "a\\b\\\\c #d",
        "assign": "x=y=z",
    }
    changed = bench.run(uboot.uboot_set_env(values))
    assert changed == {name: (None, value) for name, value in values.items()}
    assert bench.run(uboot.uboot_get_env([*values, "nope"])) == values | {"nope": None}
    everything = bench.run(uboot.uboot_get_env())
    assert {name: everything[name] for name in values} == values
    assert everything["bootdelay"] == "2"
    assert bench.run(uboot.uboot_set_env(values)) == {}
    gone: dict[str, str | None] = dict.fromkeys(values)
    assert set(bench.run(uboot.uboot_set_env(gone))) == set(values)
    assert bench.run(uboot.uboot_get_env(["plain"])) == {"plain": None}


def test_what_u_boot_cannot_be_told_is_refused(bench: Bench, uboot: ConsoleSession) -> None:
    for name, value in (("a=b", "x"), ("a b", "x"), ("fine", "two\nlines"), ("fine", "é")):
        with pytest.raises(UbootError):
            bench.run(uboot.uboot_set_env({name: value}))
    with pytest.raises(UbootError, match="480 are possible"):
        bench.run(uboot.uboot_run("echo " + "x" * 600))


def test_a_shell_command_at_the_u_boot_prompt_is_the_wrong_phase(bench: Bench, uboot: ConsoleSession) -> None:
    with pytest.raises(WrongPhase) as caught:
        bench.run(uboot.exec("true"))
    assert (caught.value.current, caught.value.wanted) == ("bootloader", "shell")


def test_from_the_u_boot_prompt_to_a_shell(bench: Bench, uboot: ConsoleSession) -> None:
    report = bench.run(uboot.boot("shell", timeout=120))
    assert [record.phase for record in report.phases] == [Phase.BOOTLOADER, Phase.KERNEL, Phase.SHELL]
    assert report.kernel_version and report.bootloader_version
    assert bench.exec("uname -r") == (0, f"{report.kernel_version}\n".encode(), b"")


def test_a_power_cycle_boots_by_itself_into_a_shell(bench: Bench) -> None:
    report = bench.run(bench.console.boot("shell", timeout=120, power_cycle=bench.board.cycle))
    assert [record.phase for record in report.phases] == [Phase.BOOTLOADER, Phase.KERNEL, Phase.SHELL]
    times = [record.seconds for record in report.phases]
    assert times == sorted(times) and 0 < times[0] and times[-1] <= report.seconds
    text = (bench.directory / "console.log").read_text()
    assert "< U-Boot 2" in text and "Linux version" in text and "# phase shell after" in text


def test_a_u_boot_command_in_a_shell_is_the_wrong_phase(linux: Bench) -> None:
    with pytest.raises(WrongPhase):
        linux.run(linux.console.uboot_version())
    assert linux.exec("echo still here") == (0, b"still here\n", b"")


def test_status_and_output_on_the_device(linux: Bench) -> None:
    assert linux.exec("cat /etc/jumpstarter-marker")[:1] == (0,)
    assert linux.exec("printf 'o\\000\\377'; echo e >&2; exit 255") == (255, b"o\0\xff", b"e\n")
    assert linux.exec("kill -9 $$")[0] == 137
    assert linux.exec("no-such-command")[0] == 127


def test_every_byte_value_in_200_kib_of_output(linux: Bench) -> None:
    content = bytes(range(256)) * 800
    assert linux.exec("cat; exit 1", in_data=content) == (1, content, b"")


def test_a_command_of_64_kib(linux: Bench) -> None:
    filler = "".join(f"v{n}='some text {n}'\n" for n in range(3000))
    assert linux.exec(f"{filler}echo $v2999; exit 9") == (9, b"some text 2999\n", b"")


def test_a_short_command_is_one_request_that_is_answered_by_itself(
    linux: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poll, or a time to wait out, would be 0.25 s and more, and one could see us ask again."""
    linux.exec("true")
    asked: list[bytes] = []
    write = linux.board.write

    async def counted(data: bytes) -> None:
        asked.append(data)
        await write(data)

    monkeypatch.setattr(linux.board, "write", counted)
    counts = []
    for _ in range(6):
        asked.clear()
        assert linux.exec("echo hello") == (0, b"hello\n", b"")
        counts.append(len(asked))
    assert min(counts) == 1, asked  # on a busy machine some answers are late


@pytest.mark.parametrize("level", ["<0>", ""])
def test_files_survive_kernel_messages(linux: Bench, tmp_path: Path, level: str) -> None:
    """Emergencies (``<0>``) reach the console whatever its log level is."""
    content = random.Random(8).randbytes(20_000)
    pause = "usleep 20000; " if level else ""
    spam = f'(while :; do echo "{level}spam from the kernel" >/dev/kmsg; {pause}done) & echo $!'
    pid = linux.exec(spam)[1].decode().strip()
    try:
        sent = linux.run(linux.console.put(content, "/tmp/blob", mode=0o640))
        got = linux.run(linux.console.fetch("/tmp/blob", tmp_path / "blob"))
    finally:
        linux.exec(f"kill {pid}")
    assert sent.sha256 == got.sha256 == hashlib.sha256(content).hexdigest()
    assert (tmp_path / "blob").read_bytes() == content
    assert linux.exec("sha256sum </tmp/blob; stat -c %a /tmp/blob")[1].split() == [sent.sha256.encode(), b"-", b"640"]
    if level:
        assert "spam from the kernel" in (linux.directory / "console.log").read_text()


def test_a_hanging_command_is_interrupted(linux: Bench) -> None:
    async def hang() -> ExecTimeout:
        since = linux.console.seq
        running = asyncio.create_task(
            linux.console.exec("echo so far; echo it has begun >/dev/console; sleep 1000", timeout=500)
        )
        await linux.console.expect("it has begun", timeout=60, since=since)
        pass_time(500)
        with pytest.raises(ExecTimeout) as caught:
            await running
        return caught.value

    linux.exec("true")
    assert linux.run(hang()).stdout == b"so far\n"
    assert linux.exec("echo on") == (0, b"on\n", b"")


def test_text_can_be_sent_and_expected_between_commands(linux: Bench) -> None:
    async def dialogue() -> bytes:
        since = linux.console.seq
        await linux.console.send("echo typed $((6*7))\r")
        return (await linux.console.expect(r"typed 42\r?$", timeout=10, since=since)).match

    linux.exec("true")
    assert linux.run(dialogue()).strip() == b"typed 42"
    assert linux.exec("echo on") == (0, b"on\n", b"")


def test_a_reboot_is_noticed_and_the_shell_prepared_again(linux: Bench) -> None:
    assert linux.exec("echo before >/tmp/gone")[0] == 0

    async def reboot() -> None:
        await linux.console.send("reboot -f\r")
        await linux.console.expect("U-Boot 20", timeout=60)
        await linux.console.boot("shell", timeout=120)

    linux.run(reboot())
    assert linux.exec("cat /tmp/gone")[0] == 1


def test_a_kernel_panic_ends_the_command_at_once(linux: Bench) -> None:
    linux.exec("true")
    began = time.monotonic()
    with pytest.raises(KernelPanic, match="virt-arm64: .*Kernel panic - not syncing: sysrq triggered crash"):
        linux.exec("echo c >/proc/sysrq-trigger; sleep 1000", timeout=200)
    assert time.monotonic() - began < 100
    with pytest.raises(WrongPhase, match="power cycle the board"):
        linux.exec("true")


def test_killing_the_board_ends_the_command_at_once(linux: Bench) -> None:
    async def kill() -> None:
        since = linux.console.seq
        running = asyncio.create_task(linux.console.exec("echo it has begun >/dev/console; sleep 1000"))
        await linux.console.expect("it has begun", timeout=60, since=since)
        linux.board.kill()
        async with asyncio.timeout(60):
            with pytest.raises(BoardGone, match="virt-arm64: the board went away during the command 'echo it has"):
                await running

    linux.exec("true")
    linux.run(kill())


def test_after_all_that_it_boots_again(bench: Bench) -> None:
    bench.run(bench.console.boot("shell", timeout=120, power_cycle=bench.board.cycle))
    assert bench.exec("echo alive") == (0, b"alive\n", b"")
