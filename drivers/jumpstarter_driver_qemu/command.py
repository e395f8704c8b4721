# SPDX-License-Identifier: Apache-2.0
"""The QEMU command line of a machine. Pure: nothing here touches a file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from jumpstarter_driver_qemu.disks import Drive

__all__ = ["Layout", "command_line"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Everything the command line depends on. Paths are absolute; memory is in MiB; cpu "" is QEMU's default."""

    arch: str
    machine: str
    accel: str
    cpu: str
    smp: int
    memory: int
    console: Path
    vnc: Path | None = None
    bios: Path | None = None
    uefi_code: Path | None = None
    uefi_vars: Path | None = None
    root: Drive | None = None
    cidata: Path | None = None
    hostfwd: tuple[str, ...] = ()
    extra: tuple[str, ...] = field(default=())


def command_line(layout: Layout) -> list[str]:
    """Arguments for QEMU, without the control socket (the machine adds that)."""
    argv = [
        *(f"qemu-system-{layout.arch}", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", layout.machine, "-accel", layout.accel),
        *(("-cpu", layout.cpu) if layout.cpu else ()),
        *("-smp", str(layout.smp), "-m", f"{layout.memory}M"),
        *("-chardev", _options("socket", id="serial0", path=layout.console, server="off")),
        *("-serial", "chardev:serial0"),
        *("-netdev", ",".join(("user,id=eth0", *layout.hostfwd))),
        # Without its option ROM: it is not installed everywhere, and only delays firmware that boots from disk.
        *("-device", "virtio-net-pci,netdev=eth0,romfile="),
    ]
    if layout.vnc is not None:
        argv += ["-vnc", f"unix:{_comma(layout.vnc)}", "-vga", "none", "-device", "virtio-gpu-pci"]
    if layout.bios is not None:
        argv += ["-bios", str(layout.bios)]
    argv += _pflash(layout.uefi_code, unit=0, readonly=True)
    argv += _pflash(layout.uefi_vars, unit=1, readonly=False)
    if layout.root is not None:
        path, kind = layout.root.path, layout.root.format
        argv += ["-blockdev", _options(f"driver={kind}", "node-name=rootfs", "file.driver=file", filename=path)]
        argv += ["-device", "virtio-blk-pci,drive=rootfs,bootindex=1"]
    if layout.cidata is not None:
        argv += ["-blockdev", f"driver=vvfat,node-name=cidata,read-only=on,dir={_comma(layout.cidata)},label=CIDATA"]
        argv += ["-device", "virtio-blk-pci,drive=cidata"]
    return [*argv, *layout.extra]


def _pflash(path: Path | None, *, unit: int, readonly: bool) -> Iterable[str]:
    if path is None:
        return ()
    mode = "on" if readonly else "off"
    return ("-drive", f"if=pflash,format=raw,unit={unit},readonly={mode},file={_comma(path)}")


def _options(*plain: str, **paths: object) -> str:
    names = {"filename": "file.filename"}
    return ",".join((*plain, *(f"{names.get(key, key)}={_comma(value)}" for key, value in paths.items())))


def _comma(value: object) -> str:
    """A comma ends an option's value unless it is doubled."""
    return str(value).replace(",", ",,")
