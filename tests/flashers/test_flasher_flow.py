# SPDX-License-Identifier: Apache-2.0
"""From client to disk with a real BusyBox shell as the flasher system; only U-Boot and the kernel are left out.

Those are in test_flasher_boot_to_ram; here each variant of fetching and writing takes seconds.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import random
import re
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import zstandard
from busybox_board import BusyboxBoard
from click.testing import CliRunner
from test_flasher_bundles import FULL, small_bundle
from test_flasher_shell import loop_device, web

from jumpstarter.client.imaging import ImagingError
from jumpstarter.common.exceptions import ArgumentError
from jumpstarter.common.utils import serve
from jumpstarter.driver import Driver, export
from jumpstarter_driver_flashers import client as client_module
from jumpstarter_driver_flashers.driver import BaseFlasher
from jumpstarter_driver_flashers.linux_stage import LinuxStage
from jumpstarter_driver_flashers.manifest import FlasherLogin
from jumpstarter_driver_flashers.run import BoardRun
from jumpstarter_driver_flashers.shell import ShellError, ShellLink
from jumpstarter_driver_http.driver import HttpServer
from jumpstarter_driver_power.driver import PowerInterface
from jumpstarter_driver_pyserial.driver import PySerial
from jumpstarter_driver_storage.errors import StorageRefused
from jumpstarter_driver_uboot.shells import ExporterShell

__all__ = ["loop_device"]

SIZE = (1 << 20) + 512


@dataclass(kw_only=True)
class ShellPower(PowerInterface, Driver):
    """Switches a BusyBox shell."""

    folder: Path
    program: list[str] | None = None
    count: int = field(init=False, default=0)
    board: BusyboxBoard | None = field(init=False, default=None)

    @export
    def on(self) -> None:
        self.count += self.board is None
        self.board = self.board or BusyboxBoard(str(self.folder / "uart"), self.folder, self.program)

    @export
    def off(self) -> None:
        board, self.board = self.board, None
        if board is not None:
            board.close()

    @export
    async def read(self) -> Any:
        raise NotImplementedError("no meter")
        yield

    def close(self) -> None:
        self.off()
        super().close()


@pytest.fixture
def bench(tmp_path: Path, loop_device: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, BaseFlasher]]:
    async def to_prompt(self: BoardRun, hub: Any, writer: Any) -> Any:
        await self.driver.power("off")
        self.since = hub.head  # type: ignore[attr-defined]
        await self.driver.power("on")
        await hub.wait_open(5)

    async def boot(self: BoardRun, uboot: Any, hub: Any, writer: Any) -> None:
        shell = ShellLink(hub, writer, since=self.since)  # type: ignore[attr-defined]
        await shell.login(FlasherLogin(), 20)
        self._stage = LinuxStage(shell, self.say, stall=20, interval=0.1, scratch=str(tmp_path))

    monkeypatch.setattr(BoardRun, "_to_prompt", to_prompt)
    monkeypatch.setattr(BoardRun, "_boot_linux", boot)
    fls = tmp_path / "fls-tool"
    fls.write_text('#!/bin/busybox sh\nexec wget -q -O "$7" "$6"\n')
    bundle = small_bundle(tmp_path / "bundle", FULL.replace("/dev/mmcblk0", loop_device))
    driver = BaseFlasher(
        children={
            "serial": PySerial(url=f"unix-listen://{tmp_path / 'uart'}", check_present=False),
            "power": ShellPower(folder=tmp_path),
            "http": HttpServer(root_dir=str(tmp_path / "http"), host="127.0.0.1", port=0),
        },
        flasher_bundle=str(bundle), cache_dir=str(tmp_path / "cache"), state_dir=str(tmp_path / "records"),
        retries=1, retry_wait=0, tftp_dir=str(tmp_path / "tftp"), power_wait=0, fls_binary=str(fls),
        fls_sha256=hashlib.sha256(fls.read_bytes()).hexdigest(),
    )  # fmt: skip
    from jumpstarter_driver_tftp.driver import Tftp

    driver.children["tftp"] = Tftp(root_dir=str(tmp_path / "tftp"), host="127.0.0.1", port=0)
    with serve(driver) as client:
        yield client, driver


def image(folder: Path, seed: int) -> tuple[Path, bytes]:
    content = random.Random(seed).randbytes(SIZE)
    path = folder / f"os{seed}.img"
    path.write_bytes(content)
    os.utime(path, (1_700_000_000, 1_700_000_000))  # clients remember what they know of a file that has settled
    return path, content


def disk(folder: Path) -> bytes:
    return (folder / "backing").read_bytes()


def log(driver: BaseFlasher) -> str:
    data: bytes = driver.console().read(-1, 1 << 20).data
    return data.decode(errors="replace")


def left(folder: Path) -> list[Path]:
    return [path for name in ("http", "tftp") for path in (folder / name).rglob("*") if path.is_file()]


def test_packing_the_board_cannot_undo_and_a_server_with_a_password(
    bench: tuple[Any, BaseFlasher], tmp_path: Path
) -> None:
    client, driver = bench
    http: Any = driver.children["http"]
    http.username, http.password = "lab", "s3cret-word"
    _, content = image(tmp_path, 1)
    packed = tmp_path / "os.img.zst"
    packed.write_bytes(zstandard.compress(content))
    result = client.flash(packed)
    assert result.verified and result.sha256 == hashlib.sha256(content).hexdigest()
    assert disk(tmp_path)[:SIZE] == content and disk(tmp_path)[SIZE:] == b"\xa5" * (len(disk(tmp_path)) - SIZE)
    for secret in ("s3cret-word", base64.b64encode(b"lab:s3cret-word").decode()):
        assert secret not in log(driver)
    assert left(tmp_path) == []


def test_board_that_fetches_itself(bench: tuple[Any, BaseFlasher], tmp_path: Path) -> None:
    client, driver = bench
    folder = tmp_path / "web"
    folder.mkdir()
    _, content = image(tmp_path, 2)
    (folder / "private.img").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    with web(folder) as url:
        options = {"force_exporter_http": False, "bearer_token": "s3cret-word", "size": SIZE}
        result = client.flash(
            f"{url}/private.img?a='$(reboot)'".replace(" ", "%20"), os_image_checksum=digest, **options
        )
        assert result.verified and result.sha256 == digest and disk(tmp_path)[:SIZE] == content
        assert "s3cret-word" not in log(driver)
        with pytest.raises(
            ImagingError, match=f"verification failed: .* sha256 {digest}, the image has {'0' * 64}.*incompl"
        ):
            client.flash(f"{url}/private.img", os_image_checksum="0" * 64, **options)
        assert client.call("flash_state")["record"]["state"] == "incomplete"
        with pytest.raises(ArgumentError, match="needs size and os_image_checksum"):
            client.flash(f"{url}/private.img", force_exporter_http=False)


def test_fls_program_of_the_configuration(bench: tuple[Any, BaseFlasher], tmp_path: Path) -> None:
    """Fake: a script with the command line of fls, which is not obtainable here."""
    client, driver = bench
    path, content = image(tmp_path, 3)
    result = client.flash(path, method="fls")
    assert result.verified and disk(tmp_path)[:SIZE] == content and left(tmp_path) == []
    driver.fls_sha256 = "0" * 64
    with pytest.raises(ImagingError, match="arrived damaged on the board"):
        client.flash(path, method="fls", force=True)


def test_damaged_copy_on_the_exporter_is_found_on_the_board_and_not_used_again(
    bench: tuple[Any, BaseFlasher], tmp_path: Path
) -> None:
    client, _ = bench
    path, content = image(tmp_path, 4)
    digest = client.flash(path).sha256
    stored = tmp_path / "cache" / "images" / f"{digest}.img"
    written = stored.stat()
    stored.write_bytes(bytes(100) + content[100:])
    os.utime(stored, ns=(written.st_atime_ns, written.st_mtime_ns))  # the disk did it, nobody wrote
    with pytest.raises(ImagingError, match=r"verification failed: .* reads back with sha256 .*target is incomplete"):
        client.flash(path, force=True)
    again = client.flash(path)
    assert again.changed and again.verified and disk(tmp_path)[:SIZE] == content


def test_known_image_is_not_sent_again(bench: tuple[Any, BaseFlasher], tmp_path: Path) -> None:
    client, _ = bench
    path, content = image(tmp_path, 5)
    assert client.flash(path).moved_bytes >= SIZE
    again = client.flash(path, force=True)
    assert again.verified and again.moved_bytes == 0 and disk(tmp_path)[:SIZE] == content
    for scribble, changed in ((b"", False), (b"scribble", True)):  # read on the board, and written only when it differs
        with open(tmp_path / "backing", "r+b") as file:
            file.write(scribble)
        same = client.flash(path)
        assert (same.changed, same.verified) == (changed, True) and disk(tmp_path)[:SIZE] == content


def test_refusal_after_a_failed_write_does_not_say_that_nothing_was_written(
    bench: tuple[Any, BaseFlasher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, driver = bench
    driver.retries = 2

    async def fails(self: LinuxStage, *_: Any) -> None:
        async def refuses(self: LinuxStage, *_: Any) -> None:
            raise StorageRefused("the disk is write-protected now", code="permission")

        monkeypatch.setattr(LinuxStage, "check_room", refuses)
        raise ShellError("the disk came to its end")

    monkeypatch.setattr(LinuxStage, "write", fails)
    with pytest.raises(ImagingError, match="write-protected now; 0 bytes written, target is incomplete") as error:
        client.flash(image(tmp_path, 6)[0])
    assert error.value.code == "permission"


def test_image_that_does_not_arrive_is_no_reason_to_boot_the_board_again(
    bench: tuple[Any, BaseFlasher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, driver = bench
    driver.retries = 3

    async def gone(self: Any, *_: Any) -> Any:
        raise ConnectionError("the way to the client is gone")

    monkeypatch.setattr(BaseFlasher, "_take_in", gone)
    with pytest.raises(ImagingError, match="the image did not arrive: the way to the client is gone; nothing was"):
        client.flash(image(tmp_path, 7)[0])
    power: Any = driver.children["power"]
    assert power.count == 1 and power.board is None


def test_session_that_ends_during_a_flash_leaves_the_board_off(
    bench: tuple[Any, BaseFlasher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, driver = bench
    writing = threading.Event()

    async def waits(self: LinuxStage, *_: Any) -> None:
        writing.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(LinuxStage, "write", waits)
    with ThreadPoolExecutor() as pool:
        flash = pool.submit(client.flash, image(tmp_path, 8)[0])
        assert writing.wait(20)
        driver.close()
        power: Any = driver.children["power"]
        assert power.board is None and left(tmp_path) == [], "all of it when close returns"
        with pytest.raises(ImagingError, match="the session ended; the target is incomplete"):
            flash.result(10)


def test_busybox_shell(bench: tuple[Any, BaseFlasher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake: U-Boot; the real one boots a real kernel in test_flasher_boot_to_ram."""
    client, driver = bench

    def reboot(self: ExporterShell, timeout: float) -> None:
        self._client.call("reboot_to_prompt", 0.0, timeout)  # a fake has no capacitors

    monkeypatch.setattr(ExporterShell, "reboot", reboot)
    power: Any = driver.children["power"]
    power.program = [sys.executable, str(Path(__file__).with_name("fake_uboot.py")), str(tmp_path / "tftp")]
    plain = FULL.replace("username: root, password: secret, ", "")
    (tmp_path / "bundle" / "manifest.yaml").write_text(plain)
    with client.busybox_shell() as serial, serial.pexpect() as console:
        console.sendline("echo it is $((40 + 2))")
        console.expect_exact("it is 42", timeout=10)
        assert client.tftp.status()["running"]
    for command in ("tftpboot 0x82000000 Image", "tftpboot 0x84000000 evm.dtb", "booti 0x82000000 - 0x84000000"):
        assert command in log(driver)
    assert power.board is not None, "the board stays on"
    assert not client.tftp.status()["running"] and not client.http.status()["running"]

    result = CliRunner().invoke(client.cli(), ["busybox-shell"], input="echo from $((6 * 7))\n")
    assert result.exit_code == 0 and "from 42" in result.output, f"{result.output}{result.exception}"

    monkeypatch.setattr(client_module, "_BOOT_SECONDS", 1)
    for text, message in (
        (plain.replace('prompt: "#"', 'prompt: "never>"'), "shell (prompt 'never>')"),
        (FULL, "login prompt 'login:'"),
    ):
        (tmp_path / "bundle" / "manifest.yaml").write_text(text)
        with pytest.raises(TimeoutError, match=re.escape(f"no {message} of the flasher system within 1 s")):
            with client.busybox_shell():
                raise AssertionError("there is no such prompt")
