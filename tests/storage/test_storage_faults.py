# SPDX-License-Identifier: Apache-2.0
"""What goes wrong half way is told with the state the target is in, stops the writing, and spoils the record."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from storage_helpers import MIB, loop_device, pack

from jumpstarter.client.aio import AsyncNode
from jumpstarter.client.flasher import node_of
from jumpstarter.client.imaging import ImagingError, flash
from jumpstarter.common.exceptions import DriverError
from jumpstarter.common.storage import MAGIC, Extent, data_header, end_header
from jumpstarter_driver_storage import verify, writer
from jumpstarter_driver_storage.driver import BlockFlasher, FileFlasher

Client = Callable[[Any], Any]


def state(client: Any) -> str | None:
    """State of the record the exporter keeps."""
    record = client.call("flash_state")["record"]
    return record and record["state"]


def test_no_space_on_the_exporter(client: Client, mounted: Callable[..., Path], image: Path) -> None:
    disk = mounted("tmpfs", "tmpfs", "size=2m") / "disk"
    flasher = client(FileFlasher(path=str(disk), size="8MiB"))
    with pytest.raises(ImagingError, match="no space left.*bytes written, target is incomplete") as caught:
        flasher.flash(image)
    assert caught.value.code == "no_space"
    assert 0 < caught.value.written <= 2 * MIB
    assert state(flasher) == "incomplete"


def test_no_space_below_a_block_device(client: Client, mounted: Callable[..., Path], image: Path) -> None:
    """The device claims 8 MiB, its backing file system has 2: the write fails late, at the sync, and is not missed."""
    backing = mounted("tmpfs", "tmpfs", "size=2m") / "thin"
    with open(backing, "wb") as file:
        file.truncate(8 * MIB)
    path = subprocess.run(
        ["losetup", "--find", "--show", str(backing)], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        flasher = client(BlockFlasher(path=path))
        with pytest.raises(ImagingError, match="target is incomplete"):
            flasher.flash(image)
        assert state(flasher) == "incomplete"
    finally:
        subprocess.run(["losetup", "--detach", path], check=True)


def test_a_record_is_invalid_from_the_first_write_on(
    client: Client, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flasher = client(FileFlasher(path=str(tmp_path / "disk")))
    flasher.flash(image)
    seen: list[str | None] = []

    def failing(fd: int, offset: int, data: memoryview) -> None:
        seen.append(state(flasher))
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(writer, "_write_all", failing)
    with pytest.raises(ImagingError, match="Input/output error; 0 bytes written, target is incomplete") as caught:
        flasher.flash(image, force=True)
    assert caught.value.code == "io"
    assert seen == ["incomplete"]
    assert state(flasher) == "incomplete"


def test_a_medium_that_does_not_keep_what_was_written(
    client: Client, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = writer._write_all

    def lossy(fd: int, offset: int, data: memoryview) -> None:
        real(fd, offset, data)
        if offset == MIB:
            os.pwrite(fd, b"\0", offset + 5)

    monkeypatch.setattr(writer, "_write_all", lossy)
    flasher = client(FileFlasher(path=str(tmp_path / "disk")))
    with pytest.raises(ImagingError, match="1 blocks of 1.0 MiB read back differently.*byte 1048576") as caught:
        flasher.flash(image)
    assert caught.value.code == "verify_failed"
    assert state(flasher) == "incomplete"


def test_verification_reads_the_medium_and_not_the_page_cache(
    client: Client, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage below a block device, in its backing file, is invisible in the device's page cache."""
    with loop_device(tmp_path / "card", 8 * MIB) as path:
        flasher = client(BlockFlasher(path=path))
        flasher.flash(image)
        with open(path, "rb") as device:  # now it is in the cache
            clean = device.read(4096)
            with open(tmp_path / "card", "r+b") as below:
                below.write(b"\xff" * 100)
                below.flush()
                os.fsync(below.fileno())
            device.seek(0)
            assert os.pread(device.fileno(), 4096, 0) == clean
            result = flasher.flash(image)
    assert (result.changed, result.repaired_blocks) == (True, 1)


def test_bad_blocks_needs_a_digest_for_every_block(tmp_path: Path) -> None:
    from jumpstarter_driver_storage.target import Target, check

    path = tmp_path / "disk"
    path.write_bytes(bytes(10))
    with pytest.raises(ValueError, match="0 digests for an image of 1 blocks"):
        verify.bad_blocks(check("disk", Target.parse("disk", str(path)), "storage"), 10, b"")


# --- a client that goes away -------------------------------------------------------------------------------------


@asynccontextmanager
async def half_a_flash(node: AsyncNode, options: dict[str, Any]) -> AsyncIterator[tuple[Any, Any]]:
    """A flash of 64 MiB of which 2 MiB were sent and written: the stream, and the events that follow."""
    async with node.resource_stream() as (stream, handle):
        async with aclosing(node.streamingcall("flash_image", handle, None, options)) as events:
            sending = asyncio.create_task(send_half(stream))
            async for event in events:
                if event["event"] == "progress" and event["phase"] == "writing":
                    break
            await sending
            yield stream, events


async def send_half(stream: Any) -> None:
    noise = random.Random(5)
    await stream.send(MAGIC)
    await stream.send(data_header(Extent(0, 64 * MIB)))
    await stream.send(noise.randbytes(MIB))
    await stream.send(noise.randbytes(MIB))


def in_loop(client: Any, function: Callable[[], Awaitable[Any]]) -> Any:
    return client.portal.call(function)


def test_a_client_that_breaks_off_gets_told_and_the_record_is_invalid(client: Client, tmp_path: Path) -> None:
    flasher = client(FileFlasher(path=str(tmp_path / "disk")))

    async def run() -> list[dict[str, Any]]:
        async with half_a_flash(node_of(flasher), {"framing": "sparse"}) as (stream, events):
            await stream.reset()
            rest = []
            with pytest.raises(DriverError, match="the client stopped sending"):
                async for event in events:
                    rest.append(event)
            return rest

    last = in_loop(flasher, run)[-1]
    assert (last["event"], last["code"]) == ("error", "broken")
    assert last["state"] == f"{last['written']} bytes written, target is incomplete"
    assert 0 < last["written"] <= 2 * MIB
    assert state(flasher) == "incomplete"


@pytest.mark.parametrize("cut", ["stream ended", "end header of another size"])
def test_a_stream_that_ends_early_is_no_success(client: Client, tmp_path: Path, cut: str) -> None:
    flasher = client(FileFlasher(path=str(tmp_path / "disk")))

    async def run() -> None:
        async with half_a_flash(node_of(flasher), {"framing": "sparse"}) as (stream, events):
            if cut != "stream ended":
                await stream.send(bytes(62 * MIB))
                await stream.send(end_header(1))
            await stream.send_eof()
            async for _ in events:
                pass

    with pytest.raises(DriverError, match="bad image.*target is incomplete"):
        in_loop(flasher, run)
    assert state(flasher) == "incomplete"


def test_a_cancelled_flash_stops_writing_and_the_next_one_works_at_once(
    client: Client, image: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    driver = FileFlasher(path=str(disk))
    flasher = client(driver)
    flasher.flash(image)

    async def run() -> None:
        async with half_a_flash(node_of(flasher), {"framing": "sparse", "verify": False}):
            pass  # leaving cancels the call

    in_loop(flasher, run)
    result = flasher.flash(image)
    assert (result.changed, result.reason) == (True, "the last flash of the target was not completed")
    assert disk.read_bytes() == image.read_bytes()
    assert not driver._operations


def test_cancelling_the_task_of_a_flash_ends_it_on_both_sides(client: Client, tmp_path: Path) -> None:
    """The image is large and the client is cancelled at the first sign of progress."""
    source = tmp_path / "large"
    source.write_bytes(random.Random(9).randbytes(MIB) * 96)
    driver = FileFlasher(path=str(tmp_path / "disk"))
    flasher = client(driver)

    async def run() -> None:
        started = asyncio.Event()
        loop = asyncio.get_running_loop()

        def progress(step: Any) -> None:
            if step.phase == "writing":
                loop.call_soon(started.set)

        task = asyncio.create_task(flash(node_of(flasher), source, progress=progress))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    in_loop(flasher, run)
    small = tmp_path / "small"
    small.write_bytes(b"small" * 1000)
    assert flasher.flash(small).changed  # waits for the cancelled one
    assert (tmp_path / "disk").read_bytes() == b"small" * 1000
    assert not driver._operations


def test_two_flashes_at_a_time_of_one_target(client: Client, image: Path, tmp_path: Path) -> None:
    """Two exporters that declare the same file: the second is refused while the first writes."""
    first = client(FileFlasher(path=str(tmp_path / "disk")))
    second = client(FileFlasher(path=str(tmp_path / "disk")))
    refused: list[ImagingError] = []

    async def run() -> None:
        async with half_a_flash(node_of(first), {"framing": "sparse"}):
            try:
                await asyncio.to_thread(second.flash, image)
            except ImagingError as error:
                refused.append(error)

    in_loop(first, run)
    assert refused and "is being written by another flash; nothing was written" in str(refused[0])
    assert refused[0].code == "busy"


def test_a_source_that_changes_while_it_is_read_is_no_success(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUMPSTARTER_DATA_OVER_GRPC", "1")
    source = tmp_path / "source"
    source.write_bytes(random.Random(4).randbytes(3 * MIB))
    flasher = client(FileFlasher(path=str(tmp_path / "disk")))
    real = os.pread

    def pread(fd: int, length: int, offset: int) -> bytes:
        if length == MIB and offset == 2 * MIB:
            os.utime(source, ns=(1, 1))
        return real(fd, length, offset)

    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(ImagingError, match="was changed while it was being read; .*target is incomplete") as caught:
        flasher.flash(source)
    assert caught.value.code == "source"
    assert state(flasher) == "incomplete"


def test_an_exporter_that_is_killed_in_the_middle(tmp_path: Path) -> None:
    """The client names the exporter and what was done; the record on the exporter stays invalid."""
    disk, socket = tmp_path / "disk", tmp_path / "exporter.sock"
    source = tmp_path / "large"
    source.write_bytes(random.Random(9).randbytes(MIB) * 96)
    script = """
import asyncio, sys
from jumpstarter.exporter.server import UnixListener, serve_session
from jumpstarter.exporter.session import Session
from jumpstarter.common.enums import ExporterStatus
from jumpstarter_driver_storage.driver import FileFlasher

async def main():
    with Session(root_device=FileFlasher(path=sys.argv[1])) as session:
        async with serve_session(session, UnixListener(sys.argv[2]), grace=0):
            session.update_status(ExporterStatus.LEASE_READY)
            print("READY", flush=True)
            await asyncio.Event().wait()

asyncio.run(main())
"""
    exporter = subprocess.Popen(
        [sys.executable, "-c", script, str(disk), str(socket)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert exporter.stdout is not None and exporter.stdout.readline() == "READY\n"

        async def run() -> None:
            from jumpstarter.client.aio import connect

            def progress(step: Any) -> None:
                if step.phase == "writing":
                    exporter.send_signal(signal.SIGKILL)

            async with connect(str(socket)) as session:
                await asyncio.wait_for(flash(session.root, source, progress=progress, where="boards/x.yaml"), 10)

        wanted = r"went away.*\(exporter boards/x.yaml\); about \d+ bytes done"
        with pytest.raises(ImagingError, match=wanted) as caught:
            asyncio.run(run())
        assert caught.value.code == "exporter_lost"
    finally:
        exporter.kill()
        exporter.wait()
        assert exporter.stdout is not None
        exporter.stdout.close()
    (record,) = (tmp_path / "state" / "jumpstarter-lab" / "storage").glob("*.json")
    assert '"state": "incomplete"' in record.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source_size": 200_000}, "100000 bytes arrived, the sender announced 200000"),
        ({"size": 200_000}, "image has 100000 bytes, the sender announced 200000"),
        ({"sha256": "0" * 64}, "the sender announced 0000"),
        ({"source_size": 0}, "100000 bytes arrived, the sender announced 0"),
    ],
)
def test_what_the_sender_announced_must_arrive(
    client: Client, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    flasher = client(FileFlasher(path=str(tmp_path / "disk")))

    async def run() -> None:
        async with node_of(flasher).resource_stream() as (stream, handle):
            events = node_of(flasher).streamingcall("flash_image", handle, None, options)
            await stream.send(b"x" * 100_000)
            await stream.send_eof()
            async for _ in events:
                pass

    with pytest.raises(DriverError, match=f"{message}.*; 100000 bytes written, target is incomplete"):
        in_loop(flasher, run)
    assert state(flasher) == "incomplete"


def test_a_repair_takes_only_blocks_of_the_image_that_was_flashed(client: Client, image: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    flasher = client(FileFlasher(path=str(disk)))
    flasher.flash(image)
    before = disk.read_bytes()
    messages = {
        "block 0 of the image differs from the one that was flashed; nothing was written": random.randbytes(MIB),
        "1 of the blocks to repair did not arrive; nothing was written": b"",
    }
    for message, block in messages.items():

        async def run(block: bytes = block) -> None:
            async with node_of(flasher).resource_stream() as (stream, handle):
                options = {"framing": "sparse", "repair": [[0, 1]]}
                events = node_of(flasher).streamingcall("flash_image", handle, None, options)
                await stream.send(MAGIC)
                if block:
                    await stream.send(data_header(Extent(0, len(block))))
                    await stream.send(block)
                await stream.send(end_header(len(before)))
                await stream.send_eof()
                async for _ in events:
                    pass

        with pytest.raises(DriverError, match=message):
            in_loop(flasher, run)
    assert disk.read_bytes() == before
    assert state(flasher) == "valid"


def test_the_exporter_itself_refuses_what_is_too_large(client: Client, tmp_path: Path) -> None:
    """Without help of the client library, before the first byte, when the size is announced."""
    flasher = client(FileFlasher(path=str(tmp_path / "disk"), size="4MiB"))

    async def run() -> None:
        events = node_of(flasher).streamingcall(
            "flash_image", None, None, {"framing": "sparse", "size": 5 * MIB, "data": {"kind": "unix"}}
        )
        async for _ in events:
            pass

    with pytest.raises(DriverError, match="image is 5.0 MiB, target .* holds 4.0 MiB; nothing was written"):
        in_loop(flasher, run)
    assert not (tmp_path / "disk").exists()


def test_a_failed_compressed_flash_reports_what_was_written(client: Client, image: Path, tmp_path: Path) -> None:
    """Sent behind the client library's back: the exporter itself refuses truncated data of every kind."""
    flasher = client(FileFlasher(path=str(tmp_path / "disk")))
    for tool, name in (("xz", "xz"), ("gzip", "gzip"), ("bzip2", "bz2"), ("zstd", "zstd")):
        data = pack(image, tool).read_bytes()[:-7]

        async def run(data: bytes = data, name: str = name) -> None:
            node = node_of(flasher)
            async with node.resource_stream() as (stream, handle):
                events = node.streamingcall("flash_image", handle, None, {"compression": name})
                await stream.send(data)
                await stream.send_eof()
                async for _ in events:
                    pass

        with pytest.raises(DriverError, match=f"{name} data is truncated.*target is incomplete"):
            in_loop(flasher, run)
        assert state(flasher) == "incomplete"
