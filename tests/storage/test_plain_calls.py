# SPDX-License-Identifier: Apache-2.0
"""The calls every Jumpstarter client knows: flash and dump by resource handle, storage switches, the mocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from storage_helpers import MIB, pack, sha256

from jumpstarter.client.flasher import node_of
from jumpstarter.client.imaging import ImagingError
from jumpstarter.common.exceptions import ArgumentError, DriverError
from jumpstarter.driver import Driver, export
from jumpstarter.driver.flasher import FlasherInterface
from jumpstarter_driver_opendal.client import StorageMuxClient
from jumpstarter_driver_opendal.driver import MockFlasher, MockStorageMux, MockStorageMuxFlasher
from jumpstarter_driver_storage.driver import (
    FileFlasher,
    Flasher,
    StorageMuxFlasherInterface,
    TargetStorageMux,
    TargetStorageMuxFlasher,
)

Client = Callable[[Any], Any]


def plain_flash(client: Any, data: bytes, *, encoding: str | None = None, method: str = "flash") -> Any:
    """What a 0.9 client does: a resource stream in chunks of 64 KiB and one unary call."""

    async def run() -> Any:
        import asyncio

        node = node_of(client)
        async with node.resource_stream(encoding) as (stream, handle):

            async def send() -> None:
                for start in range(0, len(data), 65536):
                    await stream.send(data[start : start + 65536])
                await stream.send_eof()

            sending = asyncio.create_task(send())
            try:
                return await node.call(method, handle)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)

    return client.portal.call(run)


def test_a_plain_flash_is_checked_verified_and_recorded(client: Client, image: Path, tmp_path: Path) -> None:
    flasher = client(FileFlasher(path=str(tmp_path / "disk"), size="8MiB"))
    data = image.read_bytes()
    result = plain_flash(flasher, data)
    assert (result["size"], result["sha256"], result["verified"]) == (len(data), sha256(data), True)
    assert result["skipped"] >= 3 * MIB
    assert (tmp_path / "disk").read_bytes() == data + bytes(8 * MIB - len(data))
    assert not flasher.flash(image).changed


@pytest.mark.parametrize(("tool", "name"), [("xz", "xz"), ("gzip", "gzip"), ("bzip2", "bz2"), ("zstd", "zstd")])
@pytest.mark.parametrize("announced", [True, False], ids=["announced", "found out"])
def test_a_plain_flash_of_compressed_data(
    client: Client, image: Path, tmp_path: Path, tool: str, name: str, announced: bool
) -> None:
    flasher = client(FileFlasher(path=str(tmp_path / "disk")))
    packed = pack(image, tool).read_bytes()
    plain_flash(flasher, packed, encoding=name if announced else None)
    assert (tmp_path / "disk").read_bytes() == image.read_bytes()
    with pytest.raises(DriverError, match="truncated.*target is incomplete"):
        plain_flash(flasher, packed[:-5], encoding=name if announced else None)


def test_a_plain_flash_that_does_not_fit(client: Client, image: Path, tmp_path: Path) -> None:
    flasher = client(FileFlasher(path=str(tmp_path / "disk"), size="1MiB"))
    with pytest.raises(DriverError, match="image is larger than the 1.0 MiB"):
        plain_flash(flasher, image.read_bytes())


def test_a_target_may_store_archives_as_they_are(client: Client, image: Path, tmp_path: Path) -> None:
    flasher = client(Flasher(targets={"store": {"path": str(tmp_path / "store"), "decompress": "never"}}))
    packed = pack(image, "gzip")
    plain_flash(flasher, packed.read_bytes())
    assert (tmp_path / "store").read_bytes() == packed.read_bytes()


@pytest.mark.parametrize("compression", [None, "gzip", "xz", "bz2", "zstd"])
def test_mock_flasher_takes_any_target(client: Client, image: Path, tmp_path: Path, compression: str | None) -> None:
    flasher = client(MockFlasher())
    source = pack(image, {"bz2": "bzip2"}.get(compression, compression)) if compression else image
    flasher.flash(source, target="anything", compression=compression)
    flasher.dump(tmp_path / "back", target="anything")
    assert (tmp_path / "back").read_bytes() == image.read_bytes()
    flasher.flash({"a": source, "b": source})
    flasher.flash(source)
    with pytest.raises(ArgumentError):
        flasher.flash({"a": source}, target="b")
    with pytest.raises(ImagingError, match="plain name"):
        flasher.flash(source, target="../escape")


def test_mock_flasher_leaves_nothing_behind(client: Client, image: Path) -> None:
    from jumpstarter.common.utils import serve

    driver = MockFlasher()
    with serve(driver) as flasher:
        flasher.flash(image)
        (path,) = {target.path for target in driver.storage_targets().values()}
        assert Path(path).exists()
    assert not Path(path).parent.exists()


class OldFlasher(FlasherInterface, Driver):
    """A flasher that knows no more than the interface."""

    stored: bytes = b""

    @export
    async def flash(self, source: Any, target: str | None = None) -> None:
        async with self.resource(source) as stream:
            self.stored = b"".join([chunk async for chunk in stream])

    @export
    async def dump(self, target: Any, partition: str | None = None) -> None:
        async with self.resource(target) as stream:
            await stream.send(self.stored)


def test_a_flasher_that_knows_only_the_interface_gets_plain_bytes(client: Client, image: Path, tmp_path: Path) -> None:
    driver = OldFlasher()
    flasher = client(driver)
    result = flasher.flash(pack(image, "xz"))
    assert driver.stored == image.read_bytes()
    assert (result.changed, result.verified, result.size) == (True, False, image.stat().st_size)
    assert result.sha256 == sha256(image.read_bytes())
    flasher.dump(tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == image.read_bytes()
    driver.stored = b""
    assert flasher.flash(image, check=True).changed
    assert driver.stored == b""


def test_mock_storage_mux(client: Client, image: Path, tmp_path: Path) -> None:
    mux = client(MockStorageMux())
    assert isinstance(mux, StorageMuxClient)
    mux.host()
    assert mux.state() == "host"
    mux.write_local_file(image)
    mux.read_local_file(tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == image.read_bytes()
    mux.dut()
    mux.off()
    assert mux.state() == "off"


@pytest.mark.parametrize("kind", [MockStorageMuxFlasher, TargetStorageMuxFlasher])
def test_mux_flasher_switches_to_the_host_and_then_to_the_dut(
    client: Client, image: Path, tmp_path: Path, kind: Any
) -> None:
    sides: list[str] = []

    class Watched(kind):  # type: ignore[misc]
        async def connect_to(self, side: str) -> None:
            sides.append(side)

    fields = {} if kind is MockStorageMuxFlasher else {"path": str(tmp_path / "card")}
    mux = client(Watched(**fields))
    assert mux.flash(image).changed
    assert (sides, mux.state()) == (["host", "dut"], "dut")
    assert mux.dump(tmp_path / "back").size == image.stat().st_size
    assert sides == ["host", "dut"] * 2
    with pytest.raises(ArgumentError):
        mux.flash(image, target="x")
    with pytest.raises(ImagingError):
        mux.flash(tmp_path / "missing")


class SwitchedCard(StorageMuxFlasherInterface, Driver):
    """A storage switch that knows no more than the interface, as other people's drivers do."""

    card: bytes = b""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.calls: list[str] = []

    @export
    def host(self) -> None:
        self.calls.append("host")

    @export
    def dut(self) -> None:
        self.calls.append("dut")

    @export
    def off(self) -> None:
        self.calls.append("off")

    @export
    async def write(self, src: Any) -> None:
        self.calls.append("write")
        async with self.resource(src) as stream:
            self.card = b"".join([chunk async for chunk in stream])

    @export
    async def read(self, dst: Any) -> None:
        self.calls.append("read")
        async with self.resource(dst) as stream:
            await stream.send(self.card)


def test_a_switch_that_knows_only_the_interface_is_switched_by_the_client(
    client: Client, image: Path, tmp_path: Path
) -> None:
    driver = SwitchedCard()
    mux = client(driver)
    mux.flash(image)
    assert (driver.calls, driver.card == image.read_bytes()) == (["host", "write", "dut"], True)
    driver.calls.clear()
    mux.dump(tmp_path / "back")
    assert driver.calls == ["host", "read", "dut"]
    assert (tmp_path / "back").read_bytes() == image.read_bytes()
    driver.calls.clear()
    with pytest.raises(ImagingError, match="does not exist"):
        mux.flash(tmp_path / "missing")
    assert driver.calls[-1] == "dut"
    assert mux.state() == "unknown"


def test_a_failed_flash_still_gives_the_storage_to_the_dut(client: Client, image: Path, tmp_path: Path) -> None:
    mux = client(TargetStorageMuxFlasher(path=str(tmp_path / "card"), size="1MiB"))
    mux.host()
    with pytest.raises(DriverError, match="larger than"):
        plain_flash(mux, image.read_bytes())
    assert mux.state() == "dut"


def test_storage_at_the_dut_is_not_written(client: Client, image: Path, tmp_path: Path) -> None:
    mux = client(TargetStorageMux(path=str(tmp_path / "card")))
    mux.dut()
    with pytest.raises(ImagingError, match="connected to the DUT and cannot be written; call host first"):
        mux.write_local_file(image)
    assert not (tmp_path / "card").exists()
    mux.host()
    assert mux.write_local_file(image).changed
    assert (tmp_path / "card").read_bytes() == image.read_bytes()


def test_commands(client: Client, image: Path, tmp_path: Path) -> None:
    flasher = client(Flasher(targets={"a": str(tmp_path / "a"), "b": str(tmp_path / "b")}, default_target="a"))
    runner = CliRunner()
    result = runner.invoke(flasher.cli(), ["flash", str(image)])
    assert result.exit_code == 0 and "bytes written" in result.output and "verified" in result.output
    result = runner.invoke(flasher.cli(), ["flash", str(image)])
    assert "a: nothing to do, the target already holds this image" in result.output
    result = runner.invoke(flasher.cli(), ["flash", "-t", f"b:{image}", "--no-verify"])
    assert result.exit_code == 0 and (tmp_path / "b").read_bytes() == image.read_bytes()
    result = runner.invoke(flasher.cli(), ["dump", str(tmp_path / "back"), "--target", "b"])
    assert result.exit_code == 0 and (tmp_path / "back").read_bytes() == image.read_bytes()
    assert runner.invoke(flasher.cli(), ["flash"]).exit_code == 2
    mux = client(MockStorageMux())
    for command in (["host"], ["write-local-file", str(image)], ["dut"], ["off"]):
        assert runner.invoke(mux.cli(), command).exit_code == 0
