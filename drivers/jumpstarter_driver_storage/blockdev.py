# SPDX-License-Identifier: Apache-2.0
"""Linux block devices: size, identity, who uses them, and making ranges zero. Everything by sysfs, procfs and ioctl."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

_BLKROGET = 0x125E
_BLKFLSBUF = 0x1261
_BLKGETSIZE64 = 0x80081272
_BLKZEROOUT = 0x127F

_SYS = Path("/sys/dev/block")

IDENTITY_KEYS = ("serial", "wwid", "model", "vendor", "backing_file")
"""What `identity` may tell about a device, and what a configuration may ask to match."""


def device_number(path: str) -> tuple[int, int] | None:
    """(major, minor) of the block device at ``path``; None when it is no block device."""
    info = os.stat(path)
    return (os.major(info.st_rdev), os.minor(info.st_rdev)) if stat.S_ISBLK(info.st_mode) else None


def size_of(fd: int) -> int:
    """Bytes the open block device holds."""
    value = array.array("Q", [0])
    fcntl.ioctl(fd, _BLKGETSIZE64, value)
    return int(value[0])


def is_readonly(fd: int) -> bool:
    """Whether the kernel would refuse writes to the open block device."""
    value = array.array("i", [0])
    fcntl.ioctl(fd, _BLKROGET, value)
    return bool(value[0])


def sysfs(number: tuple[int, int]) -> Path:
    """The device's directory in sysfs, resolved."""
    return (_SYS / f"{number[0]}:{number[1]}").resolve()


def identity(number: tuple[int, int]) -> dict[str, str]:
    """What the kernel knows about the device, by `IDENTITY_KEYS`; of a partition, what it knows about its disk."""
    directory = sysfs(number)
    if (directory / "partition").exists():
        directory = directory.parent
    places = {
        "serial": ("serial", "device/serial"),
        "wwid": ("wwid", "device/wwid", "dm/uuid"),
        "model": ("device/model", "device/name"),
        "vendor": ("device/vendor",),
        "backing_file": ("loop/backing_file",),
    }
    found = {}
    for key, names in places.items():
        for name in names:
            if text := _read(directory / name):
                found[key] = text
                break
    # A USB card reader's own node has no serial: it is written on the USB device, some levels up.
    if "serial" not in found and (usb := _usb_device(directory)) is not None and (text := _read(usb / "serial")):
        found["serial"] = text
    return found


def _usb_device(directory: Path) -> Path | None:
    for parent in (directory / "device").resolve().parents:
        if (parent / "idVendor").exists():
            return parent
    return None


def activity(number: tuple[int, int]) -> dict[str, str]:
    """A mark that changes whenever somebody writes to the device, swaps its medium or the host restarts."""
    directory = sysfs(number)
    counters = _read(directory / "stat").split()
    disk = directory.parent if (directory / "partition").exists() else directory
    return {
        "boot": _read(Path("/proc/sys/kernel/random/boot_id")),
        "diskseq": _read(disk / "diskseq"),
        # sectors written and discarded, counted by the kernel since the device appeared
        "writes": "/".join(counters[i] for i in (6, 13) if i < len(counters)),
    }


def users(number: tuple[int, int]) -> list[str]:
    """Who uses the device or a part of it: mount points, swap, device-mapper or md holders, as phrases."""
    numbers = set(_family(sysfs(number))) | {number}
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if _number(fields[2]) in numbers:
            found.append(f"mounted on {_unescape(fields[4])}")
    for line in Path("/proc/swaps").read_text().splitlines()[1:]:
        if line.startswith("/dev/") and _is_one_of(_unescape(line.split()[0]), numbers):
            found.append("used as swap")
    for major, minor in sorted(numbers):
        holders = sysfs((major, minor)) / "holders"
        if holders.is_dir():
            found.extend(f"part of {holder.name}" for holder in sorted(holders.iterdir()))
    return found


def zero_out(fd: int, offset: int, length: int) -> bool:
    """Make a range read as zeros, by the device's own means where it has any; False when it cannot be done so."""
    try:
        fcntl.ioctl(fd, _BLKZEROOUT, struct.pack("QQ", offset, length))
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY):
            return False
        raise
    return True


def forget_cached(fd: int) -> None:
    """Drop what the kernel caches of the device, so that the next read comes from the medium."""
    try:
        fcntl.ioctl(fd, _BLKFLSBUF, 0)
    except PermissionError:  # without CAP_SYS_ADMIN: the reader's O_DIRECT or fadvise has to do
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _family(directory: Path) -> Iterator[tuple[int, int]]:
    """The partitions of a disk; of a partition, only itself."""
    for child in directory.iterdir():
        if (child / "partition").exists() and (number := _number(_read(child / "dev"))):
            yield number


def _number(text: str) -> tuple[int, int] | None:
    major, _, minor = text.partition(":")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


def _is_one_of(path: str, numbers: set[tuple[int, int]]) -> bool:
    try:
        return device_number(path) in numbers
    except OSError:  # listed by another mount namespace's name
        return False


def _unescape(text: str) -> str:
    return text.encode().decode("unicode_escape")


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:  # the attribute does not exist for this kind of device
        return ""
