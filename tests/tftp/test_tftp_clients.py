# SPDX-License-Identifier: Apache-2.0
"""Protects boot downloads: tftp-hpa, atftp, curl and BusyBox against the TFTP server driver, on bad lines as well."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tftp_helpers import Relay, lossy

from jumpstarter_driver_tftp.client import TftpServerClient

MIB = 1 << 20


def run(*argv: str, data: str | None = None, cwd: Path | None = None, timeout: float = 60) -> str:
    done = subprocess.run(
        argv,
        input=data,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, (argv, done.stdout)
    return done.stdout


def hpa(port: int, command: str, cwd: Path, mode: str = "octet") -> str:
    return run("tftp", "-m", mode, "127.0.0.1", str(port), "-c", *command.split(), cwd=cwd)


def atftp(port: int, *argv: str, **options: str) -> str:
    chosen = [part for name, value in options.items() for part in ("--option", f"{name} {value}")]
    return run("atftp", *chosen, *argv, "127.0.0.1", str(port))


def curl(port: int, path: str, out: Path, *argv: str) -> None:
    run("curl", "-sS", "--max-time", "50", *argv, "-o", str(out), f"tftp://127.0.0.1:{port}/{path}")


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1024, 100_000])
def test_every_size_arrives_whole(boot: TftpServerClient, root: Path, tmp_path: Path, size: int) -> None:
    (root / "file").write_bytes(os.urandom(size))
    port = boot.get_port()
    hpa(port, "get file", tmp_path)
    assert (tmp_path / "file").read_bytes() == (root / "file").read_bytes()
    if size:  # curl 7.88 has an error of its own with an empty file (71, getpeername)
        curl(port, "file", tmp_path / "copy", "--tftp-blksize", "512")
        assert (tmp_path / "copy").read_bytes() == (root / "file").read_bytes()


@pytest.mark.parametrize("blksize", [8, 512, 1428, 8192, 65464])
def test_block_sizes(boot: TftpServerClient, root: Path, tmp_path: Path, blksize: int) -> None:
    (root / "file").write_bytes(os.urandom(20 * blksize + 3))
    curl(boot.get_port(), "file", tmp_path / "copy", "--tftp-blksize", str(blksize))
    assert (tmp_path / "copy").read_bytes() == (root / "file").read_bytes()


@pytest.mark.parametrize(("blksize", "windowsize"), [(512, 1), (512, 2), (512, 16), (1428, 16), (1428, 64), (8192, 16)])
def test_windows_of_blocks(boot: TftpServerClient, root: Path, tmp_path: Path, blksize: int, windowsize: int) -> None:
    (root / "file").write_bytes(os.urandom(3 * MIB + 5))
    out = tmp_path / "copy"
    atftp(boot.get_port(), "-g", "-r", "file", "-l", str(out), blksize=str(blksize), windowsize=str(windowsize))
    assert out.read_bytes() == (root / "file").read_bytes()


def test_files_in_folders_are_put_and_fetched(boot: TftpServerClient, tmp_path: Path) -> None:
    (tmp_path / "pxe").write_bytes(b"DEFAULT linux")
    assert boot.put_file("/pxelinux.cfg/01-00-11", tmp_path / "pxe") == "pxelinux.cfg/01-00-11"
    for path in ("pxelinux.cfg/01-00-11", "/pxelinux.cfg/01-00-11", r"pxelinux.cfg\01-00-11"):
        atftp(boot.get_port(), "-g", "-r", path, "-l", str(tmp_path / "copy"))
        assert (tmp_path / "copy").read_bytes() == b"DEFAULT linux"


def test_block_numbers_wrap(boot: TftpServerClient, root: Path, tmp_path: Path) -> None:
    """More than 65,535 blocks, in lockstep and in windows."""
    (root / "file").write_bytes(os.urandom(65536 * 8 + 13))
    curl(boot.get_port(), "file", tmp_path / "copy", "--tftp-blksize", "8")
    assert (tmp_path / "copy").read_bytes() == (root / "file").read_bytes()
    with (root / "large").open("wb") as file:
        for number in range(66):
            file.write(bytes([number]) * 512 * 1000)
    atftp(boot.get_port(), "-g", "-r", "large", "-l", str(tmp_path / "copy"), blksize="512", windowsize="32")
    assert (tmp_path / "copy").read_bytes() == (root / "large").read_bytes()


def test_text_is_converted_in_netascii(boot: TftpServerClient, root: Path, tmp_path: Path) -> None:
    text = b"".join(b"line %d\n\rcarriage\r\n" % number for number in range(500))
    (root / "text").write_bytes(text)
    hpa(boot.get_port(), "get text", tmp_path, mode="netascii")
    assert (tmp_path / "text").read_bytes() == text  # the client turned it back
    assert "netascii" in run("tftp", "127.0.0.1", data="mode netascii\nstatus\nquit\n")


def test_many_devices_at_once(boot: TftpServerClient, root: Path, tmp_path: Path) -> None:
    (root / "file").write_bytes(os.urandom(300_000))
    port = boot.get_port()

    def fetch(number: int) -> bytes:
        curl(port, "file", tmp_path / str(number), "--tftp-blksize", "1428")
        return (tmp_path / str(number)).read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(fetch, range(24))) == {(root / "file").read_bytes()}


def test_a_file_that_is_replaced_meanwhile_is_sent_as_it_was(
    boot: TftpServerClient, root: Path, tmp_path: Path
) -> None:
    old = os.urandom(200_000)
    (root / "file").write_bytes(old)
    (tmp_path / "new").write_bytes(b"new")
    replaced = False

    def fate(packet: bytes, from_server: bool) -> int:
        nonlocal replaced
        if from_server and packet[:4] == b"\0\3\0\5" and not replaced:
            replaced = True
            boot.put_file("file", tmp_path / "new")
        return 1

    with Relay(boot.get_port(), fate) as relay:
        curl(relay.port, "file", tmp_path / "copy", "--tftp-blksize", "512")
    assert replaced and (tmp_path / "copy").read_bytes() == old


@pytest.mark.parametrize(("share", "windowsize"), [(0.02, 1), (0.1, 1), (0.1, 8)])
def test_lost_and_repeated_packets_cost_time_only(
    boot: TftpServerClient, root: Path, tmp_path: Path, share: float, windowsize: int
) -> None:
    (root / "file").write_bytes(os.urandom(25_000))
    with Relay(boot.get_port(), lossy(share)) as relay:
        options = {"blksize": "1428", "timeout": "1"} | ({"windowsize": str(windowsize)} if windowsize > 1 else {})
        atftp(relay.port, "-g", "-r", "file", "-l", str(tmp_path / "copy"), **options)
    assert (tmp_path / "copy").read_bytes() == (root / "file").read_bytes()


def test_a_repeated_acknowledgement_does_not_double_the_rest(
    boot: TftpServerClient, root: Path, tmp_path: Path
) -> None:
    """The Sorcerer's Apprentice (RFC 1123, 4.2.3.1): the original sent each block after it twice."""
    (root / "file").write_bytes(os.urandom(512 * 200))
    with Relay(boot.get_port(), lambda packet, from_server: 2 if packet[:4] == b"\0\4\0\5" else 1) as relay:
        curl(relay.port, "file", tmp_path / "copy", "--tftp-blksize", "512")
        assert relay.seen <= 205
    assert (tmp_path / "copy").read_bytes() == (root / "file").read_bytes()


def test_a_missing_file_is_said_to_be_missing(boot: TftpServerClient, tmp_path: Path) -> None:
    assert "File not found" in hpa(boot.get_port(), "get nope", tmp_path) or "ile not found" in hpa(
        boot.get_port(), "get nope", tmp_path
    )


def test_files_are_refused_unless_allowed(boot: TftpServerClient, root: Path, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"x")
    assert "takes no files" in hpa(boot.get_port(), "put log", tmp_path)
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("size", [0, 512, 70_000])
def test_files_are_stored_when_allowed(writable: TftpServerClient, root: Path, tmp_path: Path, size: int) -> None:
    (tmp_path / "log").write_bytes(os.urandom(size))
    hpa(writable.get_port(), "put log", tmp_path)
    assert (root / "log").read_bytes() == (tmp_path / "log").read_bytes()
    (tmp_path / "log").write_bytes(b"another")
    atftp(writable.get_port(), "-p", "-l", str(tmp_path / "log"), "-r", "deep/log", blksize="1428", windowsize="4")
    assert (root / "deep/log").read_bytes() == b"another"


@pytest.mark.parametrize("windowsize", [1, 8])
def test_files_are_stored_over_bad_lines(
    writable: TftpServerClient, root: Path, tmp_path: Path, windowsize: int
) -> None:
    (tmp_path / "log").write_bytes(os.urandom(40_000))
    with Relay(writable.get_port(), lossy(0.1)) as relay:
        options = {"blksize": "1024", "timeout": "1"} | ({"windowsize": str(windowsize)} if windowsize > 1 else {})
        atftp(relay.port, "-p", "-l", str(tmp_path / "log"), "-r", "log", **options)
    assert (root / "log").read_bytes() == (tmp_path / "log").read_bytes()


def test_busybox(boot: TftpServerClient, root: Path, tmp_path: Path) -> None:
    (root / "file").write_bytes(os.urandom(100_000))
    if "tftp" not in run("busybox", "--list").split():
        pytest.fail("this BusyBox has no tftp")
    run(
        "busybox",
        "tftp",
        "-g",
        "-b",
        "1428",
        "-r",
        "file",
        "-l",
        str(tmp_path / "copy"),
        "127.0.0.1",
        str(boot.get_port()),
    )
    assert (tmp_path / "copy").read_bytes() == (root / "file").read_bytes()
