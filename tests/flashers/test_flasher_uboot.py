# SPDX-License-Identifier: Apache-2.0
"""Flashing by U-Boot alone, on the real one: what is written, what is proven, and what is left when it fails."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from flasher_boards import DISK_SIZE, image, left_over, sha256_of
from test_flasher_bundles import small_bundle

from jumpstarter.client.flasher import node_of
from jumpstarter.client.imaging import ImagingError, Progress
from jumpstarter.common.exceptions import DriverError

SMALL = 3 << 20


def is_off(client: Any) -> bool:
    return bool(client.qemu.call("info")["state"] == "off")


def test_image_is_on_the_disk_verified_and_not_written_twice(served: Callable[..., Any], tmp_path: Path) -> None:
    client, _ = served(uboot_chunk="1M")
    source = image(tmp_path, SMALL)
    packed = tmp_path / "os image $(reboot)'\".img.gz"
    packed.write_bytes(gzip.compress(source.read_bytes(), 1))
    phases: list[Progress] = []
    first = client.storage.flash(packed, progress=phases.append)
    disk = (tmp_path / "disk.img").read_bytes()
    assert disk[:SMALL] == source.read_bytes() and disk[SMALL:] == b"\xa5" * (DISK_SIZE - SMALL)
    assert (first.changed, first.verified, first.sha256) == (True, True, sha256_of(source))
    assert first.target == "disk" and first.written_bytes == first.size == SMALL
    assert any(one.phase == "writing" and one.done == one.total for one in phases)
    assert is_off(client) and left_over(tmp_path) == []

    again = client.storage.flash(packed)
    assert (again.changed, again.verified, again.sha256) == (False, True, first.sha256)

    with open(tmp_path / "disk.img", "r+b") as file:  # what a board does to its disk between two flashes
        file.seek(2 << 20)
        file.write(b"scribble")
    mended = client.storage.flash(packed, power_off=False)
    assert mended.changed and mended.verified and sha256_of(tmp_path / "disk.img", SMALL) == first.sha256
    assert not is_off(client), "power_off=False leaves it as it is"
    assert left_over(tmp_path) == []


def test_disk_that_only_pretends_to_write_is_found_out(
    served: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, tree = served(retries=2, uboot_chunk="2M")
    # QEMU's null device takes every write and reads as zeros.
    extra = tree.children["qemu"].extra_args
    extra[:2] = ["-blockdev", f"driver=null-co,node-name=target,size={DISK_SIZE},read-zeroes=on"]
    with pytest.raises(ImagingError, match=r"verification failed: bytes 0 to .*the last of 2 attempts") as error:
        client.storage.flash(image(tmp_path, SMALL))
    assert "target is incomplete" in str(error.value) and is_off(client) and left_over(tmp_path) == []
    state = client.storage.call("flash_state")
    assert state["record"]["state"] == "incomplete", "what it holds is not believed any more"


def test_power_cut_while_writing_is_an_error_after_all_attempts(served: Callable[..., Any], tmp_path: Path) -> None:
    client, tree = served(retries=2, uboot_chunk="1M", uboot_timeout=20)
    cuts: list[threading.Thread] = []
    machine = tree.children["qemu"]

    def cut(progress: Progress) -> None:
        if progress.phase == "writing" and 0 < progress.done < SMALL and machine.running and not any_alive(cuts):
            cuts.append(threading.Thread(target=machine.halt))
            cuts[-1].start()

    with pytest.raises(ImagingError, match=r"the console went away.*the last of 2 attempts") as error:
        client.storage.flash(image(tmp_path, SMALL), progress=cut)
    for thread in cuts:
        thread.join(10)
    assert len(cuts) >= 2 and "target is incomplete" in str(error.value)
    assert is_off(client) and left_over(tmp_path) == []


def any_alive(threads: list[threading.Thread]) -> bool:
    return any(thread.is_alive() for thread in threads)


def test_image_that_does_not_fit_or_is_broken_is_refused_before_the_first_write(
    served: Callable[..., Any], tmp_path: Path
) -> None:
    client, _ = served()
    large = tmp_path / "large.img"
    with open(large, "wb") as file:
        file.truncate(DISK_SIZE + 512)
    with pytest.raises(ImagingError, match=r"holds 67108864 bytes; nothing was written") as error:
        client.storage.flash(large)
    assert error.value.code == "too_large" and is_off(client)

    wrong = {"framing": "plain", "compression": None, "sha256": "0" * 64}
    events: list[Any] = []

    async def send() -> None:
        node = node_of(client.storage)
        async with node.resource_stream() as (stream, handle):
            await stream.send(b"not what was announced")
            await stream.send_eof()
            async for event in node.streamingcall("flash_image", handle, None, wrong):
                events.append(event)

    with pytest.raises(DriverError, match="the sender announced 0000"):
        client.storage.portal.call(send)
    assert events[-1]["code"] == "bad_image" and events[-1]["state"] == "nothing was written"
    assert (tmp_path / "disk.img").read_bytes() == b"\xa5" * DISK_SIZE
    assert is_off(client) and left_over(tmp_path) == []
    assert not list((tmp_path / "cache" / "images").glob(".incoming-*"))


def test_missing_file_and_damaged_file_on_the_tftp_server_fail_clearly(
    served: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, tree = served(retries=1, uboot_chunk="2M")
    flasher = tree.children["storage"]
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setattr(flasher, "tftp_root", lambda: elsewhere)
    with pytest.raises(ImagingError, match=r"U-Boot command 'tftpboot 0x\w+ jl-\w+-1' failed.*(not found|File)"):
        client.storage.flash(image(tmp_path, SMALL))
    monkeypatch.undo()
    import jumpstarter_driver_flashers.pieces as pieces

    monkeypatch.setattr(pieces.zlib, "crc32", lambda data: 0x12345678)
    with pytest.raises(ImagingError, match=r"arrived damaged in RAM \(crc32 \w{8}, not 12345678\)"):
        client.storage.flash(image(tmp_path, SMALL, seed=2))
    assert is_off(client) and left_over(tmp_path) == []


def test_cancelled_flash_leaves_the_board_off_and_nothing_behind(served: Callable[..., Any], tmp_path: Path) -> None:
    client, tree = served(uboot_chunk="1M")
    flasher = tree.children["storage"]

    class Enough(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.phase == "writing":
            raise Enough

    with pytest.raises(Enough):
        client.storage.flash(image(tmp_path, SMALL), progress=stop)
    for task in tuple(flasher._runs):  # the exporter ends it on its own, a moment later
        with pytest.raises(Exception):  # noqa: B017 - cancelled; what matters is that it has ended
            client.storage.portal.call(lambda task=task: task)
    deadline = threading.Event()
    for _ in range(200):
        if is_off(client) and not left_over(tmp_path):
            break
        deadline.wait(0.05)
    assert is_off(client) and left_over(tmp_path) == []
    assert client.storage.flash(image(tmp_path, SMALL)).verified, "the next one works at once"


def test_flash_command(served: Callable[..., Any], tmp_path: Path) -> None:
    client, _ = served()
    source = image(tmp_path, SMALL)
    result = CliRunner().invoke(client.storage.cli(), ["flash", str(source), "--target", "disk", "--retries", "1"])
    assert result.exit_code == 0, result.output
    assert f"disk: {SMALL} bytes written, sha256 {sha256_of(source)}, verified" in result.output
    assert sha256_of(tmp_path / "disk.img", SMALL) == sha256_of(source)
    for wrong, message in (
        (["flash", str(source), "-t", "nowhere"], 'has no target "nowhere"; targets: disk'),
        (["flash", str(source), "--force", "--method", "fls"], "method fls: needs fls_binary and fls_sha256"),
        (["flash", str(source), "--force", "--method", "shell"], "flasher_bundle: is not set"),
    ):
        failed = CliRunner().invoke(client.storage.cli(), wrong)
        assert failed.exit_code != 0 and message in f"{failed.output}{failed.exception}", failed


def test_bootloader_shell_has_the_bundles_files_within_reach(served: Callable[..., Any], tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    client, _ = served(flasher_bundle=str(bundle))
    script = f"setenv autoload no; dhcp\nsetenv serverip {client.storage.tftp.get_host()}\ntftpboot 0x40400000 Image\n"
    result = CliRunner().invoke(client.storage.cli(), ["bootloader-shell"], input=script)
    assert result.exit_code == 0, f"{result.output}{result.exception}"
    assert "Bytes transferred = 5000" in result.output
    assert not client.storage.tftp.status()["running"] and not client.storage.http.status()["running"]
