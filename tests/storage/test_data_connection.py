# SPDX-License-Identifier: Apache-2.0
"""The connection an image travels on beside gRPC: who gets it, who does not, and what happens without it."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from storage_helpers import MIB

from jumpstarter.client.aio import AsyncNode, connect
from jumpstarter.client.imaging import ImagingError, direct, flash
from jumpstarter.common.enums import ExporterStatus
from jumpstarter.common.exceptions import DriverError
from jumpstarter.common.storage import MAGIC, Extent, connection_proof, data_header, end_header
from jumpstarter.exporter.server import TcpListener, UnixListener, serve_session
from jumpstarter.exporter.session import Session
from jumpstarter_driver_storage import data as data_module
from jumpstarter_driver_storage import digest
from jumpstarter_driver_storage.driver import FileFlasher
from jumpstarter_driver_storage.job import FlashJob, FlashOptions
from jumpstarter_driver_storage.record import RecordStore
from jumpstarter_driver_storage.target import Target, check


@asynccontextmanager
async def exporter(driver: Any, listener: Any) -> AsyncIterator[AsyncNode]:
    with Session(root_device=driver) as session:
        async with serve_session(session, listener, grace=0) as (address,):
            session.update_status(ExporterStatus.LEASE_READY)
            async with connect(address, insecure=True) as remote:
                yield remote.root


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


def listeners(tmp_path: Path) -> dict[str, Any]:
    return {"tcp": TcpListener(insecure=True), "unix": UnixListener(str(tmp_path / "socket"))}


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_the_image_travels_on_its_own_connection(
    kind: str, tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    real = direct.connect_direct

    def watched(node: AsyncNode, offer: Any) -> socket.socket:
        used.append(offer["kind"])
        return real(node, offer)

    monkeypatch.setattr("jumpstarter.client.imaging.flashing.connect_direct", watched)

    async def scenario() -> None:
        async with exporter(FileFlasher(path=str(tmp_path / "disk")), listeners(tmp_path)[kind]) as node:
            assert (await flash(node, image)).changed

    run(scenario)
    assert used == [kind]
    assert (tmp_path / "disk").read_bytes() == image.read_bytes()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_without_a_way_beside_grpc_the_image_travels_inside(
    kind: str, tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(node: AsyncNode, offer: Any) -> socket.socket:
        raise direct.NoDirectWay("a firewall")

    monkeypatch.setattr("jumpstarter.client.imaging.flashing.connect_direct", unreachable)

    async def scenario() -> None:
        async with exporter(FileFlasher(path=str(tmp_path / "disk")), listeners(tmp_path)[kind]) as node:
            result = await flash(node, image)
            assert result.changed and result.verified

    run(scenario)
    assert (tmp_path / "disk").read_bytes() == image.read_bytes()


def test_strangers_get_nothing_and_do_not_keep_the_client_out(tmp_path: Path) -> None:
    noise = random.Random(6).randbytes(MIB)

    async def scenario() -> None:
        async with exporter(FileFlasher(path=str(tmp_path / "disk")), TcpListener(insecure=True)) as node:
            options = {"framing": "sparse", "data": {"kind": "tcp", "host": "127.0.0.1"}}
            async with aclosing(node.streamingcall("flash_image", None, None, options)) as events:
                offer = await anext(events)
                address = ("127.0.0.1", int(offer["port"]))
                answers: list[bytes] = []

                def strangers() -> None:
                    for greeting in (b"", b"GET / HTTP/1.0\r\n\r\n" + bytes(30), bytes(32)):
                        with socket.create_connection(address) as stranger, suppress(OSError):
                            stranger.sendall(greeting)
                            stranger.shutdown(socket.SHUT_WR)
                            answers.append(stranger.recv(100))

                await asyncio.to_thread(strangers)
                assert not any(answers)
                connection = await asyncio.to_thread(direct.connect_direct, node, offer)
                with connection:
                    connection.sendall(MAGIC + data_header(Extent(0, MIB)) + noise)
                    connection.shutdown(socket.SHUT_WR)
                    with pytest.raises(DriverError, match="data connection ended in the middle.*incomplete"):
                        async for _ in events:
                            pass
            with pytest.raises(OSError):  # the door is shut behind the one who came
                socket.create_connection(address)

    run(scenario)


def test_somebody_else_behind_a_forwarded_port_gets_no_image(tmp_path: Path) -> None:
    """The port leads to a stranger that accepts anything: the client must find out before it sends."""
    listener = socket.create_server(("127.0.0.1", 0))
    received: list[bytes] = []

    def stranger() -> None:
        connection, _ = listener.accept()
        with connection:
            received.append(connection.recv(100))
            connection.sendall(bytes(32))
            while more := connection.recv(1000):
                received.append(more)

    thread = threading.Thread(target=stranger)
    thread.start()
    token = os.urandom(32)

    async def scenario() -> None:
        async with exporter(FileFlasher(path=str(tmp_path / "disk")), TcpListener(insecure=True)) as node:
            offer = {"kind": "tcp", "port": listener.getsockname()[1], "token": token.hex()}
            with pytest.raises(direct.NoDirectWay, match="somebody else"):
                await asyncio.to_thread(direct.connect_direct, node, offer)

    run(scenario)
    thread.join()
    listener.close()
    assert received == [connection_proof(token, "client")]


def test_a_client_that_asks_and_never_connects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_module, "_ACCEPT", 0.05)
    disk = tmp_path / "disk"

    async def scenario() -> None:
        async with exporter(FileFlasher(path=str(disk)), UnixListener(str(tmp_path / "socket"))) as node:
            options = {"framing": "sparse", "data": {"kind": "unix"}}
            with pytest.raises(DriverError, match="did not open its data connection; nothing was written"):
                async for _ in node.streamingcall("flash_image", None, None, options):
                    pass

    run(scenario)
    assert not disk.exists() or disk.stat().st_size == 0


def test_the_unix_socket_has_no_file_and_goes_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with exporter(FileFlasher(path=str(tmp_path / "disk")), UnixListener(str(tmp_path / "socket"))) as node:
            options = {"framing": "sparse", "data": {"kind": "unix"}}
            async with aclosing(node.streamingcall("flash_image", None, None, options)) as events:
                name = (await anext(events))["name"]
                assert name.startswith("@") and name in Path("/proc/net/unix").read_text()
            # leaving cancels the call; the next one waits for its end
            with pytest.raises(DriverError, match="unknown kind of data connection"):
                async for _ in node.streamingcall("flash_image", None, None, {"data": {"kind": "pigeon"}}):
                    pass
            assert name not in Path("/proc/net/unix").read_text()

    run(scenario)


def test_a_cancelled_flash_leaves_no_thread_and_frees_the_target(tmp_path: Path, image: Path) -> None:
    source = tmp_path / "large"
    source.write_bytes(random.Random(9).randbytes(MIB) * 96)
    driver = FileFlasher(path=str(tmp_path / "disk"))

    async def scenario() -> None:
        async with exporter(driver, TcpListener(insecure=True)) as node:
            started = asyncio.Event()

            def progress(step: Any) -> None:
                if step.phase == "writing":
                    started.set()

            task = asyncio.create_task(flash(node, source, progress=progress))
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            result = await flash(node, image)
            assert result.reason == "the last flash of the target was not completed"

    run(scenario)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("flash-", "image-"))]
    assert (tmp_path / "disk").read_bytes() == image.read_bytes()


def test_a_client_that_cancels_and_keeps_its_connection_does_not_block_the_target(tmp_path: Path, image: Path) -> None:
    async def scenario() -> None:
        async with exporter(FileFlasher(path=str(tmp_path / "disk")), TcpListener(insecure=True)) as node:
            options = {"framing": "sparse", "data": {"kind": "tcp", "host": "127.0.0.1"}}
            async with aclosing(node.streamingcall("flash_image", None, None, options)) as events:
                connection = await asyncio.to_thread(direct.connect_direct, node, await anext(events))
                connection.sendall(MAGIC + data_header(Extent(0, 64 * MIB)) + bytes(100))
            with connection:
                assert (await flash(node, image)).changed

    run(scenario)


def test_a_buffer_is_not_used_again_before_it_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashing = threading.Event()
    released = 0

    class SlowHash:
        def update(self, data: Any) -> None:
            assert hashing.wait(30)

        def hexdigest(self) -> str:
            return "0" * 64

    class Chunks:
        def __iter__(self) -> Any:
            yield MAGIC
            yield data_header(Extent(0, 3 * MIB))
            for _ in range(3):
                yield memoryview(bytearray(b"x" * MIB))
            assert released <= 2, "chunks of data were released before they were hashed"
            hashing.set()
            yield end_header(3 * MIB)

        def release(self) -> None:
            nonlocal released
            released += 1

    monkeypatch.setattr(digest, "hashlib", SimpleNamespace(sha256=SlowHash))
    checked = check("disk", Target.parse("disk", str(tmp_path / "disk")), "storage")
    options = FlashOptions(framing="sparse", verify=False)
    report = FlashJob(checked, RecordStore(tmp_path / "records"), options).run(Chunks(), lambda event: None)
    assert (report.size, released) == (3 * MIB, 6)


def test_a_source_that_changes_is_told_over_this_connection_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.write_bytes(random.Random(4).randbytes(3 * MIB))
    real = os.sendfile

    def sendfile(out: int, fd: int, offset: int, count: int) -> int:
        os.utime(source, ns=(1, 1))
        return real(out, fd, offset, count)

    monkeypatch.setattr(os, "sendfile", sendfile)

    async def scenario() -> None:
        async with exporter(FileFlasher(path=str(tmp_path / "disk")), TcpListener(insecure=True)) as node:
            with pytest.raises(ImagingError, match="was changed while it was being read; .*target is incomplete"):
                await flash(node, source)

    run(scenario)


def test_an_encrypted_connection_keeps_the_image_inside(tmp_path: Path, image: Path) -> None:
    """No certificate is needed to see it: what decides is how the connection was opened."""
    from jumpstarter.client.aio import open_connection
    from jumpstarter.client.rpc import DriverRpc

    async def scenario() -> None:
        for target, insecure, wanted in (
            ("bench:8443", False, None),
            ("bench:8443", True, {"kind": "tcp", "host": "bench"}),
            ("[::1]:8443", True, {"kind": "tcp", "host": "::1"}),
            ("/run/x.sock", False, {"kind": "unix"}),
        ):
            connection = open_connection(target, insecure=insecure)
            rpc = DriverRpc(connection, "id", "storage")
            node = AsyncNode(path="storage", name="storage", uuid="id", labels={}, description="", rpc=rpc)
            assert direct.direct_way(node) == wanted
            await connection.aclose()

    run(scenario)
