# SPDX-License-Identifier: Apache-2.0
"""What the `config:` of the QEMU driver may contain besides plain values."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

__all__ = [
    "ACCELERATORS",
    "ARCHITECTURES",
    "DEFAULT_CPU",
    "MACHINES",
    "PARTITIONS",
    "Disk",
    "Hostfwd",
    "check_arch",
    "native_arch",
]

#: Architectures that QEMU has or had machines for. Others count when their program is installed.
ARCHITECTURES = (
    *("aarch64", "alpha", "arm", "avr", "cris", "hppa", "i386", "loongarch64", "m68k", "microblaze", "microblazeel"),
    *("mips", "mips64", "mips64el", "mipsel", "nios2", "or1k", "ppc", "ppc64", "riscv32", "riscv64", "rx", "s390x"),
    *("sh4", "sh4eb", "sparc", "sparc64", "tricore", "x86_64", "xtensa", "xtensaeb"),
)

#: What can be flashed: the disk, the firmware of `-bios`, and the two halves of a UEFI flash.
PARTITIONS = ("root", "bios", "OVMF_CODE.fd", "OVMF_VARS.fd")

ACCELERATORS = ("tcg", "kvm", "hvf", "xen")

#: `-machine` by architecture.
MACHINES = {"aarch64": "virt", "arm": "virt", "riscv32": "virt", "riscv64": "virt", "x86_64": "q35", "i386": "q35"}

#: `-cpu` under emulation by architecture; QEMU's own default for the others.
DEFAULT_CPU = {"aarch64": "cortex-a57", "x86_64": "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt"}


@dataclass(kw_only=True)
class Hostfwd:
    """A port of the guest that is reachable on the exporter host, and through a child driver of the same name.

    hostport 0 takes a free port; the child's ``address`` tells which.
    """

    guestport: int
    protocol: Literal["tcp", "udp"] = "tcp"
    hostaddr: str = "127.0.0.1"
    hostport: int = 0

    def check(self, name: str) -> None:
        """Raise ValueError for what QEMU would not take."""
        if self.protocol not in ("tcp", "udp"):
            raise ValueError(f'hostfwd.{name}.protocol: {self.protocol!r} is neither "tcp" nor "udp"')
        for field, low in (("guestport", 1), ("hostport", 0)):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= 65535:
                raise ValueError(f"hostfwd.{name}.{field}: {value!r} is no port ({low} to 65535)")

    def rule(self) -> str:
        """The rule for ``-netdev user``."""
        return f"hostfwd={self.protocol}:{self.hostaddr}:{self.hostport}-:{self.guestport}"


@dataclass(kw_only=True)
class Disk:
    """A disk that is kept, as the disk of a real board is.

    size: how much it holds ("96M"). path: the raw image file; in the board's state directory by default.
    """

    size: str | int | None = None
    path: str | None = None


#: QEMU's name for what others call so.
SPELLINGS = {"arm64": "aarch64", "amd64": "x86_64", "x64": "x86_64", "armv7": "arm", "i686": "i386", "x86": "i386"}


def native_arch() -> str:
    """Architecture of this host in QEMU's spelling."""
    machine = platform.machine()
    return SPELLINGS.get(machine.lower(), machine)


def check_arch(arch: str) -> None:
    """Raise ValueError for an architecture that QEMU does not know."""
    if arch in ARCHITECTURES or (arch.isidentifier() and shutil.which(f"qemu-system-{arch}")):
        return
    meant = SPELLINGS.get(arch.lower()) or next(iter(get_close_matches(arch, ARCHITECTURES, n=1)), "")
    hint = f'did you mean "{meant}"?' if meant else "the common ones are aarch64, arm, riscv64 and x86_64"
    raise ValueError(f'arch: "{arch}" is no architecture of QEMU; {hint}')
