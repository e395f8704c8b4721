# SPDX-License-Identifier: Apache-2.0
"""What the test guest boots from: Debian's kernel with its modules, and an initramfs that mounts this machine's root.

No root file system is built. The guest sees this machine's own files over virtio-9p, read-only and below an overlay in
its memory, so every program and every Python package that is here is there too.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "images"))

from labimages.artifact import CACHE, ROOT, locked
from labimages.cpio import CpioWriter
from labimages.debian import PackageCache
from labimages.modules import load_order

HERE = Path(__file__).resolve().parent
GUEST = ROOT / "build" / "guest"
# What must be loaded before the root is there; everything else comes from the root, with modprobe.
EARLY = ("virtio_pci", "9pnet_virtio", "9p", "overlay")


@dataclass(frozen=True)
class GuestFiles:
    """Files of a bootable guest: the kernel, the folder that is its /lib/modules, the initramfs."""

    kernel: Path
    modules: Path
    initramfs: Path


def _unpack(packages: PackageCache, kernel: str, folder: Path, *needed: str) -> None:
    """Lay *kernel*'s files out in *folder* with the module index that modprobe and udev read; all of it or nothing."""
    if folder.exists():
        return
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    packages.unpack(temporary, kernel, *needed)
    depmod = shutil.which("depmod", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if depmod is None:
        raise FileNotFoundError("the test guest needs depmod: apt-get install kmod")
    version = kernel.removeprefix("linux-image-")
    subprocess.run([depmod, "-b", temporary, "-a", version], check=True, stdin=subprocess.DEVNULL, timeout=120)
    os.replace(temporary, folder)


def _initramfs(folder: Path, version: str, output: Path) -> None:
    """Write the initramfs to *output*."""
    cpio = CpioWriter()
    for name in ("bin", "cow", "dev", "host", "lib/modules", "newroot", "proc"):
        cpio.directory(name)
    cpio.character_device("dev/console", 5, 1)
    cpio.file("bin/busybox", folder / "bin" / "busybox", 0o755)
    cpio.symlink("bin/sh", "busybox")
    cpio.file("init", HERE / "guest_initramfs.sh", 0o755)
    order = load_order(folder / "lib" / "modules" / version, EARLY)
    for module in order:
        cpio.file(f"lib/modules/{module.name}", module)
    cpio.file("lib/modules/order", "".join(f"{module.name}\n" for module in order).encode())
    temporary = output.with_name(f".{output.name}.new")
    temporary.write_bytes(cpio.archive())
    os.replace(temporary, output)


def guest_files() -> GuestFiles:
    """Fetch and build whatever is not there yet, below build/guest; safe to call from several processes."""
    with locked(GUEST / ".lock"):
        packages = PackageCache(CACHE / "debian", "amd64")
        kernel = packages.dependency("linux-image-amd64", r"linux-image-[0-9].*-amd64")
        folder = GUEST / kernel
        _unpack(packages, kernel, folder, "busybox-static")
        version = kernel.removeprefix("linux-image-")
        inputs = hashlib.sha256((HERE / "guest_initramfs.sh").read_bytes() + json.dumps([kernel, EARLY]).encode())
        initramfs = GUEST / f"initramfs-{inputs.hexdigest()[:16]}.cpio"
        if not initramfs.exists():
            _initramfs(folder, version, initramfs)
        return GuestFiles(folder / "boot" / f"vmlinuz-{version}", folder / "lib" / "modules", initramfs)
