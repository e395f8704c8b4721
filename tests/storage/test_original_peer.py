# SPDX-License-Identifier: Apache-2.0
"""Flashing between ours and the real Jumpstarter 0.9, in both directions."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from storage_helpers import pack, sha256

from jumpstarter.client.aio import connect
from jumpstarter.client.imaging import ImagingError, dump, flash

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def original() -> Path:
    """Interpreter of a virtual environment with the original in it."""
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        from original import original_python
    finally:
        sys.path.remove(str(ROOT / "bench"))
    python = original_python()
    assert python is not None, "jumpstarter 0.9.0 could not be installed from PyPI"
    return Path(python)


def write_config(path: Path, drivers: dict[str, object]) -> Path:
    config = {
        "apiVersion": "jumpstarter.dev/v1alpha1",
        "kind": "ExporterConfig",
        "metadata": {"namespace": "default", "name": "flash-interop"},
        "endpoint": "",
        "token": "",
        "export": drivers,
    }
    path.write_text(json.dumps(config))
    return path


@pytest.fixture
def their_exporter(original: Path, tmp_path: Path) -> Iterator[str]:
    config = write_config(
        tmp_path / "theirs.yaml", {"storage": {"type": "jumpstarter_driver_opendal.driver.MockFlasher"}}
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])  # the original cannot choose a port itself
    argv = [original.parent / "jmp", "run", "--exporter-config", config]
    argv += ["--tls-grpc-listener", f"127.0.0.1:{port}", "--tls-grpc-insecure"]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, "the original's exporter does not listen"
                time.sleep(0.02)  # another project's program: it has no other sign of being ready
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def test_our_library_flashes_an_exporter_of_the_original(their_exporter: str, image: Path, tmp_path: Path) -> None:
    """What the original unpacks unchecked (several members, a cut end) is unpacked and checked on our side."""
    half = image.with_name("half")
    half.write_bytes(image.read_bytes()[:1_000_000])
    two_members = tmp_path / "two.gz"
    two_members.write_bytes(pack(half, "gzip").read_bytes() * 2)
    cut = pack(image, "xz")
    cut.write_bytes(cut.read_bytes()[:-12])

    async def scenario() -> None:
        async with connect(their_exporter, insecure=True) as session:
            node = session.node("storage")
            for source, content in (
                (image, image.read_bytes()),
                (two_members, half.read_bytes() * 2),
                (pack(half, "zstd"), half.read_bytes()),
            ):
                result = await flash(node, source)
                assert (result.changed, result.sha256, result.verified) == (True, sha256(content), False)
                await dump(node, tmp_path / "back")
                assert (tmp_path / "back").read_bytes() == content
            with pytest.raises(ImagingError, match="truncated.*nothing was written"):
                await flash(node, cut)
            with pytest.raises(ImagingError):
                await dump(node, tmp_path / "none", target="never-flashed")

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_a_client_of_the_original_flashes_compressed_images_and_learns_of_damage(
    original: Path, image: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    config = write_config(
        tmp_path / "ours.yaml",
        {
            "storage": {
                "type": "jumpstarter_driver_storage.driver.FileFlasher",
                "config": {"path": str(disk), "size": "8MiB", "state_dir": str(tmp_path / "records")},
            }
        },
    )
    good = pack(image, "xz")
    cut = tmp_path / "cut.xz"
    cut.write_bytes(good.read_bytes()[:-12])
    large = tmp_path / "large"
    large.write_bytes(os.urandom(9 << 20))
    address = tmp_path / "ours.sock"
    argv = [sys.executable, "-m", "jumpstarter.exporter", "--config", config, "--listen", f"unix:{address}"]
    program = f"""
from jumpstarter.client.flasher import FlasherClient
from jumpstarter.streams.encoding import Compression
from jumpstarter.utils.env import env
with env() as client:
    client.storage.flash({str(good)!r}, compression=Compression.XZ)
    print("flashed", flush=True)
    for path, compression in (({str(cut)!r}, Compression.XZ), ({str(large)!r}, None)):
        try:
            client.storage.flash(path, compression=compression)
            print("accepted", path)
        except Exception as error:
            while getattr(error, "exceptions", None):
                error = error.exceptions[0]
            print("refused:", *str(error).split())
"""
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as exporter:
        try:
            assert exporter.stdout is not None and exporter.stdout.readline().startswith("READY")
            env = {**os.environ, "JUMPSTARTER_HOST": str(address), "JMP_DRIVERS_ALLOW": "UNSAFE", "TERM": "dumb"}
            done = subprocess.run(
                [original, "-c", program], env=env, capture_output=True, text=True, timeout=120, check=False
            )
        finally:
            exporter.kill()
    lines = done.stdout.splitlines()
    assert lines[:1] == ["flashed"], done.stderr
    assert len(lines) == 3, (lines, done.stderr)
    assert "refused:" in lines[1] and "xz data is truncated" in lines[1] and "target is incomplete" in lines[1]
    assert "refused:" in lines[2] and "image is larger than the 8.0 MiB" in lines[2]
