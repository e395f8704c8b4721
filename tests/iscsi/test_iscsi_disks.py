# SPDX-License-Identifier: Apache-2.0
"""Protects disks over iSCSI: QEMU's own initiator (libiscsi) against the driver and its tgtd."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from jumpstarter.common.exceptions import ConfigurationError, DriverError
from jumpstarter.common.utils import serve
from jumpstarter_driver_iscsi.client import ISCSIServerClient
from jumpstarter_driver_iscsi.driver import ISCSI

MIB = 1 << 20


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[ISCSIServerClient]:
    with serve(ISCSI(root_dir=str(tmp_path / "root"), host="127.0.0.1", port=0)) as client:
        client.start()
        yield client


def url(client: ISCSIServerClient, lun: int = 1, login: str | None = "") -> str:
    """For libiscsi. login: "user%password@", "" for the session's own, None for none."""
    if login == "" and (found := client.get_credentials()) is not None:
        login = f"{found['user']}%{found['password']}@"
    return f"iscsi://{login or ''}127.0.0.1:{client.get_port()}/{client.get_target_iqn()}/{lun}"


def qemu_io(where: str, *commands: str, iqn: str = "iqn.2024-06.test:initiator") -> subprocess.CompletedProcess[str]:
    words = [word for command in commands for word in ("-c", command)]
    login, _, rest = where.removeprefix("iscsi://").rpartition("@")
    portal, target, lun = rest.split("/")
    options = f"driver=iscsi,transport=tcp,portal={portal},target={target},lun={lun},initiator-name={iqn}"
    if login:
        user, password = login.split("%")
        words += ["--object", f"secret,id=password,data={password}"]
        options += f",user={user},password-secret=password"
    argv = ["qemu-io", *words, "--image-opts", options]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def images(folder: Path) -> Iterator[str]:
    """Context: the URL of a web server with the files of a folder."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def copy_of(where: str, path: Path) -> bytes:
    """All of a disk."""
    subprocess.run(["qemu-img", "convert", "-O", "raw", where, str(path)], check=True, timeout=60, capture_output=True)
    return path.read_bytes()


def test_an_image_is_served_whole_and_what_the_device_writes_is_in_it(disks: ISCSIServerClient, tmp_path: Path) -> None:
    image = tmp_path / "image.bin"
    image.write_bytes(os.urandom(3 * MIB + 700))  # not a whole number of sectors, nor of MiB
    assert disks.upload_image("rootfs", image) == disks.get_target_iqn()
    [lun] = disks.list_luns()
    assert (lun["name"], lun["lun_id"], lun["size"], lun["is_block"]) == ("rootfs", 1, 3 * MIB + 1024, False)
    assert copy_of(url(disks), tmp_path / "copy") == image.read_bytes() + bytes(1024 - 700)
    done = qemu_io(url(disks), "write -P 0xa5 1M 64k", "flush")
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "root/rootfs.img").read_bytes()
    assert written[MIB : MIB + 65536] == b"\xa5" * 65536
    assert written[:MIB] == image.read_bytes()[:MIB]


@pytest.mark.parametrize("login", [None, "jumpstarter%not-the-password@", "other%{password}@"])
def test_without_the_sessions_password_nobody_gets_in(disks: ISCSIServerClient, login: str | None) -> None:
    disks.add_lun("disk", "disk.img", 1)
    found = disks.get_credentials()
    assert found is not None and len(found["password"]) == 16
    assert qemu_io(url(disks), "read 0 512").returncode == 0
    wrong = url(disks, login=login and login.format(**found))
    for command in ("read 0 512", "write 0 512"):
        done = qemu_io(wrong, command)
        assert done.returncode != 0
        assert "log in to target" in done.stderr, done


def test_a_password_is_worth_nothing_in_the_next_session(tmp_path: Path) -> None:
    driver = ISCSI(root_dir=str(tmp_path / "root"), host="127.0.0.1", port=0)
    passwords = set()
    for _ in range(2):
        with serve(driver) as client:
            found = client.get_credentials()
            assert found is not None
            passwords.add(found["password"])
            for _ in range(2):  # one for the whole session, whenever it is asked for
                client.start()
                assert client.get_credentials() == found
                client.stop()
    assert len(passwords) == 2


def test_only_the_initiators_that_are_named_get_in_when_there_is_no_password(tmp_path: Path) -> None:
    def served(*allowed: str) -> Iterator[ISCSIServerClient]:
        driver = ISCSI(
            root_dir=str(tmp_path / "root"), host="127.0.0.1", port=0, chap=False, allowed_initiators=list(allowed)
        )
        with serve(driver) as client:
            assert client.get_credentials() is None
            client.start()
            client.add_lun("disk", "disk.img", 1)
            yield client

    for client in served("127.0.0.0/8"):
        assert qemu_io(url(client), "read 0 512").returncode == 0
    for client in served("192.0.2.1"):
        assert qemu_io(url(client), "read 0 512").returncode != 0
    for client in served("iqn.2024-06.test:mine"):
        assert qemu_io(url(client), "read 0 512", iqn="iqn.2024-06.test:mine").returncode == 0
        assert qemu_io(url(client), "read 0 512", iqn="iqn.2024-06.test:yours").returncode != 0


def test_the_password_is_shown_to_nobody_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = tmp_path / "secret"
    secret.write_text("Tr0ub4dor-and-3\n")
    driver = ISCSI(root_dir=str(tmp_path / "root"), host="127.0.0.1", port=0, chap_password_file=str(secret))
    inline = ISCSI(root_dir=str(tmp_path / "root"), chap_password="Tr0ub4dor-and-3")
    assert "Tr0ub4dor" not in repr(driver) + repr(inline)
    caplog.set_level("DEBUG")
    with serve(driver) as client:
        client.start()
        arguments = b"".join(path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
        assert b"Tr0ub4dor" not in arguments
        client.add_lun("disk", "disk.img", 1)
        assert qemu_io(url(client, login="jumpstarter%Tr0ub4dor-and-3@"), "read 0 512").returncode == 0
    assert "Tr0ub4dor" not in caplog.text


def test_compressed_images_are_unpacked_on_the_exporter_and_broken_ones_refused(
    disks: ISCSIServerClient, tmp_path: Path
) -> None:
    content = os.urandom(MIB)
    packed = tmp_path / "system.img.gz"
    packed.write_bytes(gzip.compress(content))
    disks.upload_image("system", packed)
    assert copy_of(url(disks), tmp_path / "copy") == content
    (tmp_path / "good.img.gz").write_bytes(packed.read_bytes())
    packed.write_bytes(gzip.compress(content)[:-100])
    with pytest.raises(DriverError, match="(?i)truncated|ends|incomplete|too early"):
        disks.upload_image("broken", packed)
    assert os.listdir(tmp_path / "root") == ["system.img"]  # neither a part of it nor what was sent
    with images(tmp_path) as base:
        disks.upload_image("fetched", f"{base}/good.img.gz?token=x.y")
    assert (tmp_path / "root/fetched.img").read_bytes() == content
    with pytest.raises(ValueError, match="one of gz, xz, bz2"):
        disks.decompress("system.img", "x", "rar")


def test_disks_come_go_and_are_replaced(disks: ISCSIServerClient, tmp_path: Path) -> None:
    for name, size in (("a", 1), ("b", 2)):
        disks.add_lun(name, f"folder/{name}.img", size)
    assert {lun["name"]: lun["lun_id"] for lun in disks.list_luns()} == {"a": 1, "b": 2}
    assert len(copy_of(url(disks, 2), tmp_path / "copy")) == 2 * MIB
    disks.add_lun("a", "folder/a.img", 3)  # again, and larger
    assert len(copy_of(url(disks, 1), tmp_path / "copy")) == 3 * MIB
    disks.remove_lun("a")
    assert qemu_io(url(disks, 1), "read 0 512").returncode != 0
    with pytest.raises(ValueError, match="no LUN 'a'; there are: b"):
        disks.remove_lun("a")
    disks.clear_all_luns()
    assert disks.list_luns() == [] and (tmp_path / "root/folder/a.img").stat().st_size == 3 * MIB


@pytest.mark.parametrize("path", ["../outside.img", "/../outside.img", "link", "sub/../../outside.img"])
def test_no_path_leads_out_of_the_root(disks: ISCSIServerClient, tmp_path: Path, path: str) -> None:
    outside = tmp_path / "outside.img"
    outside.write_bytes(bytes(MIB))
    (tmp_path / "root").mkdir(exist_ok=True)
    (tmp_path / "root/link").symlink_to(outside)
    for size in (0, 2):
        with pytest.raises((DriverError, ValueError)):
            disks.add_lun("x", path, size)
    assert outside.read_bytes() == bytes(MIB) and disks.list_luns() == []


def test_block_devices_must_be_allowed(tmp_path: Path) -> None:
    backing = tmp_path / "backing"
    backing.write_bytes(os.urandom(MIB))
    loop = subprocess.run(
        ["losetup", "--find", "--show", str(backing)], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        driver = ISCSI(
            root_dir=str(tmp_path / "root"), host="127.0.0.1", port=0, block_device_allowlist=[loop, str(backing)]
        )
        with serve(driver) as client:
            client.start()
            client.add_lun("stick", loop, is_block=True)
            assert copy_of(url(client), tmp_path / "copy") == backing.read_bytes()
            with pytest.raises(DriverError, match="block_device_allowlist"):
                client.add_lun("sda", "/dev/null", is_block=True)
            held = os.open(loop, os.O_RDWR | os.O_EXCL)  # as the kernel does for a mounted one
            try:
                with pytest.raises(DriverError, match="is in use on the exporter"):
                    client.add_lun("stick", loop, is_block=True)
            finally:
                os.close(held)
            assert [lun["name"] for lun in client.list_luns()] == ["stick"]  # what was there is kept
            assert qemu_io(url(client), "read 0 512").returncode == 0
            with pytest.raises(ValueError, match="is not a block device"):
                client.add_lun("file", str(backing), is_block=True)
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


def test_a_start_that_comes_after_the_session_is_refused(tmp_path: Path) -> None:
    """It would serve for ever."""
    driver = ISCSI(root_dir=str(tmp_path / "root"), host="127.0.0.1", port=0)
    with serve(driver) as client:
        client.start()
    for late in (driver.start, driver.clear_all_luns):
        with pytest.raises(ConnectionAbortedError, match="session is over"):
            late()


def test_failures_are_told_in_a_line(disks: ISCSIServerClient, tmp_path: Path) -> None:
    with pytest.raises(DriverError, match="missing.img is not in the storage: upload it first, or give size_mb"):
        disks.add_lun("missing", "missing.img")
    with pytest.raises(ValueError, match="LUN name 'a/b'"):
        disks.add_lun("a/b", "x.img", 1)
    taken = ISCSI(root_dir=str(tmp_path), host="127.0.0.1", port=disks.get_port())
    with serve(taken) as client, pytest.raises(DriverError, match="cannot listen on 127.0.0.1 port .* address already"):
        client.start()
    absent = ISCSI(root_dir=str(tmp_path), host="127.0.0.1", port=0, program="tgtd-that-is-not-here")
    with serve(absent) as client:
        with pytest.raises(DriverError, match="apt-get install tgt"):
            client.start()
        with pytest.raises(DriverError, match="does not run: start it first"):
            client.add_lun("x", "x.img", 1)


def test_a_target_that_died_is_noticed_and_can_be_started_again(disks: ISCSIServerClient) -> None:
    disks.add_lun("disk", "disk.img", 1)
    [pid] = _tgtds(disks.get_port())
    os.kill(pid, 9)
    _until(lambda: not disks.status()["running"])
    with pytest.raises(DriverError, match="the iSCSI target has ended"):
        disks.add_lun("other", "other.img", 1)
    disks.start()
    assert disks.list_luns() == []
    disks.add_lun("disk", "disk.img")
    assert qemu_io(url(disks), "read 0 512").returncode == 0


def test_it_does_not_outlive_an_exporter_that_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    temporary = Path(tempfile.mkdtemp(prefix="jl-", dir="/tmp"))  # a socket's path must be short
    request.addfinalizer(lambda: shutil.rmtree(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    code = (
        "import sys; from jumpstarter_driver_iscsi.driver import ISCSI\n"
        f"driver = ISCSI(root_dir={str(tmp_path)!r}, host='127.0.0.1', port=0); driver.start()\n"
        "print(driver.get_port(), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as exporter:
        try:
            assert exporter.stdout is not None
            port = int(exporter.stdout.readline())
            assert len(_tgtds(port)) == 1
        finally:
            exporter.kill()
    _until(lambda: not _tgtds(port))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5).close()
    # What it left in the temporary folder goes with the next start, but nothing that may be another's beginning.
    [left] = temporary.iterdir()
    fresh = temporary / "jumpstarter-iscsi-fresh"
    fresh.mkdir()
    os.utime(left, (1, 1))
    with socket.socket(socket.AF_UNIX) as peer:
        peer.bind(str(fresh / "s.0"))  # and does not listen yet
    with serve(ISCSI(root_dir=str(tmp_path), host="127.0.0.1", port=0)) as client:
        client.start()
        assert not left.exists() and fresh.exists()


def _tgtds(port: int) -> list[int]:
    """The tgtd with this portal."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended
        if words[0].endswith(b"tgtd") and f"portal=127.0.0.1:{port}".encode() in words:
            found.append(int(path.parent.name))
    return found


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"port": 70000}, "field port"),
        ({"chap": False}, "field chap: false lets everybody write"),
        ({"target_name": "Not Valid"}, "fields iqn_prefix, target_name"),
        ({"chap_password": "short"}, "field chap_password: a CHAP password has 12 to 16"),
        ({"chap_password": "has,comma,in-it"}, "field chap_password"),
        ({"chap_password": "x" * 12, "chap_password_file": "/x"}, "give one of them"),
        ({"allowed_initiators": ["nobody"]}, "field allowed_initiators: nobody"),
        ({"block_device_allowlist": ["sda"]}, "field block_device_allowlist: sda is not an absolute path"),
    ],
)
def test_mistakes_in_the_configuration_are_found_before_anything_runs(
    tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ISCSI(root_dir=str(tmp_path / "root"), **fields)  # type: ignore[arg-type]
    assert not (tmp_path / "root").exists()


def test_the_cli_serves_an_image(tmp_path: Path) -> None:
    image = tmp_path / "board.img.xz"
    raw = tmp_path / "raw"
    raw.write_bytes(os.urandom(MIB))
    subprocess.run(["xz", "-0", "-k", "-c", str(raw)], check=True, stdout=image.open("wb"))
    with serve(ISCSI(root_dir=str(tmp_path / "root"), host="127.0.0.1", port=0)) as client:

        def run(*argv: str) -> str:
            done = CliRunner().invoke(client.cli(), list(argv), catch_exceptions=False)
            assert done.exit_code == 0, done.output
            return done.output.strip()

        assert run("status") == "stopped"
        where = run("serve", str(image))
        assert where == f"127.0.0.1:{client.get_port()} iqn.2024-06.dev.jumpstarter:target1"
        assert run("luns") == f"1 {MIB} board"
        user, password = run("credentials").split()
        assert copy_of(url(client, login=f"{user}%{password}@"), tmp_path / "copy") == raw.read_bytes()
        run("remove", "board")
        assert run("luns") == ""
        port = client.get_port()
        assert len(_tgtds(port)) == 1
        run("stop")
        assert run("status") == "stopped" and _tgtds(port) == []


def test_j_serves_an_image_and_says_what_is_wrong(tmp_path: Path) -> None:
    config = {
        "apiVersion": "jumpstarter.dev/v1alpha1",
        "kind": "ExporterConfig",
        "metadata": {"name": "dut"},
        "export": {
            "disks": {
                "type": "jumpstarter_driver_iscsi.driver.ISCSI",
                "config": {"root_dir": str(tmp_path / "root"), "host": "127.0.0.1", "port": 0},
            }
        },
    }
    (tmp_path / "dut.yaml").write_text(json.dumps(config))  # JSON is YAML
    image = tmp_path / "two words.img"
    image.write_bytes(os.urandom(MIB))
    binaries = Path(sys.executable).parent
    # Without a name the file's has a space in it, which no disk may have.
    script = 'j disks serve "$1"; j disks serve -n board "$1" && j disks credentials && j disks luns && read line'
    argv = [
        binaries / "jmp",
        "shell",
        "--exporter-config",
        tmp_path / "dut.yaml",
        "--",
        "sh",
        "-c",
        script,
        "sh",
        image,
    ]
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as shell:
        try:
            assert shell.stdout is not None
            portal, iqn = shell.stdout.readline().split()
            user, password = shell.stdout.readline().split()
            assert shell.stdout.readline() == f"1 {MIB} board\n"
            assert copy_of(f"iscsi://{user}%{password}@{portal}/{iqn}/1", tmp_path / "copy") == image.read_bytes()
            _, said = shell.communicate("done\n", timeout=30)
        finally:
            shell.kill()
    assert "LUN name 'two words': 1 to 64 letters" in said and "Traceback" not in said, said
    assert not _tgtds(int(portal.rpartition(":")[2]))
