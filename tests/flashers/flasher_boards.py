# SPDX-License-Identifier: Apache-2.0
"""A real board for the flashers' tests: Debian's U-Boot in QEMU, with a disk on USB, behind QEMU's user network.

Its U-Boot asks TFTP servers on port 69 only. The guest's packets to any address of 127.0.0.0/8 leave QEMU as this
process's own, so each board's server listens on port 69 of a loopback address of its own.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from pathlib import Path
from typing import Any

UBOOT = Path("/usr/lib/u-boot/qemu_arm64/u-boot.bin")
INSTALLER = Path("/usr/lib/debian-installer/images/12/arm64/text/debian-installer/arm64")
DISK_SIZE = 64 << 20


def loopback() -> str:
    """An address that no other test uses."""
    return f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"


def make_disk(folder: Path, size: int = DISK_SIZE) -> Path:
    """A disk with something else on it than any image."""
    folder.mkdir(parents=True, exist_ok=True)
    disk = folder / "disk.img"
    disk.write_bytes(b"\xa5" * size)
    return disk


def image(folder: Path, size: int = 24 << 20, seed: int = 1, name: str = "os.img") -> Path:
    """An image with data, zeros (more than one write of U-Boot), data that does not pack, and an odd end."""
    generator = random.Random(seed)
    part = size // 6
    data = b"compressible %d " % seed * (part // 16) + generator.randbytes(part)
    data += bytes(size - len(data) - 512) + generator.randbytes(512)
    path = folder / name
    path.write_bytes(data)
    return path


def sha256_of(path: Path, size: int | None = None) -> str:
    """Of a file's first bytes."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(size) if size is not None else file.read()).hexdigest()


def board(folder: Path, *, disk: Path, memory: str = "160M", bus: str = "nvme", **config: Any) -> Any:
    """A tree as an exporter would have it: the machine, and a flasher by reference. ``config``: of the flasher."""
    from jumpstarter_driver_composite.driver import Composite, Proxy
    from jumpstarter_driver_flashers.driver import BaseFlasher
    from jumpstarter_driver_http.driver import HttpServer
    from jumpstarter_driver_qemu.driver import Qemu
    from jumpstarter_driver_tftp.driver import Tftp

    machine = Qemu(
        arch="aarch64", mem=memory, smp=1, vnc=False, cloud_init=False, powerdown_timeout=0,
        default_partitions={"bios": UBOOT},
        extra_args=[
            "-drive", f"if=none,id=target,format=raw,cache=writethrough,file={disk}",
            *(["-device", "nvme,serial=1,drive=target"] if bus == "nvme" else
              ["-device", "usb-ehci", "-device", "usb-storage,drive=target"]),
        ],
    )  # fmt: skip
    settings: dict[str, Any] = {
        "flasher_bundle": None, "uboot_targets": {"disk": f"{bus} 0"}, "uboot_chunk": "8M", "power_wait": 0,
        "retry_wait": 0, "cache_dir": str(folder / "cache"), "state_dir": str(folder / "records"),
    }  # fmt: skip
    settings |= config
    # the machine's own name for this host is 10.0.2.2
    tftp = Tftp(root_dir=str(folder / "tftp"), host=loopback(), port=69)
    http = HttpServer(root_dir=str(folder / "http"), host="10.0.2.2", bind="127.0.0.1", port=0)
    flasher = BaseFlasher(
        children={
            "serial": Proxy(ref="qemu.console"), "power": Proxy(ref="qemu.power"), "tftp": tftp, "http": http,
        },
        **settings,
    )  # fmt: skip
    return Composite(children={"qemu": machine, "storage": flasher})


def left_over(folder: Path) -> list[str]:
    """Files that a flash should have removed from the servers' folders."""
    found = []
    for name in ("tftp", "http"):
        root = folder / name
        for path, _, files in os.walk(root):
            found += [os.path.join(os.path.relpath(path, folder), file) for file in files]
    return found


MANIFEST = """\
apiVersion: jumpstarter.dev/v1alpha1
kind: FlashBundleManifest
metadata:
  name: debian-installer
spec:
  manufacturer: Debian
  link: https://www.debian.org/
  bootcmd: >-
    setenv bootargs console=ttyAMA0 rdinit=/bin/sh loglevel=4;
    booti 0x42000000 0x50000000:${filesize} ${fdtcontroladdr}
  default_target: usb
  targets:
    usb: /dev/sda
    missing: /dev/nowhere
    byaddress: /sys/class/block#usb1/1-
  kernel: {file: data/linux, address: "0x42000000"}
  initram: {file: data/initrd.gz, address: "0x50000000"}
  preflash_commands:
    - modprobe -a virtio_pci virtio_net ehci-pci usb-storage sd_mod
    - "false"
"""


def make_bundle(folder: Path, manifest: str = MANIFEST) -> Path:
    """A flasher bundle of Debian's installer: its kernel and its initial RAM disk, as they are."""
    data = folder / "data"
    data.mkdir(parents=True)
    for name in ("linux", "initrd.gz"):
        shutil.copyfile(INSTALLER / name, data / name)
    (folder / "manifest.yaml").write_text(manifest)
    return folder
