# SPDX-License-Identifier: Apache-2.0
"""Registries and boards that mean harm or fall apart, and cancellations at the worst moment."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import tarfile
import threading
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from fake_registry import HostileRegistry, hostile_registry

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_driver_flashers import bundle, driver, images, run_base
from jumpstarter_driver_flashers.bundle import BundleStore
from jumpstarter_driver_flashers.job import end, finish
from jumpstarter_driver_flashers.uboot_stage import BlockDevice, UbootStage
from jumpstarter_driver_storage.errors import StorageRefused, TransferBroken
from jumpstarter_driver_storage.feeder import Feeder
from jumpstarter_driver_storage.flasher import feed
from jumpstarter_driver_storage.job import FlashOptions
from jumpstarter_driver_storage.oci import Reference, Registry, find_credentials
from jumpstarter_driver_storage.oci_flash import OciFlasher, _Blob, _blob_stream
from jumpstarter_driver_storage.operation import Operation
from jumpstarter_driver_uboot.link import PromptLink, Result, UbootError


@pytest.fixture
def hostile() -> Iterator[HostileRegistry]:
    with hostile_registry() as registry:
        yield registry


def of(registry: HostileRegistry) -> Registry:
    return Registry(Reference.parse(f"{registry.host}/lab/x"), None, insecure=True)


class NoTargets(OciFlasher):
    def storage_targets(self) -> dict[str, Any]:
        return {}


# --- logins -------------------------------------------------------------------------------------------------------


def test_login_goes_to_the_configured_registry_and_to_none_a_client_names(
    hostile: HostileRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OCI_USERNAME", "lab")
    monkeypatch.setenv("OCI_PASSWORD", "s3cret-word")
    hostile.asks_for_login = True
    name = f"{hostile.host}/lab/x:v1"
    options: dict[str, Any] = {"insecure_registries": [hostile.host], "username": "lab", "password": "s3cret-word"}
    for home in ("registry.example/lab/flasher:v1", str(tmp_path), None):
        with pytest.raises(PermissionError, match="to anybody without login"):
            BundleStore(tmp_path, home=home, **options).open(name, "manifest.yaml")
    flasher = NoTargets(insecure_registries=[hostile.host])
    with pytest.raises(StorageRefused, match="to anybody without login"):
        flasher._look_up(f"oci://{name}", (None, None))
    assert hostile.seen == []
    with pytest.raises(PermissionError, match="to the login 'lab'|refuses"):
        BundleStore(tmp_path, home=name, **options).open(name, "manifest.yaml")
    assert hostile.seen, "its own registry gets it"
    assert find_credentials(Reference.parse(name)) is not None


@pytest.mark.parametrize("name", ["r.example/a/../b", "r.example/a//b", "r.example/a/./b", "r.example/../../v2/x"])
def test_reference_does_not_lead_elsewhere(name: str) -> None:
    with pytest.raises(ValueError, match="is no OCI reference"):
        Reference.parse(name)


# --- what registries send -----------------------------------------------------------------------------------------


def test_blob_that_is_larger_than_announced_ends_there(hostile: HostileRegistry, tmp_path: Path) -> None:
    hostile.blob, hostile.announced = bytes(5 << 20), 1 << 20
    registry = of(hostile)
    with pytest.raises(ValueError, match="is larger than its 1048576 bytes"):
        registry.download(registry.artifact().layers[0], tmp_path / "blob")
    assert (tmp_path / "blob").stat().st_size <= 1 << 20


def test_cancelling_does_not_wait_for_a_registry_that_drips(hostile: HostileRegistry) -> None:
    hostile.blob, hostile.drips = bytes(2 << 20), True

    async def test() -> None:
        registry = of(hostile)
        layer = (await asyncio.to_thread(registry.artifact)).layers[0]
        async with asyncio.timeout(10), _blob_stream(_Blob(registry, layer)) as stream:
            receiving = asyncio.create_task(stream.raw().receive())
            assert await asyncio.to_thread(hostile.dripping.wait, 5)
            receiving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await receiving

    asyncio.run(test())


def test_cancelling_before_the_registry_answers_does_not_wait_for_its_drips(hostile: HostileRegistry) -> None:
    hostile.blob, hostile.drips, hostile.hesitates = bytes(2 << 20), True, threading.Event()

    async def test() -> None:
        registry = of(hostile)
        layer = (await asyncio.to_thread(registry.artifact)).layers[0]
        async with asyncio.timeout(20), _blob_stream(_Blob(registry, layer)) as stream:
            receiving = asyncio.create_task(stream.raw().receive())
            assert await asyncio.to_thread(hostile.asked.wait, 5)
            receiving.cancel()
            while not registry._stopped:
                await asyncio.sleep(0)
            receiving.cancel()  # while it waits for its thread; the impatient ask twice
            with pytest.raises(asyncio.CancelledError):
                await receiving
            assert hostile.hesitates is not None
            hostile.hesitates.set()

    asyncio.run(test())


def test_archive_that_breaks_off_is_an_error_and_no_hang(hostile: HostileRegistry) -> None:
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        info = tarfile.TarInfo("os.img")
        info.size = 1 << 20
        archive.addfile(info, BytesIO(os.urandom(1 << 20)))
    hostile.media_type = "application/vnd.oci.image.layer.v1.tar+gzip"

    async def take(blob: bytes) -> None:
        hostile.blob = blob
        registry = of(hostile)
        layer = (await asyncio.to_thread(registry.artifact)).layers[0]
        feeder = Feeder()
        async with asyncio.timeout(10), _blob_stream(_Blob(registry, layer)) as stream:
            async with asyncio.TaskGroup() as group:
                group.create_task(feed(stream.raw(), feeder))
                with pytest.raises(TransferBroken, match="archive"):
                    await asyncio.to_thread(lambda: [None for _ in feeder])

    for cut in (packed.getvalue()[:-300_000], b"\x28\xb5\x2f\xfd no such packing", packed.getvalue()[:100]):
        asyncio.run(take(cut))


def test_files_of_one_name_and_what_a_killed_exporter_left(hostile: HostileRegistry, tmp_path: Path) -> None:
    hostile.titles = ["a", "a"]
    dead, held = (tmp_path / "bundles" / name for name in (".partial-dead", ".partial-held"))
    for folder in (dead, held):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"x")
    fd = os.open(held, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        with pytest.raises(ConfigurationError, match="its file name 'a' is there twice"):
            BundleStore(tmp_path, insecure_registries=[hostile.host]).open(f"{hostile.host}/lab/x", "manifest.yaml")
    finally:
        os.close(fd)
    assert list((tmp_path / "bundles").iterdir()) == [held]


# --- streams, threads and tasks -----------------------------------------------------------------------------------


def test_error_of_any_kind_reaches_the_thread_that_waits() -> None:
    class Odd(Exception):
        pass

    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"
        raise Odd

    async def test() -> None:
        feeder = Feeder()
        await feed(chunks(), feeder)
        with pytest.raises(TransferBroken, match="Odd"):
            list(feeder)

    asyncio.run(test())


def test_cancellation_that_comes_with_the_end_is_not_lost() -> None:
    """Who is cancelled in the very moment in which what it waits for ends must still be cancelled."""

    async def stopping() -> None:
        go = threading.Event()
        operation = Operation("test", lambda notify: go.wait(10), lambda: None)
        task = asyncio.create_task(operation.stop())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        go.set()
        operation._thread.join(10)
        operation._done.set()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def finishing() -> None:
        end = asyncio.Event()
        task = asyncio.create_task(finish(end.wait()))
        for _ in range(3):
            await asyncio.sleep(0)
        end.set()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(stopping())
    asyncio.run(finishing())


# --- U-Boot -------------------------------------------------------------------------------------------------------


class ScriptedPrompt:
    """Fake: answers of a U-Boot by command."""

    def __init__(self, answers: dict[str, list[str]]) -> None:
        self._answers = answers

    async def run(self, command: str, timeout: float) -> Result:
        return Result(0, self._answers.get(command, []))


def test_block_size_is_never_guessed() -> None:
    """4096 byte blocks addressed as 512 byte ones would be written, and read back, at the wrong places."""

    async def find(text: str, answers: dict[str, list[str]]) -> BlockDevice:
        link: Any = ScriptedPrompt(answers)
        return await UbootStage(link, lambda *_: None).find(BlockDevice.parse(text))

    found = asyncio.run(find("nvme 0", {"nvme dev 0": ["Capacity: 64.0 MB (16384 x 4096)"]}))
    assert (found.block_size, found.blocks) == (4096, 16384)
    with pytest.raises(UbootError, match="U-Boot does not tell the block size of scsi 0: is now current device"):
        asyncio.run(find("scsi 0", {"scsi dev 0": ["is now current device"]}))
    assert asyncio.run(find("mmc 0", {"mmc dev 0": ["mmc0 is current device"]})).block_size == 512


# --- threads and tasks that somebody still waits for ---------------------------------------------------------------


def test_an_image_is_not_swept_away_before_it_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another exporter with the same cache looks for left-overs between the making of a file and its lock."""
    cache = images.ImageCache(tmp_path, 1 << 20)
    lock = fcntl.flock
    swept: list[str] = []

    def late(fd: int, how: int) -> None:
        if not swept and how == fcntl.LOCK_EX:
            swept.extend(path.name for path in cache.folder.glob(".incoming-*"))
            cache._sweep()
        lock(fd, how)

    monkeypatch.setattr(images.fcntl, "flock", late)
    image = images.Intake(cache, FlashOptions()).run([b"image" * 1000])
    assert len(swept) == 1
    assert cache.find(image.sha256) is not None
    assert not list(cache.folder.glob(".incoming-*"))


@pytest.mark.parametrize("when", ["before it is opened", "before it is locked"])
def test_a_bundle_is_not_swept_away_before_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    store = BundleStore(tmp_path)
    store._folder.mkdir()
    swept: list[Path] = []

    def sweep(path: Path) -> None:
        if not swept:
            swept.append(path)
            store._sweep()
            assert not path.exists()

    if when == "before it is opened":
        make = bundle.tempfile.mkdtemp

        def made(**arguments: Any) -> str:
            path = make(**arguments)
            sweep(Path(path))
            return path

        monkeypatch.setattr(bundle.tempfile, "mkdtemp", made)
    else:
        lock = fcntl.flock

        def late(fd: int, how: int) -> None:
            if how == fcntl.LOCK_EX:
                sweep(Path(os.readlink(f"/proc/self/fd/{fd}")))
            lock(fd, how)

        monkeypatch.setattr(bundle.fcntl, "flock", late)
    partial, held = store._new_partial()
    try:
        assert swept and partial.is_dir() and partial not in swept
        store._sweep()
        assert partial.is_dir()
    finally:
        os.close(held)


def test_a_file_for_the_board_is_removed_also_when_its_thread_was_not_done_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, root = tmp_path / "kernel", tmp_path / "tftp"
    source.write_bytes(b"kernel")
    begun, go_on = threading.Event(), threading.Event()
    copy = shutil.copyfile

    def slow(*arguments: Any) -> None:
        begun.set()
        assert go_on.wait(20)
        copy(*arguments)

    monkeypatch.setattr(run_base.shutil, "copyfile", slow)
    nothing: Any = None
    run = run_base.RunBase(nothing, nothing, nothing, nothing, nothing)

    async def placing() -> None:
        try:
            await run._place(root, source)
        finally:
            for path in run._placed:
                path.unlink(missing_ok=True)

    async def test() -> None:
        task = asyncio.create_task(placing())
        assert await asyncio.to_thread(begun.wait, 20)
        task.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(test())  # its end waits for the threads
    assert list(root.iterdir()) == []


def test_ending_a_task_goes_on_through_cancellations() -> None:
    async def test() -> None:
        leave = asyncio.Event()
        left: list[bool] = []

        async def board() -> None:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                await leave.wait()
                left.append(True)

        task = asyncio.create_task(board())
        await asyncio.sleep(0)
        ending = asyncio.create_task(end(task))
        for _ in range(3):
            await asyncio.sleep(0)
            ending.cancel()
        await asyncio.sleep(0)
        assert not ending.done()
        leave.set()
        with pytest.raises(asyncio.CancelledError):
            await ending
        assert left == [True]

    asyncio.run(test())


def test_the_end_of_a_session_does_not_interrupt_the_leaving_of_a_board() -> None:
    """A flash that was cancelled switches the board off; the session's end waits for that, and does not cancel it."""

    async def test() -> None:
        leave = asyncio.Event()
        left: list[bool] = []

        async def board() -> dict[str, Any]:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                await leave.wait()
                left.append(True)
            return {}

        run = asyncio.create_task(board())
        await asyncio.sleep(0)
        run.cancel()
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(driver._end, run, 20.0))
        while not run._callbacks:  # type: ignore[attr-defined]  # it waits
            await asyncio.sleep(0.01)
        leave.set()
        await closing
        assert left == [True]

    asyncio.run(test())


def test_a_cancellation_is_not_lost_when_the_prompt_comes_at_the_same_time() -> None:
    class Console:
        head = 0

        async def wait_open(self, timeout: float) -> None:
            return

    class Link(PromptLink):
        async def _press_keys(self) -> None:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                caller.cancel()
                await asyncio.sleep(0)
                raise

        async def _more(self, timeout: float | None) -> None:
            await asyncio.sleep(0)
            self._seen = b"=> "

    async def test() -> None:
        nonlocal caller
        console: Any = Console()
        writer: Any = None
        caller = asyncio.create_task(Link(console, writer, "=>").interrupt(20))
        with pytest.raises(asyncio.CancelledError):
            await caller

    caller: asyncio.Task[str | None]
    asyncio.run(test())
