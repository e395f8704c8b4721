# SPDX-License-Identifier: Apache-2.0
"""Protects the comparison of pictures: what is alike passes, what is not fails and is kept, every option counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagehash
import pytest
from PIL import Image
from video_pictures import login_screen, panic_screen, save

from jumpstarter.common.utils import serve
from jumpstarter_driver_ustreamer.driver import UStreamer
from jumpstarter_imagehash import HASHES, ImageHash, compare, load_picture


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real ustreamer that shows a login screen."""
    blank = save(login_screen("09:41"), tmp_path_factory.mktemp("shown") / "shown.jpg")
    with serve(UStreamer(args={"blank": str(blank), "device": "/dev/no-such"})) as client:
        yield client


def test_what_the_device_shows_is_recognized_and_what_it_does_not_show_is_kept(client: Any, tmp_path: Path) -> None:
    check = ImageHash(client, outdir=tmp_path)
    check.assert_snapshot(save(login_screen("12:00"), tmp_path / "login.png"))
    with pytest.raises(AssertionError, match=r"does not show .*panic\.png: \d+ bits of the hash differ, 5 may"):
        check.assert_snapshot(save(panic_screen(), tmp_path / "panic.png"), tolerance=5)
    kept = load_picture(tmp_path / "FAILED_panic.png")
    assert compare(kept, login_screen()).distance <= 2, "the picture that did not match is the one to look at"
    assert sorted(path.name for path in tmp_path.glob("FAILED_*")) == ["FAILED_panic.png"]


def test_hash_size_and_function_are_used(client: Any) -> None:
    assert ImageHash(client).hash_snapshot().hash.size == 64
    assert ImageHash(client, hash_size=16).hash_snapshot().hash.size == 256
    assert ImageHash(client, hash_func=imagehash.phash, hash_size=4).hash_snapshot() == imagehash.phash(
        client.snapshot(), hash_size=4
    )


@pytest.mark.parametrize("name", HASHES)
def test_every_hash_tells_two_screens_apart_and_forgives_a_clock(name: str) -> None:
    same = compare(login_screen("00:00"), login_screen("23:59"), hash_name=name)
    other = compare(login_screen(), panic_screen(), hash_name=name)
    assert same.bits == 64 and same.distance <= 6 < 10 < other.distance
    assert compare(login_screen(), panic_screen(), hash_name=name, hash_size=16).bits == 256


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8))
    with pytest.raises(ValueError, match='hash is "md5", must be one of average, difference'):
        compare(picture, picture, hash_name="md5")
    for size in (1, 65, 0, -3):
        with pytest.raises(ValueError, match=f"hash_size is {size}"):
            compare(picture, picture, hash_size=size)
        with pytest.raises(ValueError, match=f"hash_size is {size}"):
            ImageHash(None, hash_size=size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="power of two"):
        compare(picture, picture, hash_name="wavelet", hash_size=10)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png is no picture"):
        load_picture(tmp_path / "text.png")
