# SPDX-License-Identifier: Apache-2.0
"""What is found at construction, what 0.9 clients ask for, and the cache of images."""

from __future__ import annotations

import hashlib
import lzma
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oci_registry import OciRegistry
from test_flasher_bundles import FULL, small_bundle

from jumpstarter.common.exceptions import ConfigurationError, DriverError
from jumpstarter.common.utils import serve
from jumpstarter_driver_flashers.driver import BaseFlasher, RCarS4Flasher, TIJ784S4Flasher
from jumpstarter_driver_flashers.images import ImageCache, Intake
from jumpstarter_driver_flashers.wish import Wish, check_bearer, check_headers
from jumpstarter_driver_power.driver import MockPower
from jumpstarter_driver_pyserial.driver import PySerial
from jumpstarter_driver_storage.errors import StorageRefused
from jumpstarter_driver_storage.job import FlashOptions


def children() -> dict[str, Any]:
    return {"serial": PySerial(url="loop://", check_present=False), "power": MockPower()}


def flasher(folder: Path, **config: Any) -> BaseFlasher:
    settings = {
        "cache_dir": str(folder / "cache"), "tftp_dir": str(folder / "tftp"), "http_dir": str(folder / "http"),
        "state_dir": str(folder / "records"), **config,
    }  # fmt: skip
    return BaseFlasher(children=children(), **settings)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"flasher_bundle": "quay.io/UPPER"}, "flasher_bundle: 'quay.io/UPPER' is no OCI reference"),
        ({"flasher_bundle": None}, "flasher_bundle: is required unless there are uboot_targets"),
        ({"uboot_targets": {"disk": "floppy 0"}}, "uboot_targets.disk: 'floppy 0' is no disk of U-Boot"),
        ({"method": "magic"}, "method 'magic' is none of shell, uboot, fls"),
        ({"method": "uboot"}, "method: uboot needs uboot_targets"),
        ({"method": "fls"}, "method fls: needs fls_binary and fls_sha256"),
        ({"fls_binary": "/x"}, "fls_binary and fls_sha256: give both or neither"),
        ({"retries": 0}, "retries: 0 is not between 1 and 20"),
        ({"power_after": "maybe"}, "power_after: 'maybe' is none of off, on, leave"),
        ({"uboot_chunk": "1000"}, "uboot_chunk: '1000' is no multiple of 4096"),
        ({"cache_size": "much"}, "cache_size: "),
        ({"boot_timeout": 0}, "boot_timeout: is not above zero"),
        ({"power_wait": -1}, "power_wait: -1 s is negative"),
        ({"oci_password": "x", "oci_password_file": "y"}, "oci_password and oci_password_file are both given"),
        ({"uboot_address": "here"}, "uboot_address: "),
    ],
)
def test_wrong_configuration_is_found_at_construction(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        flasher(tmp_path, **config)


def test_construction_touches_nothing_and_makes_the_children(tmp_path: Path) -> None:
    driver = flasher(tmp_path, oci_username="u", oci_password="s3cret-word")
    assert set(driver.children) == {"serial", "power", "tftp", "http", "uboot"}
    assert not list(tmp_path.iterdir()) and "s3cret-word" not in repr(driver)
    for missing in ("serial", "power"):
        with pytest.raises(ConfigurationError, match=f'"{missing}" is missing'):
            BaseFlasher(children={name: one for name, one in children().items() if name != missing})
    assert "ti-j784s4" in str(TIJ784S4Flasher(children=children()).flasher_bundle)
    assert "rcar-s4" in str(RCarS4Flasher(children=children()).flasher_bundle)


@pytest.fixture
def client(tmp_path: Path, registry_server: OciRegistry) -> Iterator[Any]:
    bundle = small_bundle(tmp_path / "bundle")
    settings: dict[str, Any] = {"variant": "other", "insecure_registries": [registry_server.host]}
    with serve(flasher(tmp_path, flasher_bundle=str(bundle), **settings)) as one:
        yield one


def test_calls_of_older_clients(client: Any, tmp_path: Path, registry_server: OciRegistry) -> None:
    client.call("setup_flasher_bundle")
    assert client.call("get_flasher_manifest_yaml") == FULL
    assert client.manifest.metadata.name == "board"
    assert client.call("get_kernel_filename") == "Image" and client.call("get_kernel_address") == "0x82000000"
    assert client.call("get_initram_filename") == "" and client.call("get_initram_address") == ""
    assert client.call("get_dtb_filename") == "other.dtb" and client.call("get_dtb_address") == "0x84000000"
    assert client.call("get_bootcmd") == "bootm 0x90000000" and client.call("get_default_target") == "emmc"
    assert client.call("get_cacert") is None
    assert sorted(path.name for path in (tmp_path / "tftp").iterdir() if path.is_file()) == ["Image", "other.dtb"]
    client.use_dtb_variant("evm")
    assert client.call("get_dtb_filename") == "evm.dtb" and client.call("get_bootcmd").startswith("booti")
    assert (tmp_path / "tftp" / "evm.dtb").read_bytes() == b"evm.dtb" * 1000
    with pytest.raises(ValueError, match=r"variant 'nope' is unknown; available: evm, other, old, fit"):
        client.use_dtb_variant("nope")
    for method in ("set_dtb", "dump"):
        with pytest.raises(NotImplementedError):
            client.call(method, {})
    with pytest.raises(DriverError, match="fls_binary: is not set"):
        client.call("setup_fls_binary")

    for folder in (str(small_bundle(tmp_path / "second")), "file:///etc", "../x"):
        with pytest.raises(ValueError, match="is no OCI reference"):  # folders of the exporter host are not a client's
            client.call("setup_flasher_bundle", folder)
    other = small_bundle(tmp_path / "third", FULL.replace("emmc", "nand"))
    registry_server.push_bundle("lab/other:v1", other)
    client.call("setup_flasher_bundle", f"{registry_server.host}/lab/other:v1")
    assert client.call("get_default_target") == "nand"
    client.call("setup_flasher_bundle")
    assert client.call("get_default_target") == "emmc", "another bundle does not stick"
    assert [one.name for one in client.targets()] == ["emmc", "usd"]


def test_what_was_put_on_the_servers_goes_with_the_session(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    with serve(flasher(tmp_path, flasher_bundle=str(bundle))) as client:
        client.call("setup_flasher_bundle")
        assert (tmp_path / "tftp" / "Image").exists()
    assert not [path for path in (tmp_path / "tftp").rglob("*") if path.is_file()]


def test_options_of_a_flash_are_checked() -> None:
    with pytest.raises(ValueError, match="unknown flasher option 'colour'"):
        Wish.parse({"colour": "red"})
    for url in ("ftp://x/y", "http://user:s3cret@x/y", "http://x/a b"):
        with pytest.raises(ValueError, match="url: ") as error:
            Wish.parse({"url": url})
        assert "s3cret" not in str(error.value)
    for headers in ({"a b": "x"}, {"X": "a\r\nb"}, {"x": "1", "X": "2"}):
        with pytest.raises(ValueError, match="header "):
            check_headers(headers)
    for token in ("", "a b", "a\nb", 'a"b', "a\\b", "x" * 5000):
        with pytest.raises(ValueError, match="bearer token: up to 4096"):
            check_bearer(token)
    assert "s3cret" not in repr(Wish.parse({"url": "http://x/y", "headers": {"Authorization": "s3cret"}}))


def options(**values: Any) -> FlashOptions:
    return FlashOptions(**{"compression": "auto", **values})


def test_images_are_kept_by_content_up_to_the_limit(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path, 3 << 20)
    content = random.Random(5).randbytes(1 << 20)
    packed = lzma.compress(content)
    image = Intake(cache, options(source_size=len(packed))).run([packed[:100], packed[100:]])
    assert (image.compression, image.size, image.sha256) == ("xz", 1 << 20, hashlib.sha256(content).hexdigest())
    assert image.path.read_bytes() == packed and b"".join(bytes(one) for one in image.chunks()) == content
    assert image.stored_sha256 == hashlib.sha256(packed).hexdigest()
    assert cache.find(image.sha256) == image and cache.find("0" * 64) is None

    again = Intake(cache, options()).run([packed])
    with open(again.path, "r+b") as file:  # through a link in the HTTP server's folder, say
        file.write(packed[:6])
    assert cache.find(image.sha256) is None, "what was written to is not believed"
    image = Intake(cache, options()).run([packed])
    assert cache.find(image.sha256) == image

    kept = []
    for seed in range(3):
        kept.append(Intake(cache, options()).run([random.Random(seed).randbytes(1 << 20)]))
    assert cache.find(image.sha256) is None, "the one that was not used for the longest time went"
    assert all(cache.find(one.sha256) for one in kept)
    large = Intake(cache, options()).run([random.Random(9).randbytes(5 << 20)])
    assert cache.find(large.sha256) == large and not any(cache.find(one.sha256) for one in kept)


@pytest.mark.parametrize(
    ("chunks", "wanted", "message"),
    [
        ([lzma.compress(b"x" * 9999)[:-9]], {}, "bad image: "),
        ([b""], {}, "image is empty"),
        ([b"short"], {"source_size": 6}, "5 bytes arrived, the sender announced 6"),
        ([b"short"], {"size": 6}, "image has 5 bytes, the sender announced 6"),
        ([b"short"], {"sha256": "0" * 64}, "the sender announced 0000"),
        ([b"no sparse stream at all, whatever"], {"framing": "sparse", "compression": None}, "bad image: "),
    ],
)
def test_broken_image_is_refused_and_not_kept(
    tmp_path: Path, chunks: list[bytes], wanted: dict[str, Any], message: str
) -> None:
    with pytest.raises(StorageRefused, match=message):
        Intake(ImageCache(tmp_path, 1 << 20), options(**wanted)).run(chunks)
    assert not list((tmp_path / "images").iterdir())
