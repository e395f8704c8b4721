# SPDX-License-Identifier: Apache-2.0
"""The real Jumpstarter 0.9 on either side of a direct connection, as processes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from jumpstarter.client.aio import connect
from jumpstarter.common.enums import ExporterStatus
from jumpstarter.common.exceptions import DriverInvalidArgument, DriverMethodNotImplemented


@pytest.fixture(scope="session")
def original_interpreter(original: Path) -> Path:
    """Interpreter of a virtual environment with the original in it."""
    return original / "python"


def _config(path: Path, drivers: dict[str, object]) -> Path:
    path.write_text(
        json.dumps(
            {
                "apiVersion": "jumpstarter.dev/v1alpha1",
                "kind": "ExporterConfig",
                "metadata": {"namespace": "default", "name": "interop"},
                "endpoint": "",
                "token": "",
                "export": drivers,
            }
        )
    )
    return path


@contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_client_of_the_original_drives_our_exporter(original_interpreter: Path, tmp_path: Path) -> None:
    config = _config(
        tmp_path / "ours.json",
        {
            "power": {"type": "jumpstarter_driver_power.driver.MockPower"},
            "echo": {"type": "jumpstarter_driver_network.driver.EchoNetwork"},
            "storage": {
                "type": "jumpstarter_driver_storage.driver.FileFlasher",
                "config": {"path": str(tmp_path / "disk.img"), "state_dir": str(tmp_path / "state")},
            },
        },
    )
    image = tmp_path / "image.bin"
    image.write_bytes(os.urandom(3 << 20) + bytes(1 << 20) + os.urandom(12345))
    path = tmp_path / "ours.sock"
    argv = [sys.executable, "-m", "jumpstarter.exporter", "--config", config, "--listen", f"unix:{path}"]
    program = f"""
import os
from jumpstarter.utils.env import env
with env() as client:
    client.power.on()
    print([(r.voltage, r.current) for r in client.power.read()])
    with client.echo.stream() as stream:
        stream.send(b"hello")
        print(stream.receive())
    try:
        client.power.call("nope")
    except Exception as error:
        print(type(error).__name__)
    client.storage.flash({str(image)!r})
    client.storage.dump({str(tmp_path / "dump.bin")!r})
    client.power.off()
"""
    with _ended(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)) as exporter:
        assert exporter.stdout is not None
        assert exporter.stdout.readline().startswith("READY")
        env = {**os.environ, "JUMPSTARTER_HOST": str(path), "JMP_DRIVERS_ALLOW": "UNSAFE", "TERM": "dumb"}
        done = subprocess.run(
            [original_interpreter, "-c", program], env=env, capture_output=True, text=True, timeout=90, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[:3] == [
            "[(0.0, 0.0), (5.0, 2.0)]",
            "b'hello'",
            "DriverMethodNotImplemented",
        ]
        want = hashlib.sha256(image.read_bytes()).hexdigest()
        assert hashlib.sha256((tmp_path / "disk.img").read_bytes()).hexdigest() == want
        assert hashlib.sha256((tmp_path / "dump.bin").read_bytes()).hexdigest() == want
        done = subprocess.run([original_interpreter.parent / "j", "power", "on"], env=env, timeout=60, check=False)
        assert done.returncode == 0


def _wait_port(process: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the original's exporter ended"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise AssertionError("the original's exporter does not listen")


def test_our_client_drives_an_exporter_of_the_original(original_interpreter: Path, tmp_path: Path) -> None:
    config = _config(
        tmp_path / "theirs.yaml",
        {
            "power": {"type": "jumpstarter_driver_power.driver.MockPower"},
            "echo": {"type": "jumpstarter_driver_network.driver.EchoNetwork"},
            "storage": {"type": "jumpstarter_driver_opendal.driver.MockFlasher"},
            "serial": {"type": "jumpstarter_driver_pyserial.driver.PySerial", "config": {"url": "loop://"}},
        },
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])  # the original cannot choose a port itself
    argv = [original_interpreter.parent / "jmp", "run", "--exporter-config", config]
    argv += ["--tls-grpc-listener", f"127.0.0.1:{port}", "--tls-grpc-insecure"]
    image = os.urandom(3 << 20)

    async def body() -> None:
        async with connect(f"127.0.0.1:{port}", insecure=True) as session:
            assert not session.lab
            assert await session.status() == (ExporterStatus.LEASE_READY, "Ready for commands")
            power = session.node("power")
            assert power.methods is None
            assert not power.has_method("status")
            async with session.hold("us"):
                await power.call("on")
            assert [r["voltage"] async for r in power.streamingcall("read")] == [0.0, 5.0]
            with pytest.raises(DriverMethodNotImplemented):
                await power.call("nope")
            with pytest.raises(DriverInvalidArgument, match="speaks Jumpstarter 0.9 and takes positional arguments"):
                await power.call("on", wait=1)
            with pytest.raises(DriverInvalidArgument, match="not UTF-8"):
                await power.call("on", b"\xff")
            for path in ("echo", "serial"):
                async with session.node(path).stream() as stream:
                    await stream.send(b"ping")
                    assert await stream.receive() == b"ping"
            storage = session.node("storage")
            async with storage.resource_stream() as (stream, handle), anyio.create_task_group() as tg:

                async def send() -> None:
                    await stream.send(image)
                    await stream.send_eof()

                tg.start_soon(send)
                await storage.call("flash", handle)
            got = b""
            async with storage.resource_stream() as (stream, handle), anyio.create_task_group() as tg:
                tg.start_soon(storage.call, "dump", handle)
                async for data in stream:
                    got += data
            assert got == image

    with _ended(subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)) as exporter:
        _wait_port(exporter, port)
        asyncio.run(asyncio.wait_for(body(), 60))
        exporter.terminate()  # its parent process passes this on to the child that serves
        exporter.wait(20)
