# SPDX-License-Identifier: Apache-2.0
"""The rows of the storage and of the HTTP and TFTP servers, for run.py: rates of real clients on loopback.

Limits: ``cp`` for the storage, aiohttp's own static files for HTTP, Debian's in.tftpd for TFTP. in.tftpd does not know
windowsize, so its windowsize 16 is windowsize 1, and its rate is no upper bound there.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PY = sys.executable
MIB = 1 << 20
TFTP = [(512, 1), (1428, 1), (8192, 1), (512, 16), (1428, 16), (8192, 16)]

_STATIC = """
import socket, sys
from aiohttp import web
app = web.Application()
app.router.add_static("/", sys.argv[1])
sock = socket.create_server(("127.0.0.1", 0))
print(sock.getsockname()[1], flush=True)
web.run_app(app, sock=sock, print=None, access_log=None)
"""


def drivers(name: str, folder: Path) -> dict[str, Any]:
    """The drivers of an exporter. 0.9 cannot tell a TFTP port that it chose itself."""
    return {
        "files": {
            "type": "jumpstarter_driver_opendal.driver.Opendal",
            "config": {"scheme": "fs", "kwargs": {"root": str(folder / "files")}},
        },
        "http": {
            "type": "jumpstarter_driver_http.driver.HttpServer",
            "config": {"root_dir": str(folder / "www"), "host": "127.0.0.1", "port": 0},
        },
        "tftp": {
            "type": "jumpstarter_driver_tftp.driver.Tftp",
            "config": {
                "root_dir": str(folder / "boot"),
                "host": "127.0.0.1",
                "port": 0 if name == "ours" else free_udp_port(),
            },
        },
    }


def free_udp_port() -> int:
    """A UDP port that nobody has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def make_file(path: Path, mib: int) -> Path:
    """A file that does not compress and has no holes."""
    block = os.urandom(MIB)
    with path.open("wb") as file:
        for number in range(mib):
            file.write(block[number % 4096 :] + block[: number % 4096])
    return path


def copy_rate(source: Path, target: Path) -> float:
    """MB/s of ``cp`` without reflinks."""
    started = time.perf_counter()
    subprocess.run(["cp", "--reflink=never", "--sparse=never", source, target], check=True)
    seconds = time.perf_counter() - started
    target.unlink()
    return source.stat().st_size / seconds / 1e6


def http_rate(url: str) -> float:
    """MB/s that curl sees."""
    argv = ["curl", "-sSf", "-o", os.devnull, "-w", "%{speed_download}", url]
    return float(subprocess.run(argv, check=True, capture_output=True, text=True, timeout=120).stdout) / 1e6


def tftp_rate(port: int, path: str, size: int, blksize: int, windowsize: int, out: Path) -> float:
    """MB/s that atftp gets."""
    # two options at least: 0.9 does not answer a request with one
    argv = ["atftp", "--option", f"blksize {blksize}", "--option", "timeout 5"]
    if windowsize > 1:
        argv += ["--option", f"windowsize {windowsize}"]
    started = time.perf_counter()
    done = subprocess.run(
        [*argv, "-g", "-r", path, "-l", out, "127.0.0.1", str(port)], check=True, capture_output=True, timeout=120
    )
    seconds = time.perf_counter() - started
    if out.stat().st_size != size:
        raise OSError(f"atftp got {out.stat().st_size} of {size} bytes: {done.stdout[-200:]!r}")
    out.unlink()
    return size / seconds / 1e6


@contextmanager
def static_server(folder: Path) -> Iterator[str]:
    """aiohttp's static files; gives the address."""
    with subprocess.Popen([PY, "-c", _STATIC, folder], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@contextmanager
def in_tftpd(folder: Path) -> Iterator[int]:
    """Debian's TFTP daemon; gives the port. Needs root, as it changes its root."""
    port = free_udp_port()
    argv = ["/usr/sbin/in.tftpd", "-L", "--address", f"127.0.0.1:{port}", "--user", "root", "--secure", str(folder)]
    with subprocess.Popen(argv) as process:
        try:
            _wait_bound(port, process)
            yield port
        finally:
            process.kill()


def _wait_bound(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    wanted = re.compile(rf"0100007F:{port:04X} ")
    while not wanted.search(Path("/proc/net/udp").read_text()):
        if process.poll() is not None or time.monotonic() > deadline:
            raise OSError("in.tftpd does not listen")
        time.sleep(0.01)
