# SPDX-License-Identifier: Apache-2.0
"""Protects the download that every network boot begins with: the real U-Boot in QEMU against the TFTP server driver."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jumpstarter.common.utils import serve
from jumpstarter_driver_composite.driver import Composite, Proxy
from jumpstarter_driver_qemu.driver import Qemu
from jumpstarter_driver_tftp.driver import Tftp
from jumpstarter_driver_uboot.driver import UbootConsole

FIRMWARE = Path("/usr/lib/u-boot/qemu_arm64/u-boot.bin")
ADDRESS = "0x42000000"


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """U-Boot at its prompt with an address, beside a TFTP server that it can reach.

    This build of U-Boot asks port 69 only, so the server gets a loopback address of its own; QEMU's user network takes
    packets to any address of this host.
    """
    address = f"127.{random.randint(1, 254)}.{random.randint(0, 254)}.{random.randint(1, 254)}"
    machine = Qemu(
        arch="aarch64", mem="128M", smp=1, vnc=False, cloud_init=False, powerdown_timeout=0,
        default_partitions={"bios": FIRMWARE},
    )  # fmt: skip
    uboot = UbootConsole(children={"power": Proxy(ref="qemu.power"), "serial": Proxy(ref="qemu.console")})
    tftp = Tftp(root_dir=str(tmp_path_factory.mktemp("tftp")), host=address, port=69)
    with serve(Composite(children={"qemu": machine, "uboot": uboot, "tftp": tftp})) as client:
        client.tftp.start()
        with client.uboot.reboot_to_console():
            client.uboot.setup_dhcp()
            client.uboot.set_env("serverip", client.tftp.get_host())
            yield client


@pytest.mark.parametrize(("blksize", "windowsize"), [(None, None), ("512", "1"), ("1428", "16")])
def test_uboot_loads_a_file_from_a_folder(
    board: Any, tmp_path: Path, blksize: str | None, windowsize: str | None
) -> None:
    content = os.urandom(600_001)
    (tmp_path / "Image").write_bytes(content)
    path = board.tftp.put_file("virt/Image", tmp_path / "Image")
    board.uboot.set_env("tftpblocksize", blksize)
    board.uboot.set_env("tftpwindowsize", windowsize)
    lines = board.uboot.run_command_checked(f"tftpboot {ADDRESS} {path}", timeout=60)
    assert any("Bytes transferred = 600001" in line for line in lines), lines
    found = board.uboot.run_command_checked(f"crc32 {ADDRESS} $filesize", timeout=30)
    assert any(f"==> {zlib.crc32(content):08x}" in line for line in found), found


def test_uboot_says_what_is_not_there(board: Any) -> None:
    with pytest.raises(RuntimeError, match="(?i)file not found"):
        board.uboot.run_command_checked(f"tftpboot {ADDRESS} nope", timeout=60)
