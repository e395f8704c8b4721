# SPDX-License-Identifier: Apache-2.0
"""The real Jumpstarter 0.9 on either side of a direct connection, as processes."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any

import anyio
import pytest
from original_exporters import our_exporter, their_exporter

from jumpstarter.client.aio import connect
from jumpstarter.common.enums import ExporterStatus
from jumpstarter.common.exceptions import DriverInvalidArgument, DriverMethodNotImplemented


def test_client_of_the_original_drives_our_exporter(original: Path, tmp_path: Path) -> None:
    drivers: dict[str, Any] = {
        "power": {"type": "jumpstarter_driver_power.driver.MockPower"},
        "echo": {"type": "jumpstarter_driver_network.driver.EchoNetwork"},
        "storage": {
            "type": "jumpstarter_driver_storage.driver.FileFlasher",
            "config": {"path": str(tmp_path / "disk.img"), "state_dir": str(tmp_path / "state")},
        },
    }
    image = tmp_path / "image.bin"
    image.write_bytes(os.urandom(3 << 20) + bytes(1 << 20) + os.urandom(12345))
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
    with our_exporter(original, tmp_path, drivers) as theirs:
        assert theirs.python(program).splitlines()[:3] == [
            "[(0.0, 0.0), (5.0, 2.0)]",
            "b'hello'",
            "DriverMethodNotImplemented",
        ]
        want = hashlib.sha256(image.read_bytes()).hexdigest()
        assert hashlib.sha256((tmp_path / "disk.img").read_bytes()).hexdigest() == want
        assert hashlib.sha256((tmp_path / "dump.bin").read_bytes()).hexdigest() == want
        theirs.j("power", "on")


def test_our_client_drives_an_exporter_of_the_original(original: Path, tmp_path: Path) -> None:
    drivers: dict[str, Any] = {
        "power": {"type": "jumpstarter_driver_power.driver.MockPower"},
        "echo": {"type": "jumpstarter_driver_network.driver.EchoNetwork"},
        "storage": {"type": "jumpstarter_driver_opendal.driver.MockFlasher"},
        "serial": {"type": "jumpstarter_driver_pyserial.driver.PySerial", "config": {"url": "loop://"}},
    }
    image = os.urandom(3 << 20)

    async def body(address: str) -> None:
        async with asyncio.timeout(60), connect(address, insecure=True) as session:
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

    with their_exporter(original, tmp_path, drivers) as address:
        asyncio.run(body(address))
