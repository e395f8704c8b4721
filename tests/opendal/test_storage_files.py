# SPDX-License-Identifier: Apache-2.0
"""Protects what clients of a storage rely on: the calls, the shapes of their answers, and that files are whole."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner

from jumpstarter.client.imaging import ImagingError
from jumpstarter.common.exceptions import ConfigurationError, DriverError, DriverInvalidArgument
from jumpstarter.common.utils import serve
from jumpstarter.driver import Driver, export
from jumpstarter_driver_opendal.client import OpendalClient
from jumpstarter_driver_opendal.driver import Opendal
from jumpstarter_driver_opendal.files import FileStore

sys.path.insert(0, str(Path(__file__).parents[1] / "storage"))

from storage_helpers import loop_device

MIB = 1 << 20


def partials(root: Path) -> list[str]:
    return [path.name for path in root.rglob("*") if path.name.startswith(".jumpstarter-")]


def open_below(root: Path) -> list[str]:
    """What of this process is open below a folder."""
    links = [os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
    return [target for link in links if os.path.islink(link) and str(root) in (target := os.readlink(link))]


def test_files_are_written_read_and_described(client: OpendalClient, root: Path) -> None:
    client.write_bytes("a/b.txt", b"hello")
    assert (root / "a/b.txt").read_bytes() == b"hello"
    assert client.read_bytes("/a/b.txt") == b"hello"
    found = client.stat("a/b.txt")
    assert (found.content_length, found.mode.is_file(), found.mode.is_dir()) == (5, True, False)
    assert client.stat("a/").mode.is_dir()
    assert client.hash("a/b.txt") == hashlib.sha256(b"hello").hexdigest()
    assert client.hash("a/b.txt", "md5") == hashlib.md5(b"hello").hexdigest()
    assert client.exists("a/b.txt") and client.exists("a/") and not client.exists("a/b.txt/")


def test_answers_on_the_wire_have_the_shapes_of_0_9(client: OpendalClient) -> None:
    client.write_bytes("f", b"x")
    stat = client.call("stat", "f")
    assert stat["mode"] == {"entry_is_file": True, "entry_is_dir": False}
    assert set(stat) == {"content_disposition", "content_length", "content_md5", "content_type", "etag", "mode"}
    assert len(client.call("capability")) == 33
    assert client.capability().copy is True and client.capability().presign is False
    assert client.call("get_created_resources") == ["f"]


def test_folders_are_listed_as_opendal_lists_them(client: OpendalClient) -> None:
    for path in ("dir/file.txt", "dir/sub/f", "dirx.txt"):
        client.write_bytes(path, b"x")
    assert list(client.list("/")) == ["/", "dir/", "dirx.txt"]
    assert list(client.list("dir/")) == ["dir/", "dir/file.txt", "dir/sub/"]
    assert list(client.list("dir")) == ["dir/", "dirx.txt"]
    assert list(client.scan("")) == ["/", "dir/", "dir/file.txt", "dir/sub/", "dir/sub/f", "dirx.txt"]
    assert list(client.list("nope/")) == list(client.scan("nope")) == []


def test_files_are_copied_moved_and_removed(client: OpendalClient, root: Path) -> None:
    client.write_bytes("one", b"1" * 100_000)
    client.copy("one", "deep/er/two")
    client.rename("one", "else/three")
    assert (root / "deep/er/two").read_bytes() == (root / "else/three").read_bytes() == b"1" * 100_000
    client.delete("else/three")
    client.delete("else/three")
    client.create_dir("empty/folder/")
    with pytest.raises(DriverInvalidArgument, match="must end with a slash"):
        client.create_dir("no")
    with pytest.raises(DriverError, match="not empty"):
        client.delete("deep/")
    client.remove_all("deep/")
    client.remove_all("deep/")
    assert sorted(path.name for path in root.iterdir()) == ["else", "empty"]


def test_an_open_file_has_a_position(client: OpendalClient) -> None:
    file = client.open("f", "wb")
    assert (file.readable(), file.writable(), file.seekable(), file.closed) == (False, True, True, False)
    file.write_bytes(b"hello ")
    file.write_bytes(b"world")
    assert file.tell() == 11
    file.close()
    assert file.closed is True
    file.close()
    file = client.open("f", "rb")
    assert (file.seek(6), file.read_bytes(), file.tell()) == (6, b"world", 11)
    assert (file.seek(-5, 2), file.seek(1, 1), file.read_bytes()) == (6, 7, b"orld")
    with pytest.raises(DriverInvalidArgument, match="before the start"):
        file.seek(-1)
    with pytest.raises(DriverInvalidArgument, match="open for reading"):
        file.write_bytes(b"x")
    file.close()


def test_going_back_overwrites_also_with_zeros(client: OpendalClient) -> None:
    file = client.open("f", "wb")
    file.write_bytes(b"x" * 3 * 65536)
    file.seek(65536)
    file.write_bytes(bytes(65536))
    file.close()
    assert client.read_bytes("f") == b"x" * 65536 + bytes(65536) + b"x" * 65536


def test_zeros_take_no_room(client: OpendalClient, root: Path, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"x" + bytes(16 * MIB))
    client.put("image", tmp_path / "image")
    assert (root / "image").stat().st_size == 16 * MIB + 1
    assert (root / "image").stat().st_blocks * 512 < MIB


def test_a_file_appears_only_when_it_is_closed(client: OpendalClient, root: Path) -> None:
    client.write_bytes("f", b"old")
    file = client.open("f", "wb")
    file.write_bytes(b"new and longer")
    assert client.read_bytes("f") == b"old"
    assert list(client.list("/")) == ["/", "f"]
    file.close()
    assert client.read_bytes("f") == b"new and longer"
    assert partials(root) == []


def test_what_is_being_written_is_not_listed_where_files_need_names(
    client: OpendalClient, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File systems without O_TMPFILE (NFS, some overlays)."""
    monkeypatch.setattr(os, "O_TMPFILE", 0)  # as a kernel that knows no such flag takes it: EISDIR
    file = client.open("f", "wb")
    file.write_bytes(b"data")
    assert len(partials(root)) == 1
    assert list(client.scan("/")) == ["/"]
    file.close()
    assert client.read_bytes("f") == b"data"
    assert partials(root) == []


def test_an_upload_that_breaks_off_leaves_the_file_as_it_was(client: OpendalClient, root: Path) -> None:
    """A weakness of the original: whatever arrived became the file."""
    client.write_bytes("image", b"good")

    async def half() -> None:
        async with client.rpc.resource_stream() as (stream, handle):
            await stream.send(b"half of it")
            await stream.reset()
            await client.call_async("file_write", file.fd, handle)

    file = client.open("image", "wb")
    with pytest.raises(DriverError):
        client.portal.call(half)
    file.close()
    assert client.read_bytes("image") == b"good"
    assert partials(root) == []


def test_a_file_left_open_is_closed_and_dropped_at_the_end_of_the_session(root: Path) -> None:
    driver = Opendal(scheme="fs", kwargs={"root": str(root)})
    with serve(driver) as client:
        client.write_bytes("kept", b"x")
        client.open("dropped", "wb").write_bytes(b"y")
        client.open("kept", "rb")
        assert open_below(root) != []
    assert open_below(root) == []
    assert [path.name for path in root.iterdir()] == ["kept"]


def test_a_thread_that_works_on_after_the_session_stores_nothing(root: Path) -> None:
    """Nobody can stop a thread that copies; what it made later would be in the next user's way."""
    driver = Opendal(scheme="fs", kwargs={"root": str(root)}, remove_created_on_close=True)
    late = driver.files.open_now("late", "wb")
    late.write_now(b"x" * 100)
    (root / "source").write_bytes(b"y" * 100)
    copying = driver.files.open_now("source", "rb")
    driver.close()
    with pytest.raises(ConnectionAbortedError, match="session ended"):
        late.commit_now()
    late.abort()
    driver.files.copy_from(copying.fd, "of the next one")
    copying.abort()
    assert sorted(path.name for path in root.iterdir()) == ["of the next one", "source"]
    driver.reset()
    assert [path.name for path in root.iterdir()] == ["source"]


def test_a_copy_stops_soon_after_the_session(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore(str(root))
    root.mkdir()
    (root / "source").write_bytes(b"y" * 100)
    pieces: list[int] = []

    def one_byte(source: int, target: int, offset: int, length: int) -> int:
        pieces.append(offset)
        store.end_session()
        return os.pwrite(target, os.pread(source, 1, offset), offset)

    monkeypatch.setattr("jumpstarter_driver_opendal.files._copy_range", one_byte)
    with open(root / "source", "rb") as source, pytest.raises(ConnectionAbortedError):
        store.copy_from(source.fileno(), "target")
    assert pieces == [0]
    assert not (root / "target").exists()


def test_closing_many_files_leaks_nothing(client: OpendalClient, driver: Opendal, root: Path) -> None:
    for number in range(20):
        client.write_bytes("f", b"%d" % number)
        client.read_bytes("f")
    assert open_below(root) == []
    assert driver._files == {}
    with pytest.raises(DriverInvalidArgument, match="not one of this session"):
        client.call("file_tell", str(uuid4()))


def test_what_a_session_made_goes_with_it_when_configured(root: Path) -> None:
    root.mkdir()
    (root / "theirs").mkdir()
    (root / "theirs" / "file").write_bytes(b"x")
    driver = Opendal(scheme="fs", kwargs={"root": str(root)}, remove_created_on_close=True)
    with serve(driver) as client:
        client.write_bytes("theirs/mine", b"x")
        client.write_bytes("deep/er/mine", b"x")
        client.create_dir("theirs/")  # was there before: is not ours to remove
        client.create_dir("folder/")
        client.write_bytes("folder/file", b"x")
        client.write_bytes("moved", b"x")
        client.rename("moved", "away")
        (root / "registered").write_bytes(b"x")
        client.register_path("registered")
        assert client.get_created_resources() == {
            "away", "deep/er/mine", "folder", "folder/file", "registered", "theirs/mine"
        }  # fmt: skip
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*")) == ["theirs", "theirs/file"]


def test_a_put_sends_only_what_is_not_there_and_proves_it(client: OpendalClient, root: Path, tmp_path: Path) -> None:
    source = tmp_path / "image"
    source.write_bytes(os.urandom(3 * MIB + 17))
    would = client.put("boot/image", source, check=True)
    assert would.changed and not (root / "boot").exists()
    first = client.put("boot/image", source)
    assert (first.changed, first.size) == (True, 3 * MIB + 17)
    assert first.sha256 == hashlib.sha256((root / "boot/image").read_bytes()).hexdigest()
    before = (root / "boot/image").stat().st_ino
    again = client.put("boot/image", source)
    assert (again.changed, again.reason) == (False, "the storage has this file")
    assert (root / "boot/image").stat().st_ino == before
    (root / "boot/image").write_bytes(b"\0" * first.size)
    assert client.put("boot/image", source).reason == "the file in the storage has other content"
    assert (root / "boot/image").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("over_grpc", [False, True], ids=["own connection", "inside gRPC"])
def test_both_ways_of_a_put_check_size_and_digest(
    client: OpendalClient, root: Path, tmp_path: Path, over_grpc: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if over_grpc:
        monkeypatch.setenv("JUMPSTARTER_DATA_OVER_GRPC", "1")
    source = tmp_path / "image"
    for content in (b"", b"x", os.urandom(2 * MIB)):
        source.write_bytes(content)
        client.put("image", source)
        assert client.read_bytes("image") == content
    with pytest.raises(ImagingError, match="expected"):
        client.put("image", source, checksum="sha256:" + "0" * 64)

    async def wrong(options: dict[str, object]) -> None:
        async with client.rpc.resource_stream() as (stream, handle):
            await stream.send(b"other")
            await stream.send_eof()
            async for _ in client.streamingcall_async("put_file", handle, "image", options):
                pass

    for options in ({"size": 6}, {"sha256": "0" * 64}):
        with pytest.raises(DriverInvalidArgument, match="was not stored"):
            client.portal.call(wrong, options)
    assert client.read_bytes("image") == content
    assert partials(root) == []


class PlainStorage(Driver):
    """Fake: knows no more than open, write and close, as that of 0.9, and its disk is full."""

    @classmethod
    def client(cls) -> str:
        return "jumpstarter_driver_opendal.client.OpendalClient"

    @export
    def open(self, path: str, mode: str) -> UUID:
        return uuid4()

    @export
    async def file_write(self, fd: UUID, src: Any) -> None:
        async with self.resource(src) as stream:
            await stream.receive()
        raise OSError(errno.ENOSPC, "no space left on device")

    @export
    def file_close(self, fd: UUID) -> None:
        """Has nothing open."""

    @export
    def exists(self, path: str) -> bool:
        return False


def test_a_put_to_a_plain_storage_does_not_claim_that_nothing_was_stored(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"x" * 100)
    with serve(PlainStorage()) as client, pytest.raises(ImagingError, match="no space left .*may be incomplete"):
        client.put("image", tmp_path / "image")


def test_a_get_makes_a_whole_local_file(client: OpendalClient, tmp_path: Path) -> None:
    content = os.urandom(2 * MIB + 3)
    client.write_bytes("image", content)
    result = client.get("image", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    assert (result.size, result.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    with pytest.raises(ImagingError, match="no such file"):
        client.get("nope", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_driver_on_the_exporter_adds_files_by_path(driver: Opendal, root: Path, tmp_path: Path) -> None:
    source = tmp_path / "kernel"
    source.write_bytes(b"k" * 70_000 + bytes(MIB) + b"end")
    assert driver.put_exporter_file(source, "boot/kernel")["changed"] is True
    assert (root / "boot/kernel").read_bytes() == source.read_bytes()
    assert driver.put_exporter_file(source, "boot/kernel")["changed"] is False
    source.write_bytes(bytes(2 * MIB))
    assert driver.put_exporter_file(source, "boot/kernel")["changed"] is True
    assert (root / "boot/kernel").read_bytes() == bytes(2 * MIB)
    driver.close()


def test_a_block_device_in_the_root_is_written_in_place(client: OpendalClient, root: Path, tmp_path: Path) -> None:
    root.mkdir()
    with loop_device(tmp_path / "backing", 4 * MIB) as device:
        os.mknod(root / "disk", 0o600 | stat.S_IFBLK, os.stat(device).st_rdev)
        content = os.urandom(MIB) + bytes(MIB) + os.urandom(1000)
        Path(device).write_bytes(b"\xff" * 4 * MIB)
        client.write_bytes("disk", content)
        assert stat.S_ISBLK((root / "disk").stat().st_mode)
        assert client.read_bytes("disk") == content + b"\xff" * (4 * MIB - len(content))


def test_the_next_session_finds_nothing_of_the_one_before(driver: Opendal, client: OpendalClient, root: Path) -> None:
    """The exporter stays and only resets its drivers when a holder leaves."""
    client.write_bytes("kept", b"x")
    file = client.open("dropped", "wb")
    driver.reset()
    with pytest.raises(DriverInvalidArgument, match="not one of this session"):
        file.write_bytes(b"x")
    assert client.get_created_resources() == set()
    assert [path.name for path in root.iterdir()] == ["kept"]


def test_commands_do_what_they_say(client: OpendalClient, tmp_path: Path) -> None:
    run = CliRunner()

    def cli(*argv: str, data: bytes = b"", code: int = 0) -> str:
        result = run.invoke(client.cli(), argv, input=data)
        assert result.exit_code == code, (argv, result.output, result.exception)
        return result.output

    (tmp_path / "src").write_bytes(b"content")
    cli("write-bytes", "one", data=b"bytes")
    assert cli("read-bytes", "one") == "bytes"
    assert "7 bytes sent" in cli("put", "dir/two", str(tmp_path / "src"))
    assert "nothing to do" in cli("put", "dir/two", str(tmp_path / "src"))
    cli("write-from-path", "three", str(tmp_path / "src"))
    cli("read-into-path", "three", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == b"content"
    assert '"is_file": true' in cli("stat", "one")
    assert cli("hash", "one").strip() == hashlib.sha256(b"bytes").hexdigest()
    assert cli("hash", "one", "--algo", "md5").strip() == hashlib.md5(b"bytes").hexdigest()
    cli("copy", "one", "four")
    cli("rename", "four", "five")
    cli("exists", "five")
    cli("delete", "five")
    assert "does not exist" in cli("exists", "five", code=1)
    cli("create-dir", "empty/")
    assert cli("list", "dir/").split() == ["dir/", "dir/two"]
    assert "dir/two" in cli("scan", "/")
    cli("remove-all", "dir/")
    assert '"rename": true' in cli("capability")


@pytest.mark.parametrize(
    ("kwargs", "problem"),
    [
        ({"scheme": "fs", "kwargs": {}}, "needs root"),
        ({"scheme": "fs", "kwargs": {"root": "/r", "bucket": "x"}}, "not bucket"),
        ({"scheme": "nope", "kwargs": {}}, "does not take scheme nope"),
        ({"scheme": "s3", "kwargs": {"region": "x"}}, "does not take scheme s3"),
        ({"scheme": "s3", "kwargs": {"bucket": "b", "secret_access_key_file": "/none"}}, "/none is no file"),
    ],
)
def test_mistakes_in_the_configuration_are_found_at_construction(kwargs: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        Opendal(**kwargs)  # type: ignore[arg-type]


def test_constructing_a_driver_makes_no_folder(root: Path) -> None:
    Opendal(scheme="fs", kwargs={"root": str(root)}).close()
    assert not root.exists()
