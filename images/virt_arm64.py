#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Build the disk image of the virt-arm64 reference board: U-Boot finds extlinux.conf on it and boots Linux to a shell.

A DOS-partitioned disk with one FAT partition that holds Debian's cloud kernel for arm64, an initramfs around a static
busybox, and extlinux/extlinux.conf. Needs no root. The same packages and options always give the same bytes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from labimages.artifact import CACHE, IMAGES, build_once
from labimages.cpio import CpioWriter
from labimages.debian import PackageCache
from labimages.disk import FAT32_LBA, MIB, Partition, create_disk, make_fat
from labimages.errors import BuildError
from labimages.modules import load_order
from labimages.tools import require

HOSTNAME = "virt-arm64"
DISK_SIZE = 96 * MIB
FILES = Path(__file__).resolve().parent / "files" / "virt-arm64"
MODULES = ("virtio_mmio", "virtio_pci", "virtio_blk", "virtio_net", "virtio_rng")
EXTLINUX = """\
# U-Boot reads this as it reads any distribution's disk.
default linux
timeout 1
label linux
    kernel /vmlinuz
    initrd /initrd.gz
    append console=ttyAMA0 panic=5
"""


def initramfs(root: Path, modules: Path, marker: str) -> bytes:
    """The compressed initramfs: busybox, our four files, the modules; *root* holds the unpacked packages."""
    cpio = CpioWriter()
    for name in ("bin", "dev", "etc", "lib/modules", "mnt", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin"):
        cpio.directory(name)
    cpio.directory("usr/sbin")
    # The kernel opens these before devtmpfs is mounted; without them early messages of init are lost.
    cpio.character_device("dev/console", 5, 1)
    cpio.character_device("dev/null", 1, 3, 0o666)
    cpio.file("bin/busybox", root / "bin" / "busybox", 0o755)
    cpio.symlink("bin/sh", "busybox")
    cpio.file("init", FILES / "init", 0o755)
    cpio.file("etc/rc", FILES / "rc", 0o755)
    cpio.file("etc/inittab", FILES / "inittab")
    cpio.file("etc/profile", FILES / "profile")
    cpio.file("etc/hostname", f"{HOSTNAME}\n".encode())
    cpio.file("etc/hosts", f"127.0.0.1 localhost {HOSTNAME}\n".encode())
    cpio.file("etc/issue", b"jumpstarter.lab demo image\n")
    cpio.file("etc/passwd", b"root::0:0:root:/root:/bin/sh\n")
    cpio.file("etc/group", b"root:x:0:\n")
    cpio.file("etc/jumpstarter-marker", f"{marker}\n".encode())
    order = load_order(modules, MODULES)
    for module in order:
        cpio.file(f"lib/modules/{module.name}", module)
    cpio.file("lib/modules/order", "".join(f"{module.name}\n" for module in order).encode())
    return cpio.compressed()


def build(output: Path, marker: str) -> dict[str, Any]:
    """Write the disk to *output* and return its facts: kernel version, hostname and marker."""
    require("mformat", "mcopy", "mmd")
    packages = PackageCache(CACHE / "debian", "arm64")
    kernel = packages.dependency("linux-image-cloud-arm64", r"linux-image-[0-9].*-cloud-arm64")
    version = kernel.removeprefix("linux-image-")
    with tempfile.TemporaryDirectory(prefix=".virt-arm64.", dir=output.parent) as scratch:
        root = Path(scratch)
        packages.unpack(root, kernel, "busybox-static")
        files: dict[str, Path | bytes] = {
            "vmlinuz": root / "boot" / f"vmlinuz-{version}",
            "initrd.gz": initramfs(root, root / "lib" / "modules" / version, marker),
            "extlinux/extlinux.conf": EXTLINUX.encode(),
        }
        partition = Partition(MIB, DISK_SIZE - MIB, FAT32_LBA, bootable=True)
        create_disk(output, DISK_SIZE, [partition], signature=0x4A4C_6162)
        make_fat(output, partition, files, label="LABDEMO", serial=0x4A4C_0064)
    return {"board": "virt-arm64", "hostname": HOSTNAME, "kernel": version, "marker": marker}


def main(argv: list[str] | None = None) -> int:
    """Command line; prints the image's path, exit code 1 and one line when it cannot be built."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--marker", default="jumpstarter-lab-demo", help="content of /etc/jumpstarter-marker")
    parser.add_argument("--output", type=Path, default=IMAGES / "virt-arm64.img", help="image to write")
    parser.add_argument("--force", action="store_true", help="build again although nothing changed")
    args = parser.parse_args(argv)
    output = args.output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    options = {"marker": args.marker}
    try:
        facts, built = build_once(HOSTNAME, output, options, lambda path: build(path, args.marker), force=args.force)
    except (BuildError, OSError) as error:
        print(f"virt-arm64 image: {error}", file=sys.stderr)
        return 1
    print(f"{output} ({'built' if built else 'up to date'}; Linux {facts['kernel']}, marker {facts['marker']})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
