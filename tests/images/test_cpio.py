# SPDX-License-Identifier: Apache-2.0
"""The initramfs writer: archives other tools can read, equal bytes for equal content, mistakes refused."""

from __future__ import annotations

import gzip
import shutil
import stat
import subprocess
import time
from pathlib import Path

import pytest

from labimages.cpio import CpioWriter


def _sample(mtime: int = 0) -> CpioWriter:
    cpio = CpioWriter(mtime)
    cpio.directory("dev")
    cpio.character_device("dev/console", 5, 1)
    cpio.directory("usr/share")
    cpio.file("usr/share/odd", b"five!", 0o640)
    cpio.file("init", b"#!/bin/sh\n", 0o755)
    cpio.symlink("bin", "usr")
    return cpio


def _read(archive: bytes) -> dict[str, tuple[int, int, bytes]]:
    """Entries of a newc archive as name -> (mode, mtime, data), by the format's own rules."""
    entries: dict[str, tuple[int, int, bytes]] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        numbers = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, mtime, size, name_size = numbers[1], numbers[5], numbers[6], numbers[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        start = (at + 110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            return entries
        entries[name] = (mode, mtime, archive[start : start + size])
        at = (start + size + 3) // 4 * 4


def test_entries_keep_mode_time_and_content() -> None:
    entries = _read(_sample(mtime=77).archive())
    assert list(entries) == ["dev", "dev/console", "usr", "usr/share", "usr/share/odd", "init", "bin"]
    assert entries["usr/share/odd"] == (stat.S_IFREG | 0o640, 77, b"five!")
    assert entries["bin"] == (stat.S_IFLNK | 0o777, 77, b"usr")
    assert stat.S_ISCHR(entries["dev/console"][0])


def test_the_archive_is_readable_by_another_implementation(tmp_path: Path) -> None:
    busybox = shutil.which("busybox")
    reader = ["cpio", "--quiet", "-t"] if shutil.which("cpio") else [busybox or "busybox", "cpio", "-t"]
    done = subprocess.run(reader, input=_sample().archive(), capture_output=True, check=True, cwd=tmp_path)
    assert done.stdout.decode().split() == ["dev", "dev/console", "usr", "usr/share", "usr/share/odd", "init", "bin"]


def test_equal_content_gives_equal_bytes_whenever_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    first = _sample().compressed()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 100_000)  # gzip would put this into its header
    assert _sample().compressed() == first
    assert gzip.decompress(first) == _sample().archive()


def test_different_content_gives_different_bytes() -> None:
    other = _sample()
    other.file("etc", b"x")
    assert other.archive() != _sample().archive()


def test_a_file_without_its_directory_is_refused() -> None:
    with pytest.raises(ValueError, match="etc/hosts comes before its directory etc"):
        CpioWriter().file("etc/hosts", b"")


def test_a_name_twice_is_refused() -> None:
    cpio = CpioWriter()
    cpio.file("init", b"1")
    with pytest.raises(ValueError, match="init is there already"):
        cpio.file("/init", b"2")
