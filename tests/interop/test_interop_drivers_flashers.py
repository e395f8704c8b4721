# SPDX-License-Identifier: Apache-2.0
"""Jumpstarter 0.9's clients with our flashers: what they ask for, their U-Boot shell, and an image from a registry.

0.9's own flash is a conversation that its client holds over the network; it needs curl on the board, which Debian's
installer does not have. What it asks the exporter for on the way is asked here.
"""

from __future__ import annotations

import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from original_exporters import our_client, our_exporter, their_exporter

sys.path.insert(0, str(Path(__file__).parents[1] / "flashers"))

from flasher_boards import UBOOT, image, loopback, sha256_of
from oci_registry import registry
from test_flasher_bundles import FULL, small_bundle

THEIRS = """
import sys
from jumpstarter.utils.env import env

with env() as client:
    storage = client.storage
    storage.call("setup_flasher_bundle")
    spec = storage.manifest.spec
    print("RESULT", spec.default_target, spec.targets["usd"], spec.dtb.variants["old"] is not None)
    print("RESULT", *(storage.call(f"get_{name}") for name in (
        "kernel_filename", "kernel_address", "dtb_filename", "dtb_address", "default_target")))
    print("RESULT", storage.call("get_bootcmd"))
    with storage.bootloader_shell() as serial, serial.pexpect() as console:
        console.sendline("setenv autoload no; dhcp; setenv serverip " + storage.tftp.get_host())
        console.expect("bound to address")
        console.expect("\\n=> ")
        console.sendline("tftpboot 0x40400000 Image; echo r''c=$?")
        console.expect("Bytes transferred = 5000")
        console.expect("rc=0")
        print("RESULT U-Boot answered")
    client.qemu.power.off()
    ended = [code for out, err, code in client.qemu.flasher.streamingcall("flash_oci", sys.argv[1], "root")]
    print("RESULT flash_oci", ended[-1])
"""


def test_client_of_the_original_uses_our_flashers(original: Path, tmp_path: Path) -> None:
    # 0.9 knows variants as mappings only
    bundle = small_bundle(tmp_path / "bundle", FULL.replace("old: data/old.dtb", "old: {file: data/old.dtb}"))
    source = image(tmp_path, 2 << 20)
    with registry(tmp_path / "registry") as server:
        server.push("lab/os:v1", {"os.img": source})
        qemu: dict[str, Any] = {
            "arch": "aarch64", "mem": "160M", "smp": 1, "vnc": False, "cloud_init": False, "powerdown_timeout": 0,
            "default_partitions": {"bios": str(UBOOT)}, "state_dir": str(tmp_path / "state"),
            "insecure_registries": [server.host],
        }  # fmt: skip
        tftp = {"root_dir": str(tmp_path / "tftp"), "host": loopback(), "port": 69}
        http = {"root_dir": str(tmp_path / "http"), "host": "127.0.0.1", "port": 0}
        drivers: dict[str, Any] = {
            "qemu": {"type": "jumpstarter_driver_qemu.driver.Qemu", "config": qemu},
            "storage": {
                "type": "jumpstarter_driver_flashers.driver.BaseFlasher",
                "children": {
                    "serial": {"ref": "qemu.console"},
                    "power": {"ref": "qemu.power"},
                    "tftp": {"type": "jumpstarter_driver_tftp.driver.Tftp", "config": tftp},
                    "http": {"type": "jumpstarter_driver_http.driver.HttpServer", "config": http},
                },
                "config": {
                    "flasher_bundle": str(bundle),
                    "cache_dir": str(tmp_path / "cache"),
                    "state_dir": str(tmp_path / "records"),
                },
            },
        }
        with our_exporter(original, tmp_path, drivers) as theirs:
            said = theirs.python(THEIRS, f"oci://{server.host}/lab/os:v1", timeout=120)
    results = [line.removeprefix("RESULT ") for line in said.splitlines() if line.startswith("RESULT ")]
    assert list(takewhile(bool, results)) == [
        "emmc /sys/class/block#4fb0000.mmc True",
        "Image 0x82000000 evm.dtb 0x84000000 emmc",
        "booti 0x82000000 - 0x84000000",
        "U-Boot answered",
        "flash_oci 0.0",
    ], said
    assert sha256_of(tmp_path / "state" / "root") == sha256_of(source)


def test_our_client_tells_that_a_flasher_of_the_original_needs_its_own(original: Path, tmp_path: Path) -> None:
    config = {f"{name}_dir": str(tmp_path / name) for name in ("cache", "tftp", "http")}
    drivers: dict[str, Any] = {
        "storage": {
            "type": "jumpstarter_driver_flashers.driver.BaseFlasher",
            "children": {
                "serial": {"type": "jumpstarter_driver_pyserial.driver.PySerial", "config": {"url": "loop://"}},
                "power": {"type": "jumpstarter_driver_power.driver.MockPower"},
            },
            "config": {**config, "flasher_bundle": "registry.invalid/bundle:v1"},
        },
    }
    source = image(tmp_path, 1 << 20)
    with their_exporter(original, tmp_path, drivers) as address, our_client(address) as client:
        with pytest.raises(NotImplementedError, match="0.9.* leaves the work to its client; use a client of its"):
            client.storage.flash(source)
