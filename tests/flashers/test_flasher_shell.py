# SPDX-License-Identifier: Apache-2.0
"""The conversation with a flasher system's shell, held with a real BusyBox ash on a terminal of 80 columns."""

from __future__ import annotations

import asyncio
import hashlib
import http.server
import lzma
import os
import random
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from busybox_board import BusyboxBoard

from jumpstarter_driver_flashers.linux_stage import LinuxStage, Source
from jumpstarter_driver_flashers.manifest import FlasherLogin
from jumpstarter_driver_flashers.shell import ShellError, ShellLink, quote
from jumpstarter_driver_pyserial.driver import PySerial
from jumpstarter_driver_storage.errors import StorageRefused
from jumpstarter_driver_uboot.link import UbootError

LOGIN = FlasherLogin()

NASTY = ["it's", '"double"', "$HOME $(reboot) `reboot`", "a; b && c | d", "back\\slash", "#hash", "*?[]~!", "x" * 300]


@asynccontextmanager
async def console(folder: Path, program: list[str] | None = None) -> AsyncIterator[tuple[Any, BusyboxBoard]]:
    """A console with BusyBox behind it, as the exporter has it: its hub, and the board."""
    serial = PySerial(url=f"unix-listen://{folder / 'uart'}", check_present=False)
    await serial.ensure_open()
    board = await asyncio.to_thread(BusyboxBoard, str(folder / "uart"), folder, program)
    try:
        await serial.hub.wait_open(5)
        yield serial.hub, board
    finally:
        await asyncio.to_thread(board.close)
        serial.hub.stop()


@asynccontextmanager
async def shell(folder: Path) -> AsyncIterator[tuple[ShellLink, Any, BusyboxBoard]]:
    async with console(folder) as (hub, board):
        link = ShellLink(hub, hub.claim("test"), since=0)
        await link.login(LOGIN, 10)
        yield link, hub, board


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(120):
            await test()

    asyncio.run(limited())


def log_of(hub: Any) -> str:
    text: bytes = hub.read(-1, 1 << 20).data
    return text.decode(errors="replace")


def test_exit_status_output_and_quoting_survive_80_columns(tmp_path: Path) -> None:
    async def test() -> None:
        async with shell(tmp_path) as (link, hub, _):
            assert await link.status("true", 5) == (0, [])
            assert await link.status("echo one; echo two; (exit 7)", 5) == (7, ["one", "two"])
            for text in NASTY:
                assert await link.command(f"echo {quote(text)}", 5) == [text]
            long = "; ".join(f"echo line-{number:04d}" for number in range(150))
            assert await link.command(long, 10) == [f"line-{number:04d}" for number in range(150)]
            assert await link.command("echo -n no newline", 5) == ["no newline"]
            with pytest.raises(ShellError, match=r"'nosuch' failed on the board with exit status 127: .*not found"):
                await link.command("nosuch", 5)
            with pytest.raises(ShellError, match="too long for the console"):
                await link.command("echo " + "y" * 4000, 5)
            with pytest.raises(ValueError, match="control character"):
                await link.command("echo\x03", 5)
            assert "\x1b[6n" not in log_of(hub).split("while IFS=")[1], "no line editor asks for the cursor"

    run(test)


def test_prompt_alone_is_no_shell(tmp_path: Path) -> None:
    """A kernel's message that ends like a prompt, then the real thing: only what answers counts."""

    async def test() -> None:
        starts = "printf '[ 1.0] mounting /dev/sda #'; sleep 1; echo; exec sh -i"
        program = ["/bin/busybox", "sh", "-c", starts]
        async with console(tmp_path, program) as (hub, _):
            link = ShellLink(hub, hub.claim("test"), since=0)
            await link.login(LOGIN, 20)
            assert await link.command("echo here", 5) == ["here"]

    run(test)


def test_login_with_password_that_never_shows(tmp_path: Path) -> None:
    script = tmp_path / "getty"
    script.write_text(
        "printf 'flasher login: '; read u; printf 'Password: '; stty -echo; read p; stty echo; echo\n"
        '[ "$u:$p" = "root:s3cret-word" ] || { echo Login incorrect; exec sh "$0"; }\nexec sh -i\n'
    )
    program = ["/bin/busybox", "sh", str(script)]

    async def right() -> None:
        async with console(tmp_path, program) as (hub, _):
            link = ShellLink(hub, hub.claim("test"), since=0)
            await link.login(FlasherLogin(username="root", password="s3cret-word"), 10)
            assert await link.command("echo in", 5) == ["in"]
            assert "s3cret-word" not in log_of(hub)

    async def wrong() -> None:
        async with console(tmp_path, program) as (hub, _):
            link = ShellLink(hub, hub.claim("test"), since=0)
            with pytest.raises(ShellError, match="refuses the login of its manifest") as error:
                await link.login(FlasherLogin(username="root", password="other-word"), 20)
            assert "other-word" not in str(error.value) + log_of(hub)

    run(right)
    run(wrong)


def test_secret_reaches_the_board_and_not_the_console(tmp_path: Path) -> None:
    async def test() -> None:
        async with shell(tmp_path) as (link, hub, _):
            secret = "Authorization: Bearer s3cret$(x)'\"\\word"
            await link.secret("JLH0", secret)
            assert "s3cret" not in log_of(hub)
            digest = hashlib.sha256(secret.encode()).hexdigest()
            assert (await link.command('printf %s "$JLH0" | sha256sum', 5))[0].startswith(digest)
            assert await link.command("echo echo is back", 5) == ["echo is back"]
            long = "Authorization: Bearer s3cret" + "x" * 4000  # more than the terminal takes as a line
            await link.secret("JLH1", long)
            assert (await link.command("echo ${#JLH1}", 5))[0] == str(len(long)) and "s3cret" not in log_of(hub)

    run(test)


def test_secret_is_not_typed_where_echo_cannot_be_switched_off(tmp_path: Path) -> None:
    async def test() -> None:
        async with shell(tmp_path) as (link, hub, board):
            (board.tools / "stty").unlink()
            await link.command("stty() { return 1; }", 5)  # BusyBox may run its own without looking for it
            with pytest.raises(ShellError, match="a secret could not be handed to the board without echo"):
                await link.secret("JLH0", "s3cret-word")
            assert "s3cret" not in log_of(hub)

    run(test)


def test_board_that_falls_silent_is_given_up_long_before_the_timeout(tmp_path: Path, loop_device: str) -> None:
    async def test() -> None:
        async with shell(tmp_path) as (link, _, board):
            stage = LinuxStage(link, lambda *_: os.kill(board.process.pid, signal.SIGSTOP), stall=0.5, interval=0.1,
                               scratch=str(tmp_path))  # fmt: skip
            with pytest.raises(ShellError, match="the board has said nothing for 0.5 s"):
                await stage._pipeline(["sleep 30"], loop_device, 6, "writing", 0, 60)

    run(test)


def test_shell_that_never_comes_and_command_that_never_ends_and_power_that_goes(tmp_path: Path) -> None:
    async def never() -> None:
        async with console(tmp_path, ["/bin/busybox", "sh", "-c", "echo Kernel panic; read x"]) as (hub, _):
            link = ShellLink(hub, hub.claim("test"), since=0)
            with pytest.raises(ShellError, match=r"no shell \(prompt '#'\).*within 1 s.*Kernel panic"):
                await link.login(LOGIN, 1)

    async def hangs() -> None:
        async with shell(tmp_path) as (link, _, _):
            with pytest.raises(ShellError, match="'sleep 20' did not end within 0.5 s"):
                await link.command("sleep 20", 0.5)

    async def goes() -> None:
        async with shell(tmp_path) as (link, _, board):
            asyncio.get_running_loop().call_later(0.5, board.kill)
            with pytest.raises((ShellError, UbootError), match="the console went away"):
                await link.command("sleep 20", 10)

    for one in (never, hangs, goes):
        (tmp_path / "uart").unlink(missing_ok=True)
        run(one)


# --- the image, to a block device ---------------------------------------------------------------------------------


@contextmanager
def web(folder: Path) -> Iterator[str]:
    """An HTTP server on a folder; counts what it was asked, with the headers."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args: Any) -> None:
            return

        def do_GET(self) -> None:
            if "private" in self.path and self.headers.get("Authorization") != "Bearer s3cret-word":
                self.send_error(403)
                return
            if "broken" in self.path:
                self.send_response(200)
                self.send_header("Content-Length", str(1 << 20))
                self.end_headers()
                self.wfile.write(bytes(1000))
                return
            super().do_GET()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[str]:
    """A disk of 4 MiB."""
    backing = tmp_path / "backing"
    backing.write_bytes(b"\xa5" * (4 << 20))
    device = subprocess.run(
        ["losetup", "--find", "--show", str(backing)], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_image_is_fetched_unpacked_written_and_read_back(tmp_path: Path, loop_device: str) -> None:
    generator = random.Random(3)
    content = generator.randbytes(1 << 20) + bytes(1 << 20) + generator.randbytes(700)  # an odd end, too
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "private it's.img").write_bytes(content)
    (folder / "os.xz").write_bytes(lzma.compress(content))
    (folder / "cut.xz").write_bytes(lzma.compress(content)[:-2000])

    async def test(url: str) -> None:
        async with shell(tmp_path) as (link, hub, _):
            phases: list[tuple[str, int, int | None]] = []
            stage = LinuxStage(
                link, lambda *one: phases.append(one), stall=20, appear=0, interval=0.1, scratch=str(tmp_path)
            )
            assert await stage.resolve(loop_device) == loop_device
            await link.secret("JLH0", "Authorization: Bearer s3cret-word")
            private = Source(f"{url}/private%20it's.img", None, ("JLH0",))
            await stage.write(private, loop_device, len(content), 30)
            assert await stage.digest(loop_device, len(content), 30) == hashlib.sha256(content).hexdigest()
            assert (tmp_path / "backing").read_bytes()[: len(content)] == content
            await stage.write(Source(f"{url}/os.xz", "xz"), loop_device, len(content), 30)
            assert ("writing", 0, len(content)) in phases
            for broken, compression in (("cut.xz", "xz"), ("broken", None), ("private%20it's.img", None)):
                with pytest.raises(ShellError, match="writing failed on the board with exit status"):
                    await stage.write(Source(f"{url}/{broken}", compression), loop_device, len(content), 30)
            assert "s3cret-word" not in log_of(hub)
            with pytest.raises(StorageRefused, match=r'target "t" \(/dev/loop\d+\) holds 4.0 MiB; nothing was written'):
                await stage.check_room(loop_device, 5 << 20, "t")
            stage.warnings.append("preflash command 'modprobe x' had failed with exit status 1")
            for device in ("/dev/nowhere", "/sys/class/block#no$(such)", "partlabel:no'such"):
                with pytest.raises(
                    ShellError, match=r"looking for the block device .* failed.*'modprobe x' had failed"
                ):
                    await stage.resolve(device)
            assert await stage.unpacker("zstd") is None and await stage.unpacker(None) == ""
            address = os.path.basename(loop_device)
            assert await stage.resolve(f"/sys/class/block#virtual/block/{address}") == loop_device

    with web(folder) as url:
        run(lambda: test(url))


def test_fls_is_run_only_when_it_is_the_pinned_one(tmp_path: Path, loop_device: str) -> None:
    """Fake: the fls program (not obtainable here) is a script with its command line."""
    folder = tmp_path / "web"
    folder.mkdir()
    fls = folder / "fls"
    fls.write_text(
        '#!/bin/busybox sh\n[ "$1 $2 $3 $4 $5" = "from-url -i 1.0 -n --o-direct" ] && wget -q -O "$7" "$6"\n'
    )
    (folder / "os.img").write_bytes(b"\x5a" * (1 << 20))
    right = hashlib.sha256(fls.read_bytes()).hexdigest()

    async def test(url: str) -> None:
        async with shell(tmp_path) as (link, _, _):
            stage = LinuxStage(link, lambda *one: None, stall=20, interval=0.1, scratch=str(tmp_path))
            binary = Source(f"{url}/fls", None)
            with pytest.raises(ShellError, match="fls arrived damaged"):
                await stage.write_by_fls(binary, "fls", "0" * 64, f"{url}/os.img", loop_device, 30)
            assert (tmp_path / "backing").read_bytes() == b"\xa5" * (4 << 20)
            await stage.write_by_fls(binary, "fls", right, f"{url}/os.img", loop_device, 30)
            assert (tmp_path / "backing").read_bytes().startswith(b"\x5a" * (1 << 20))

    with web(folder) as url:
        run(lambda: test(url))
