# SPDX-License-Identifier: Apache-2.0
"""A board flashed through its U-Boot: by the flasher driver, and by typing the bare commands as fast as they end."""

from __future__ import annotations

import os
import random
import select
import socket
import subprocess
import time
import zlib
from pathlib import Path
from typing import Any

UBOOT = Path("/usr/lib/u-boot/qemu_arm64/u-boot.bin")
CHUNK = 8 << 20
_LOAD, _DATA, _BACK = 0x40400000, 0x41400000, 0x42400000


def make_image(folder: Path, mib: int, number: int) -> Path:
    """An image of which half packs well; another one for each number."""
    generator = random.Random(number)
    path = folder / "board.img"
    with path.open("wb") as file:
        for _ in range(mib // 2):
            file.write(generator.randbytes(1 << 20) + (b"%08d" % generator.randrange(10**8)) * (1 << 17))
    return path


def by_driver(folder: Path, image: Path) -> float:
    """Seconds of one flash by the driver, from power on to verified."""
    from jumpstarter.common.utils import serve
    from jumpstarter_driver_composite.driver import Composite, Proxy
    from jumpstarter_driver_flashers.driver import BaseFlasher
    from jumpstarter_driver_qemu.driver import Qemu
    from jumpstarter_driver_tftp.driver import Tftp

    disk = _disk(folder, image)
    machine = Qemu(
        arch="aarch64", mem="160M", smp=1, vnc=False, cloud_init=False, powerdown_timeout=0,
        default_partitions={"bios": UBOOT}, extra_args=_disk_arguments(disk),
    )  # fmt: skip
    children: dict[str, Any] = {
        "serial": Proxy(ref="qemu.console"),
        "power": Proxy(ref="qemu.power"),
        "tftp": Tftp(root_dir=str(folder / "tftp"), host=f"127.{random.randrange(1, 255)}.0.9", port=69),
    }
    flasher = BaseFlasher(
        children=children, flasher_bundle=None, uboot_targets={"disk": "nvme 0"}, uboot_chunk=CHUNK, power_wait=0,
        cache_dir=str(folder / "cache"), state_dir=str(folder / "records"), http_dir=str(folder / "http"),
    )  # fmt: skip
    with serve(Composite(children={"qemu": machine, "storage": flasher})) as client:
        began = time.monotonic()
        result = client.storage.flash(image, force=True)
        seconds = time.monotonic() - began
    assert result.verified
    return seconds


def by_hand(folder: Path, image: Path, *, verify: bool) -> float:
    """Seconds of the same by commands whose answers nobody reads, with QEMU's own TFTP server.

    verify: have U-Boot do the driver's checks as well: both checksums and the reading back.
    """
    disk = _disk(folder, image)
    root = folder / "raw-tftp"
    root.mkdir(exist_ok=True)
    sizes = []
    with image.open("rb") as file:
        while data := file.read(CHUNK):
            packer = zlib.compressobj(1, zlib.DEFLATED, 31)
            (root / f"{len(sizes)}").write_bytes(packer.compress(data) + packer.flush())
            sizes.append(len(data))
    path = folder / "uart"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        began = time.monotonic()
        argv = [
            "qemu-system-aarch64", "-nodefaults", "-display", "none", "-machine", "virt", "-cpu", "cortex-a57", "-m",
            "160M", "-bios", str(UBOOT), "-netdev", f"user,id=n,tftp={root}", "-device",
            "virtio-net-pci,netdev=n,romfile=", "-chardev", f"socket,id=u,path={path}", "-serial", "chardev:u",
            *_disk_arguments(disk),
        ]  # fmt: skip
        with subprocess.Popen(argv) as process:
            try:
                console, _ = listener.accept()
                with console:
                    _prompt(console, keys=True)
                    commands = ["nvme scan", "setenv autoload no; dhcp", "setenv serverip 10.0.2.2"]
                    for number, size in enumerate(sizes):
                        blocks = f"{number * CHUNK // 512:#x} {size // 512:#x}"
                        commands.append(f"tftpboot {_LOAD:#x} {number}; unzip {_LOAD:#x} {_DATA:#x}")
                        if verify:
                            commands.append(f"crc32 {_DATA:#x} {size:#x}")
                        commands.append(f"nvme write {_DATA:#x} {blocks}")
                        if verify:
                            commands.append(f"nvme read {_BACK:#x} {blocks}; crc32 {_BACK:#x} {size:#x}")
                    for command in commands:
                        console.sendall(command.encode() + b"\r")
                        _prompt(console)
                return time.monotonic() - began
            finally:
                process.kill()


def _prompt(console: socket.socket, *, keys: bool = False) -> None:
    seen = b""
    while not seen.endswith(b"\n=> "):
        if not select.select([console], [], [], 0.1)[0]:
            if keys:
                console.sendall(b"\x03")
            continue
        data = console.recv(65536)
        if not data:
            raise RuntimeError("the board went away")
        seen = (seen + data.replace(b"\r", b""))[-4096:]


def _disk(folder: Path, image: Path) -> Path:
    disk = folder / "board.disk"
    with disk.open("wb") as file:
        file.truncate(os.path.getsize(image))
    return disk


def _disk_arguments(disk: Path) -> list[str]:
    drive = f"if=none,id=target,format=raw,cache=unsafe,file={disk}"
    return ["-drive", drive, "-device", "nvme,serial=1,drive=target"]
