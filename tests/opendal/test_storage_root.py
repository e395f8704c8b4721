# SPDX-License-Identifier: Apache-2.0
"""Nothing a client names or puts there leads out of the root (a weakness of the original: read and write anywhere)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jumpstarter.common.exceptions import DriverError
from jumpstarter.common.utils import serve
from jumpstarter_driver_opendal import beneath
from jumpstarter_driver_opendal.beneath import Beneath, clean_path
from jumpstarter_driver_opendal.client import OpendalClient
from jumpstarter_driver_opendal.driver import Opendal
from jumpstarter_driver_opendal.files import FileStore

SECRET = b"outside"


@pytest.fixture(params=["openat2", "walk"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to stay inside: the kernel's, and the one for kernels without it."""
    if request.param == "walk":
        monkeypatch.setattr(beneath, "_openat2", lambda: None)
    else:
        assert beneath._openat2() is not None, "this kernel has openat2"
    return str(request.param)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_bytes(SECRET)
    return folder


@pytest.fixture
def trap(how: str, root: Path, outside: Path) -> Iterator[OpendalClient]:
    """A storage with links out of it in every place."""
    (root / "in").mkdir(parents=True)
    (root / "in" / "file").write_bytes(b"inside")
    (root / "folder").symlink_to(outside)
    (root / "file").symlink_to(outside / "file")
    (root / "up").symlink_to("../outside")
    (root / "proc").symlink_to(f"/proc/self/fd/{os.open(outside, os.O_RDONLY)}")
    with serve(Opendal(scheme="fs", kwargs={"root": str(root)})) as client:
        yield client


CALLS: dict[str, Callable[[OpendalClient, str], Any]] = {
    "read": lambda client, path: client.read_bytes(path),
    "write": lambda client, path: client.write_bytes(f"{path}.new", b"x"),
    "stat": lambda client, path: client.stat(path),
    "hash": lambda client, path: client.hash(path),
    "copy from": lambda client, path: client.copy(path, "got"),
    "copy to": lambda client, path: client.copy("in/file", f"{path}.new"),
    "rename from": lambda client, path: client.rename(path, "got"),
    "rename to": lambda client, path: client.rename("in/file", f"{path}.new"),
    "create": lambda client, path: client.create_dir(f"{path}.new/"),
    "delete": lambda client, path: client.delete(path),
    "remove": lambda client, path: client.remove_all(path),
    "list": lambda client, path: list(client.list(path.rpartition("/")[0] + "/")),
    "scan": lambda client, path: list(client.scan(path.rpartition("/")[0] + "/")),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("path", ["../outside/file", "in/../../outside/file", "folder/file", "up/file", "proc/file"])
def test_no_call_gets_out(trap: OpendalClient, root: Path, outside: Path, call: str, path: str) -> None:
    with pytest.raises(DriverError, match="leads out of the storage|not a directory"):
        CALLS[call](trap, path)
    assert [entry.name for entry in outside.iterdir()] == ["file"]
    assert (outside / "file").read_bytes() == SECRET
    assert (root / "in" / "file").read_bytes() == b"inside"
    assert not (root / "got").exists()


def test_a_link_at_the_end_is_not_followed_either(trap: OpendalClient, outside: Path) -> None:
    for call in ("read", "stat", "hash", "copy from"):
        with pytest.raises(DriverError, match="leads out"):
            CALLS[call](trap, "file")
    trap.write_bytes("file", b"mine")  # takes the place of the link
    assert (trap.read_bytes("file"), (outside / "file").read_bytes()) == (b"mine", SECRET)
    trap.delete("folder")  # the link, not what it leads to
    assert (outside / "file").exists()


def test_links_out_are_not_listed(trap: OpendalClient) -> None:
    assert list(trap.scan("/")) == ["/", "in/", "in/file"]


def test_links_inside_are_followed_by_the_kernel_and_by_nobody_else(root: Path, how: str) -> None:
    (root / "real").mkdir(parents=True)
    (root / "real" / "kernel-6.1").write_bytes(b"kernel")
    (root / "kernel").symlink_to("real/kernel-6.1")
    (root / "current").symlink_to("real")
    with serve(Opendal(scheme="fs", kwargs={"root": str(root)})) as client:
        if how == "openat2":
            assert client.read_bytes("kernel") == client.read_bytes("current/kernel-6.1") == b"kernel"
            assert list(client.scan("/")) == ["/", "kernel", "real/", "real/kernel-6.1"]
        else:
            for path in ("kernel", "current/kernel-6.1"):
                with pytest.raises(DriverError, match="leads out|not a directory"):
                    client.read_bytes(path)


def test_what_is_no_file_is_neither_read_nor_replaced(client: OpendalClient, root: Path) -> None:
    root.mkdir()
    os.mkfifo(root / "pipe")
    for use in (lambda: client.read_bytes("pipe"), lambda: client.write_bytes("pipe", b"x")):
        with pytest.raises(DriverError, match="is no file"):
            use()
    with pytest.raises(DriverError, match="is a folder"):
        client.read_bytes("/")


def test_folders_that_are_swapped_for_links_meanwhile_lead_nowhere(root: Path, outside: Path, how: str) -> None:
    """The race that checking a path before opening it would lose."""
    (root / "a").mkdir(parents=True)
    (root / "a" / "file").write_bytes(b"inside")
    (root / "link").symlink_to(outside)
    store = FileStore(str(root))
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            os.rename(root / "a", root / "b")
            os.rename(root / "link", root / "a")
            os.rename(root / "a", root / "link")
            os.rename(root / "b", root / "a")

    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    try:
        tries = 0
        while tries < 3000 or not seen:  # if it was never there, the test shows nothing
            tries += 1
            try:
                file = store.open_now("a/file", "rb")
            except OSError:
                continue
            seen.add(file.read_now())
            file.abort()
    finally:
        done.set()
        thread.join()
    assert seen == {b"inside"}


@pytest.mark.parametrize(
    ("path", "clean"),
    [
        ("", ""),
        ("/", ""),
        ("a//b/./c", "a/b/c"),
        ("/etc/passwd", "etc/passwd"),
        ("a/../b", "b"),
        ("..a/b..", "..a/b.."),
    ],
)
def test_paths_are_below_the_root(path: str, clean: str) -> None:
    assert clean_path(path) == clean


@pytest.mark.parametrize("path", ["..", "/..", "a/../..", "a\0b"])
def test_paths_that_are_none_are_refused(path: str) -> None:
    with pytest.raises(ValueError):
        clean_path(path)


def test_nothing_stays_open(root: Path, outside: Path) -> None:
    (root / "in").mkdir(parents=True)
    (root / "out").symlink_to(outside)
    below = Beneath(root)
    before = len(os.listdir("/proc/self/fd"))
    for path in ("in", "out", "none"):
        try:
            os.close(below.open(path, os.O_RDONLY))
        except OSError:
            pass
    assert len(os.listdir("/proc/self/fd")) == before
