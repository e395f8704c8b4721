# SPDX-License-Identifier: Apache-2.0
"""What a flash asks of U-Boot: network, files by TFTP, and writing to a disk without any other system.

Command output as in U-Boot's own documentation (https://docs.u-boot.org/en/latest/usage/cmd/); every command's exit
status is looked at, and every file's length.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from jumpstarter.common.storage import format_sizes
from jumpstarter_driver_storage.errors import StorageRefused
from jumpstarter_driver_uboot.common import check_command, quotings
from jumpstarter_driver_uboot.link import PromptLink, UbootError

__all__ = ["BlockDevice", "Say", "UbootStage"]

Say = Callable[[str, int, int | None], None]
"""Progress: phase, bytes done, bytes in all (None when there is nothing to count)."""

_DHCP_ATTEMPTS: Final = 3
_TFTP_PORT: Final = 69
_PROBES: Final = {
    "mmc": "mmc rescan",
    "nvme": "nvme scan",
    "sata": "sata init",
    "scsi": "scsi scan",
    "usb": "usb start",
    "virtio": "virtio scan",
}
_GEOMETRY = re.compile(r"\((\d+) x (\d+)\)")
_SECTOR: Final = 512


@dataclass(frozen=True)
class BlockDevice:
    """A disk as U-Boot names it ("usb 0"). blocks: how many it has, None when U-Boot does not tell."""

    interface: str
    number: str
    block_size: int = _SECTOR
    blocks: int | None = None

    @classmethod
    def parse(cls, text: str) -> BlockDevice:
        """From "usb 0" or "mmc 1". Raises ValueError."""
        found = re.fullmatch(r"(\w+) +([0-9a-f]+)", text.strip())
        if found is None or found[1] not in _PROBES:
            raise ValueError(
                f"{text!r} is no disk of U-Boot; give interface and number: {', '.join(_PROBES)}, as usb 0"
            )
        return cls(found[1], found[2])

    def __str__(self) -> str:
        return f"{self.interface} {self.number}"


class UbootStage:
    """U-Boot at its prompt. Errors are UbootError (another attempt may help) or TimeoutError."""

    def __init__(self, link: PromptLink, say: Say) -> None:
        self._link = link
        self._say = say

    async def run(self, command: str, timeout: float = 30.0) -> list[str]:
        """Run a command and return its output. Raises UbootError unless its exit status is 0."""
        result = await self._link.run(check_command(command), timeout)
        if result.rc != 0:
            how = f"left U-Boot ({result.left})" if result.rc is None else f"failed with exit status {result.rc}"
            said = " / ".join(line.strip() for line in result.lines[-4:] if line.strip()) or "no output"
            raise UbootError(f"U-Boot command {command!r} {how}: {said}")
        return result.lines

    async def setenv(self, name: str, value: str) -> None:
        """Set a variable and read it back."""
        for word in quotings(value):
            await self.run(f"setenv {name} {word}")
            if await self.getenv(name) == value:
                return
        raise UbootError(f"setenv {name}: it is not {value!r} afterwards")

    async def getenv(self, name: str) -> str | None:
        """A variable's value, None when it is not defined."""
        result = await self._link.run(f"printenv {name}", 10)
        text = "\n".join(result.lines)
        return text.removeprefix(f"{name}=") if result.rc == 0 else None

    async def network(self, server: str, port: int, window: int, timeout: float) -> None:
        """Get an address by DHCP and make ``server`` the one that files come from.

        window: TFTP blocks between two acknowledgements; U-Boot before 2020.10 does not know it, and goes without.
        """
        self._say("U-Boot: dhcp", 0, None)
        await self.run("setenv autoload no")  # an address is asked for, not a file
        for attempt in range(_DHCP_ATTEMPTS):
            try:
                await self.run("dhcp", timeout)
                break
            except (UbootError, TimeoutError):
                if attempt == _DHCP_ATTEMPTS - 1:
                    raise
        await self.setenv("serverip", server)
        if window > 1:
            await self.setenv("tftpwindowsize", str(window))
        if port != _TFTP_PORT:  # only builds with CONFIG_TFTP_PORT look at it
            await self.setenv("tftpdstp", str(port))

    async def load(self, address: str, name: str, size: int, timeout: float) -> None:
        """A file of ``size`` bytes from the TFTP server to an address in RAM."""
        self._say(f"U-Boot: tftpboot {name}", 0, size)
        lines = await self.run(f"tftpboot {address} {name}", timeout)
        found = re.search(r"Bytes transferred = (\d+)", "\n".join(lines))
        if found is None or int(found[1]) != size:
            got = found[1] if found else "no"
            raise UbootError(f"U-Boot loaded {got} bytes of {name}, which has {size}")
        self._say(f"U-Boot: tftpboot {name}", size, size)

    async def boot(self, command: str, timeout: float) -> None:
        """Leave U-Boot by the bundle's boot command. Raises UbootError when U-Boot comes back."""
        self._say("booting the flasher system", 0, None)
        result = await self._link.run(check_command(command), timeout)
        if result.left in ("kernel", "efi"):
            return
        said = " / ".join(line.strip() for line in result.lines[-4:] if line.strip()) or "no output"
        what = "restarted the board" if result.left else "came back"
        raise UbootError(f"boot command {command!r} {what} instead of starting a kernel: {said}")

    # --- writing from U-Boot itself -------------------------------------------------------------------------

    async def find(self, device: BlockDevice) -> BlockDevice:
        """Look at a disk; the same with what U-Boot knows about its size."""
        await self.run(_PROBES[device.interface], 60)
        lines = await self.run(f"{device.interface} dev {device.number}", 30)
        # The line that tells the size is printed by `dev` for some interfaces and by `info` for others.
        result = await self._link.run(f"{device.interface} info", 30)
        found = _GEOMETRY.search("\n".join(lines)) or _GEOMETRY.search(_of_device(result.lines, device))
        if found is None:
            if device.interface != "mmc":  # those have blocks of 512 bytes whatever they are; others may not
                raise UbootError(f"U-Boot does not tell the block size of {device}: {_said(lines + result.lines)}")
            return device
        return BlockDevice(device.interface, device.number, int(found[2]), int(found[1]))

    async def fill(self, address: int, size: int) -> None:
        """Zeros to RAM."""
        await self.run(f"mw.l {address:#x} 0 {-(-size // 4):#x}", 60)

    async def unpack(self, source: int, target: int, size: int) -> None:
        """Unpack gzip data in RAM, which must become ``size`` bytes."""
        lines = await self.run(f"unzip {source:#x} {target:#x}", 120)
        found = re.search(r"Uncompressed size: (\d+)", "\n".join(lines))
        if found is None or int(found[1]) != size:
            raise UbootError(f"U-Boot unpacked {found[1] if found else 'no'} bytes instead of {size}")

    async def crc32(self, address: int, size: int) -> int:
        """Checksum of RAM."""
        lines = await self.run(f"crc32 {address:#x} {size:#x}", 120)
        found = re.search(r"==> ([0-9a-f]{8})", "\n".join(lines))
        if found is None:
            raise UbootError(f"unexpected answer to crc32: {' / '.join(lines)}")
        return int(found[1], 16)

    async def write(self, device: BlockDevice, address: int, offset: int, size: int, timeout: float) -> None:
        """RAM to the disk, from byte ``offset`` on (a multiple of its blocks)."""
        await self._transfer("write", device, address, offset, size, timeout)

    async def read(self, device: BlockDevice, address: int, offset: int, size: int, timeout: float) -> None:
        """The disk to RAM. The RAM is spoiled before: a read that does nothing must not look like one that did."""
        spoiled = f"0x{secrets.token_hex(4)}"
        await self.run(f"mw.l {address:#x} {spoiled} 4; mw.l {(address + (size & ~15) - 16):#x} {spoiled} 4")
        await self._transfer("read", device, address, offset, size, timeout)

    async def _transfer(
        self, what: str, device: BlockDevice, address: int, offset: int, size: int, timeout: float
    ) -> None:
        first, rest = divmod(offset, device.block_size)
        assert not rest
        count = -(-size // device.block_size)
        command = f"{device.interface} {what} {address:#x} {first:#x} {count:#x}"
        lines = await self.run(command, timeout)
        text = "\n".join(lines)
        if "ERROR" in text:  # some versions say so and end with 0
            raise UbootError(f"U-Boot command {command!r} failed: {' / '.join(line.strip() for line in lines)}")


def refuse_if_larger(device: BlockDevice, size: int, target: str) -> None:
    """Raise StorageRefused when the disk is known to be too small."""
    if device.blocks is not None and size > device.blocks * device.block_size:
        image, room = format_sizes(size, device.blocks * device.block_size)
        raise StorageRefused(f'image is {image}, target "{target}" ({device}) holds {room}', code="too_large")


def _said(lines: list[str]) -> str:
    return " / ".join(line.strip() for line in lines[-4:] if line.strip()) or "no output"


def _of_device(lines: list[str], device: BlockDevice) -> str:
    """What an ``info`` that lists all disks says about one of them."""
    text = "\n".join(lines)
    found = re.search(rf"(?is)\bdevice {device.number}:.*?(?=\n\s*\w* ?device \d+:|\Z)", text)
    return found.group() if found else ""
