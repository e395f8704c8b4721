# SPDX-License-Identifier: Apache-2.0
"""Protects: commands and files through the shells that devices have (busybox ash, dash, bash) on a real tty."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from console_harness import PtyConsole, pass_time, shells

from jumpstarter_agent.console import (
    ConsoleError,
    ConsoleSession,
    ConsoleSettings,
    ConsoleTimeout,
    DeviceError,
    DeviceToolMissing,
    ExecTimeout,
    TransferRefused,
)
from jumpstarter_agent.console import transfer as transfer_module
from jumpstarter_agent.console.device_shell import pieces, program

ASH = ["busybox", "ash", "-i"]
EVERY_BYTE = bytes(range(256))


#: Seconds no other test worker sleeps: by them a process is known to be ours.
_OURS = 100_000 + os.getpid()


def _on(
    argv: list[str],
    tmp_path: Path,
    scenario: Callable[[ConsoleSession, PtyConsole], Awaitable[None]],
    env: dict[str, str] | None = None,
) -> None:
    async def go() -> None:
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        device = PtyConsole(argv, home, env)
        settings = ConsoleSettings(quiet_kernel=False)
        log = tmp_path / "console.log"
        async with ConsoleSession(device, name="board", log_path=log, settings=settings) as session:
            await scenario(session, device)

    asyncio.run(asyncio.wait_for(go(), 100))


def _tools(tmp_path: Path, *names: str) -> dict[str, str]:
    """A PATH with only these tools and the usual ones. The shell is dash: that of busybox has its tools built in."""
    tools = tmp_path / "bin"
    tools.mkdir()
    usual = "stty mkdir cat rm tr sed grep dd wc id mv chmod ls tail"
    for name in {*usual.split(), *names}:
        (tools / name).symlink_to(_path(name))
    (tools / "sh").symlink_to(_path("dash"))
    return {"PATH": str(tools)}


@pytest.mark.parametrize("argv", shells(), ids=lambda argv: argv[0])
class TestEveryShell:
    def test_a_timeout_does_not_quote_our_own_preparation_of_the_shell(self, argv: list[str], tmp_path: Path) -> None:
        async def scenario(session: ConsoleSession, device: PtyConsole) -> None:
            await session.exec("true")
            with pytest.raises(ConsoleTimeout) as caught:
                await session.expect("never", timeout=0.2)
            assert not any(word in str(caught.value) for word in ("stty", "echo", "printf", "@")), caught.value

        _on(argv, tmp_path, scenario)

    def test_status_output_and_errors_are_exact(self, argv: list[str], tmp_path: Path) -> None:
        cases = {
            "true": (0, b"", b""),
            "exit 1": (1, b"", b""),
            "exit 255": (255, b"", b""),
            "kill -9 $$": (137, b"", b""),
            "kill -TERM $$": (143, b"", b""),
            "printf 'a\\000b\\377'; echo oops >&2; exit 3": (3, b"a\0b\xff", b"oops\n"),
            'echo "it\'s $((6*7))" `echo x` \\\\ "a  b"': (0, b"it's 42 x \\ a  b\n", b""),
            "printf %s 'no newline'": (0, b"no newline", b""),
            "echo '@'; echo ':'; echo '#0001:x'": (0, b"@\n:\n#0001:x\n", b""),
            "cat": (0, b"", b""),
            "printf 'two\\nlines'\nexit 4": (4, b"two\nlines", b""),
            "echo 'é ü'": (0, "é ü\n".encode(), b""),
            "pwd": (0, f"{tmp_path}/home\n".encode(), b""),
            "umask": (0, b"%04o\n" % _umask(), b""),
        }

        async def scenario(session: ConsoleSession, device: PtyConsole) -> None:
            for cmd, expected in cases.items():
                result = await session.exec(cmd)
                assert (result.rc, result.stdout, result.stderr) == expected, cmd
            for cmd in ("no-such-command", "if then"):
                result = await session.exec(cmd)
                assert result.rc in (2, 127) and result.stderr, cmd

        _on(argv, tmp_path, scenario)

    def test_binary_input_and_output_of_200_kib(self, argv: list[str], tmp_path: Path) -> None:
        content = EVERY_BYTE * 800

        async def scenario(session: ConsoleSession, device: PtyConsole) -> None:
            result = await session.exec("cat; exit 7", in_data=content)
            assert (result.rc, result.stdout == content, result.stderr) == (7, True, b"")
            # The input of one command is not the input of the next.
            assert (await session.exec("cat")).stdout == b""

        _on(argv, tmp_path, scenario)

    def test_a_command_of_64_kib_and_one_that_no_argument_holds(self, argv: list[str], tmp_path: Path) -> None:
        async def scenario(session: ConsoleSession, device: PtyConsole) -> None:
            for size in (2_000, 65_536, 150_000):
                filler = "".join(f"v{n}='some text {n}'\n" for n in range(size // 22))
                result = await session.exec(f"{filler}echo $v7; exit 9")
                assert (result.rc, result.stdout, result.stderr) == (9, b"some text 7\n", b"")

        _on(argv, tmp_path, scenario)

    def test_a_timeout_interrupts_and_the_shell_goes_on(self, argv: list[str], tmp_path: Path) -> None:
        async def scenario(session: ConsoleSession, device: PtyConsole) -> None:
            await session.exec("true")
            command = f"echo partly; echo cause >&2; echo >{tmp_path}/began; sleep {_OURS}; echo never"
            running = asyncio.create_task(session.exec(command, timeout=40))
            await _exists(tmp_path / "began")
            pass_time(40)
            with pytest.raises(ExecTimeout, match="did not end within 40 s") as caught:
                await running
            assert (caught.value.stdout, caught.value.stderr) == (b"partly\n", b"cause\n")
            assert (await session.exec("echo on")).stdout == b"on\n"
            await _ended(f"sleep\x00{_OURS}")

        _on(argv, tmp_path, scenario)

    def test_a_cancelled_command_is_ended_on_the_device(self, argv: list[str], tmp_path: Path) -> None:
        async def scenario(session: ConsoleSession, device: PtyConsole) -> None:
            await session.exec("true")
            running = asyncio.create_task(session.exec(f"echo >{tmp_path}/began; sleep {_OURS}"))
            await _exists(tmp_path / "began")
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert (await session.exec("echo on")).stdout == b"on\n"
            await _ended(f"sleep\x00{_OURS}")

        _on(argv, tmp_path, scenario)

    def test_the_shell_comes_back_with_echo_for_a_person(self, argv: list[str], tmp_path: Path) -> None:
        async def scenario(session: ConsoleSession, device: PtyConsole) -> None:
            await session.exec("true")
            async with session.attach() as raw:
                await raw.send(b"echo to a $((40+2))\r")
                said = b""
                while b"to a 42" not in said:
                    said += await raw.receive()
                assert b"echo to a $((40+2))" in said
            assert (await session.exec("echo back")).stdout == b"back\n"

        _on(argv, tmp_path, scenario)

    def test_put_and_fetch(self, argv: list[str], tmp_path: Path) -> None:
        content = random.Random(1).randbytes(100_000)
        target = tmp_path / "home" / "it's a file"

        async def scenario(session: ConsoleSession, device: PtyConsole) -> None:
            seen: list[tuple[int, int]] = []
            first = await session.put(content, str(target), mode=0o751, progress=lambda d, t: seen.append((d, t)))
            assert (first.changed, first.size, first.verified_by) == (True, 100_000, "sha256sum")
            assert target.read_bytes() == content and stat.S_IMODE(target.stat().st_mode) == 0o751
            assert seen[-1] == (100_000, 100_000) and [d for d, _ in seen] == sorted(d for d, _ in seen)
            again = await session.put(content, str(target), mode=0o751)
            assert (again.changed, again.moved_bytes) == (False, 0)
            moded = await session.put(content, str(target), mode=0o600)
            assert (moded.changed, moded.moved_bytes) == (True, 0)
            assert stat.S_IMODE(target.stat().st_mode) == 0o600
            # Without a mode an existing file keeps its own, a new one gets what the umask says.
            await session.put(b"short", str(target))
            assert (target.read_bytes(), stat.S_IMODE(target.stat().st_mode)) == (b"short", 0o600)
            await session.put(b"", "~/empty")
            empty = tmp_path / "home" / "empty"
            assert (empty.read_bytes(), stat.S_IMODE(empty.stat().st_mode)) == (b"", 0o666 & ~_umask())
            # Text is compressed on the way.
            text = b"all work and no play\n" * 10_000
            packed = await session.put(text, "relative")
            assert packed.moved_bytes < 20_000 and (tmp_path / "home" / "relative").read_bytes() == text
            got = await session.fetch("relative", tmp_path / "back")
            assert got.moved_bytes < 20_000 and (tmp_path / "back").read_bytes() == text
            assert not (await session.fetch("relative", tmp_path / "back")).changed
            target.write_bytes(content)
            assert (await session.fetch(str(target), tmp_path / "back")).sha256 == first.sha256
            assert (tmp_path / "back").read_bytes() == content
            assert sorted(p.name for p in (tmp_path / "home").iterdir()) == ["empty", "it's a file", "relative"]
            assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "console.log", "home"]

        _on(argv, tmp_path, scenario)


def test_a_program_left_in_the_background_does_not_reach_later_outputs(tmp_path: Path) -> None:
    async def scenario(session: ConsoleSession, device: PtyConsole) -> None:
        first = await session.exec("(while :; do echo spam; echo spam >&2; done) & echo $!")
        for _ in range(5):
            result = await session.exec("echo mine; echo yours >&2")
            assert (result.stdout, result.stderr) == (b"mine\n", b"yours\n")
        pid = next(word for word in first.stdout.split() if word.isdigit())
        assert (await session.exec(f"kill {pid.decode()}")).rc == 0

    _on(ASH, tmp_path, scenario)


def test_messages_on_the_console_do_not_reach_the_output(tmp_path: Path) -> None:
    async def scenario(session: ConsoleSession, device: PtyConsole) -> None:
        for _ in range(5):
            result = await session.exec("for n in 1 2 3; do echo noise >/dev/tty; echo $n; done; exit 2")
            assert (result.rc, result.stdout) == (2, b"1\n2\n3\n")

    _on(ASH, tmp_path, scenario)
    assert "< noise" in (tmp_path / "console.log").read_text()


def test_an_interrupted_upload_resumes_with_what_was_verified(tmp_path: Path) -> None:
    content = random.Random(2).randbytes(150_000)

    async def scenario(session: ConsoleSession, device: PtyConsole) -> None:
        running: asyncio.Task[object] | None = None

        def stop(done: int, total: int) -> None:
            if done > total // 2 and running is not None:
                running.cancel()

        running = asyncio.create_task(session.put(content, "big", progress=stop))
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not (tmp_path / "home" / "big").exists()
        result = await session.put(content, "big")
        assert (tmp_path / "home" / "big").read_bytes() == content
        assert result.resumed_bytes > 70_000
        # A block that is slow to be acknowledged may be sent again.
        assert 150_000 <= result.moved_bytes + result.resumed_bytes < 220_000

    _on(ASH, tmp_path, scenario)


def test_an_interrupted_download_resumes_with_what_was_verified(tmp_path: Path) -> None:
    content = random.Random(3).randbytes(150_000)

    async def scenario(session: ConsoleSession, device: PtyConsole) -> None:
        (tmp_path / "home" / "big").write_bytes(content)
        running: asyncio.Task[object] | None = None

        def stop(done: int, total: int) -> None:
            if done > total // 2 and running is not None:
                running.cancel()

        running = asyncio.create_task(session.fetch("big", tmp_path / "got", progress=stop))
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not (tmp_path / "got").exists()
        result = await session.fetch("big", tmp_path / "got")
        assert (tmp_path / "got").read_bytes() == content
        assert result.resumed_bytes > 70_000 and result.moved_bytes < 80_000

    _on(ASH, tmp_path, scenario)


def test_a_stale_part_is_not_taken_for_the_file(tmp_path: Path) -> None:
    content = random.Random(4).randbytes(60_000)

    async def scenario(session: ConsoleSession, device: PtyConsole) -> None:
        import hashlib

        name = f".big.{hashlib.sha256(content).hexdigest()[:12]}.part"
        (tmp_path / "home" / name).write_bytes(b"x" * 30_000)
        (tmp_path / "home" / ".big.0123456789ab.part").write_bytes(b"of another content")
        await session.put(content, "big")
        assert (tmp_path / "home" / "big").read_bytes() == content
        assert [p.name for p in (tmp_path / "home").iterdir()] == ["big"]
        (tmp_path / name.replace("big", "got")).write_bytes(b"y" * 30_000)
        await session.fetch("big", tmp_path / "got")
        assert (tmp_path / "got").read_bytes() == content

    _on(ASH, tmp_path, scenario)


def test_what_the_device_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    async def scenario(session: ConsoleSession, device: PtyConsole) -> None:
        with pytest.raises(DeviceError, match="fetch nothing: there is no such file on the device"):
            await session.fetch("nothing", tmp_path / "got")
        with pytest.raises(DeviceError, match="put /tmp: is a directory on the device"):
            await session.put(b"x", "/tmp")
        with pytest.raises(DeviceError, match="cannot write /nowhere/at/all"):
            await session.put(b"x", "/nowhere/at/all")
        with pytest.raises(ConsoleError, match="cannot read .*missing"):
            await session.put(tmp_path / "missing", "x")
        with pytest.raises(ConsoleError, match="cannot be typed"):
            await session.put(b"x", "a\nb")
        (tmp_path / "home" / "there").write_bytes(b"x")
        with pytest.raises(ConsoleError, match="local directory .* does not exist"):
            await session.fetch("there", tmp_path / "no" / "such" / "dir")
        assert (await session.exec("echo fine")).stdout == b"fine\n"

    _on(ASH, tmp_path, scenario)


def test_what_cannot_end_in_its_time_is_refused_as_soon_as_that_is_seen() -> None:
    async def body() -> None:
        now = asyncio.get_running_loop().time()
        for allow, end in ((True, now + 100), (False, None), (False, now + 200)):
            of_time(allow, end)(400)
        of_time(False, now + 100)(500)
        with pytest.raises(
            TransferRefused, match=r"600 bytes are left and the console moves 4 bytes/s, which takes 150 s, and 100 s"
        ):
            of_time(False, now + 100)(400)

    def of_time(allow: bool, end: float | None) -> transfer_module._Meter:
        meter = transfer_module._Meter("console: put x", 1000, 0, allow, end, None)
        meter._began -= 100
        return meter

    asyncio.run(body())


def test_check_mode_changes_nothing(tmp_path: Path) -> None:
    async def scenario(session: ConsoleSession, device: PtyConsole) -> None:
        assert (await session.put(b"x", "new", check=True)).changed
        assert not (tmp_path / "home" / "new").exists()
        (tmp_path / "home" / "there").write_bytes(b"x")
        assert not (await session.put(b"x", "there", check=True)).changed
        assert (await session.fetch("there", tmp_path / "got", check=True)).changed
        assert not (tmp_path / "got").exists()

    _on(ASH, tmp_path, scenario)


def test_what_would_take_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_module, "_JUDGE_AFTER", 0.0)
    monkeypatch.setattr(transfer_module, "_SLOW_SECONDS", 0.01)
    content = random.Random(5).randbytes(100_000)

    async def scenario(session: ConsoleSession, device: PtyConsole) -> None:
        with pytest.raises(TransferRefused, match=r"the console moves \d+ bytes/s.*allow slow transfers"):
            await session.put(content, "big")
        assert not (tmp_path / "home" / "big").exists()
        assert (await session.put(content, "big", allow_slow=True)).changed
        with pytest.raises(TransferRefused):
            await session.fetch("big", tmp_path / "got")
        with pytest.raises(TransferRefused, match="is 100000 bytes, more than the 50000 allowed"):
            await session.exec("cat big", max_output=50_000)
        assert (await session.exec("echo fine")).stdout == b"fine\n"

    _on(ASH, tmp_path, scenario)


def test_a_transfer_has_a_time_limit(tmp_path: Path) -> None:
    async def scenario(session: ConsoleSession, device: PtyConsole) -> None:
        await session.exec("true")
        with pytest.raises(ConsoleTimeout, match=r"put big: not finished within 0.05 s; .* resumes"):
            await session.put(random.Random(6).randbytes(3_000_000), "big", timeout=0.05)
        assert (await session.exec("echo fine")).stdout == b"fine\n"

    _on(ASH, tmp_path, scenario)


@pytest.mark.parametrize("tools", [("md5sum",), ("cksum", "od"), ("sha256sum", "base64")], ids=lambda t: "+".join(t))
def test_few_tools_are_enough(tmp_path: Path, tools: tuple[str, ...]) -> None:
    """Without base64 (octal in, od out), without cksum, without gzip."""
    names = tools if "base64" in tools else (*tools, "od")
    content = EVERY_BYTE * 20

    async def scenario(session: ConsoleSession, device: PtyConsole) -> None:
        result = await session.exec("cat; echo e >&2; exit 5", in_data=content)
        assert (result.rc, result.stdout == content, result.stderr) == (5, True, b"e\n")
        sent = await session.put(content, "file")
        assert (tmp_path / "home" / "file").read_bytes() == content
        assert sent.verified_by == tools[0]
        await session.fetch("file", tmp_path / "got")
        assert (tmp_path / "got").read_bytes() == content

    _on(["dash", "-i"], tmp_path, scenario, _tools(tmp_path, *names))


def test_without_any_checksum_the_device_is_refused(tmp_path: Path) -> None:
    async def scenario(session: ConsoleSession, device: PtyConsole) -> None:
        with pytest.raises(DeviceToolMissing, match="has none of cksum, md5sum"):
            await session.exec("true")

    _on(["dash", "-i"], tmp_path, scenario, _tools(tmp_path))


def test_the_program_is_prepared_once_and_leaves_nothing(tmp_path: Path) -> None:
    async def scenario(session: ConsoleSession, device: PtyConsole) -> None:
        for number in range(5):
            await session.exec(f"echo {number}")
        # Each preparation has a name of its own. (Within one, pieces may go again: the device may be slow to answer.)
        assert len(set(re.findall(rb"/\.jl-([0-9a-f]{4})", device.written))) == 1
        where = (await session.exec("ls -d /dev/shm/.jl-* /run/.jl-* /tmp/.jl-* 2>/dev/null")).stdout
        mine = bytes(device.written).split(b"cd ")[1].split(b" ")[0]
        assert mine in where
        await session.reset()
        assert not Path(mine.decode()).exists()

    _on(ASH, tmp_path, scenario)


def test_what_travels_of_the_program_is_inert() -> None:
    """A damaged quote on the way must not make the login shell run parts of the program."""
    for piece in pieces(program()):
        assert not set(piece) & set(" \n$\"'`;()|&<>\\!")


def _path(tool: str) -> str:
    found = shutil.which(tool)
    assert found is not None, f"{tool} is not installed"
    return found


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


async def _exists(path: Path) -> None:
    while not path.exists():
        await asyncio.sleep(0.01)


async def _ended(command: str) -> None:
    """Return when no process has this command line: what is killed together ends one after the other."""
    while _runs(command):
        await asyncio.sleep(0.01)


def _runs(command: str) -> bool:
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                if command in (directory / "cmdline").read_text(errors="replace"):
                    return True
            except OSError:  # it ended meanwhile
                continue
    return False
