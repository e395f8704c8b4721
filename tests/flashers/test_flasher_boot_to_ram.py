# SPDX-License-Identifier: Apache-2.0
"""The whole of it, once: a bundle from a registry, U-Boot, TFTP, Debian's installer in RAM, HTTP, a USB disk."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flasher_boards import DISK_SIZE, image, left_over, make_bundle, make_disk, sha256_of
from oci_registry import OciRegistry

from jumpstarter.client.imaging import Progress

SIZE = 12 << 20


def test_boot_to_ram_flash_from_a_registrys_bundle(
    served: Callable[..., Any], tmp_path: Path, registry_server: OciRegistry
) -> None:
    digest = registry_server.push_bundle("lab/installer:v1", make_bundle(tmp_path / "bundle"))
    disk = make_disk(tmp_path)
    client, tree = served(
        disk=disk, bus="usb", memory="1G", uboot_targets={}, retries=1,
        flasher_bundle=f"{registry_server.host}/lab/installer@{digest}", insecure_registries=[registry_server.host],
    )  # fmt: skip
    source = image(tmp_path, SIZE, name="os.img")
    packed = tmp_path / "an image's $(name).img.gz"
    packed.write_bytes(gzip.compress(source.read_bytes(), 1))
    phases: list[Progress] = []
    result = client.storage.flash(packed, partition="usb", power_off=False, progress=phases.append)
    console = tree.children["qemu"].children["console"].hub.read(-1, 1 << 20).data.decode(errors="replace")
    assert (result.changed, result.verified, result.size, result.sha256) == (True, True, SIZE, sha256_of(source)), (
        console
    )
    content = disk.read_bytes()
    assert content[:SIZE] == source.read_bytes() and content[SIZE:] == b"\xa5" * (DISK_SIZE - SIZE)
    named = [one.phase for one in phases]
    for phase in ("U-Boot: dhcp", "booting the flasher system", "flasher system: dhcp", "writing", "verifying"):
        assert phase in named
    assert "curl" not in [line for line in console.splitlines() if line.startswith("wget")] and "zcat" in console
    assert left_over(tmp_path) == []
    assert client.qemu.call("info")["state"] == "on", "power_off=False"
    record = client.storage.call("flash_state", "usb")["record"]
    assert record["state"] == "valid" and record["sha256"] == result.sha256
