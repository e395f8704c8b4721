# SPDX-License-Identifier: Apache-2.0
"""Flashing between ours and the real Jumpstarter 0.9, in both directions."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from storage_helpers import pack, sha256

sys.path.insert(0, str(Path(__file__).parents[1] / "interop"))

from original_exporters import original_commands, our_exporter, their_exporter

from jumpstarter.client.aio import connect
from jumpstarter.client.imaging import ImagingError, dump, flash

# As source text, which is what a user of 0.9 writes; run with its packages only.
THEIR_CLIENT = """
import sys
from jumpstarter.streams.encoding import Compression
from jumpstarter.utils.env import env
good, cut, large = sys.argv[1:]
with env() as client:
    client.storage.flash(good, compression=Compression.XZ)
    print("flashed", flush=True)
    for path, compression in ((cut, Compression.XZ), (large, None)):
        try:
            client.storage.flash(path, compression=compression)
            print("accepted", path)
        except Exception as error:
            while getattr(error, "exceptions", None):
                error = error.exceptions[0]
            print("refused:", *str(error).split())
"""


@pytest.fixture(scope="module")
def original() -> Path:
    """Folder of the original's commands, in a virtual environment of its own."""
    return original_commands()


def test_our_library_flashes_an_exporter_of_the_original(original: Path, image: Path, tmp_path: Path) -> None:
    """What the original unpacks unchecked (several members, a cut end) is unpacked and checked on our side."""
    half = image.with_name("half")
    half.write_bytes(image.read_bytes()[:1_000_000])
    two_members = tmp_path / "two.gz"
    two_members.write_bytes(pack(half, "gzip").read_bytes() * 2)
    cut = pack(image, "xz")
    cut.write_bytes(cut.read_bytes()[:-12])

    async def scenario(address: str) -> None:
        async with connect(address, insecure=True) as session:
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

    drivers = {"storage": {"type": "jumpstarter_driver_opendal.driver.MockFlasher"}}
    with their_exporter(original, tmp_path, drivers) as address:
        asyncio.run(asyncio.wait_for(scenario(address), 120))


def test_a_client_of_the_original_flashes_compressed_images_and_learns_of_damage(
    original: Path, image: Path, tmp_path: Path
) -> None:
    config = {"path": str(tmp_path / "disk"), "size": "8MiB", "state_dir": str(tmp_path / "records")}
    drivers = {"storage": {"type": "jumpstarter_driver_storage.driver.FileFlasher", "config": config}}
    good = pack(image, "xz")
    cut = tmp_path / "cut.xz"
    cut.write_bytes(good.read_bytes()[:-12])
    large = tmp_path / "large"
    large.write_bytes(os.urandom(9 << 20))
    with our_exporter(original, tmp_path, drivers) as theirs:
        lines = theirs.python(THEIR_CLIENT, good, cut, large, timeout=120).splitlines()
    assert lines[:1] == ["flashed"]
    assert len(lines) == 3, lines
    assert "refused:" in lines[1] and "xz data is truncated" in lines[1] and "target is incomplete" in lines[1]
    assert "refused:" in lines[2] and "image is larger than the 8.0 MiB" in lines[2]
