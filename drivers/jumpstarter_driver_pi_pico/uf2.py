# SPDX-License-Identifier: Apache-2.0
"""UF2 files: blocks of 512 bytes, each with its address (github.com/microsoft/uf2, README)."""

from __future__ import annotations

import struct
from collections.abc import Collection
from pathlib import Path
from typing import Final

__all__ = ["FAMILIES", "check_uf2", "family_id"]

_BLOCK: Final = 512
_MAGIC: Final = (0x0A324655, 0x9E5D5157, 0x0AB16F30)
_FAMILY_PRESENT: Final = 0x2000
_HEADER: Final = struct.Struct("<8I")

#: Family ids by name (uf2families.json). The rp2350 boards tell by them which core and security state code is for.
FAMILIES: Final = {
    "rp2040": 0xE48BFF56,
    "absolute": 0xE48BFF57,
    "data": 0xE48BFF58,
    "rp2350-arm-s": 0xE48BFF59,
    "rp2350-riscv": 0xE48BFF5A,
    "rp2350-arm-ns": 0xE48BFF5B,
}


def family_id(value: str | int) -> int:
    """A family by name or number. Raises ValueError."""
    if isinstance(value, str) and value.lower() in FAMILIES:
        return FAMILIES[value.lower()]
    try:
        number = int(value, 0) if isinstance(value, str) else int(value)
    except ValueError:
        number = -1
    if not 0 < number < 1 << 32:
        raise ValueError(f"{value!r} is no UF2 family; known are {', '.join(FAMILIES)}, others by number")
    return number


def check_uf2(path: Path, families: Collection[int]) -> int:
    """Whether all of the file is UF2 for one of these families; the number of its blocks.

    Raises ValueError that says which block is wrong. A board takes what it understands and ignores the rest, so a
    damaged file would leave it with half a program.
    """
    size = path.stat().st_size
    if size == 0 or size % _BLOCK:
        raise ValueError(f"is no UF2 file: {size} bytes is no multiple of {_BLOCK}")
    seen: dict[int, set[int]] = {}
    totals: dict[int, int] = {}
    with path.open("rb") as file:
        for number in range(size // _BLOCK):
            block = file.read(_BLOCK)
            first, second, flags, _, length, index, total, family = _HEADER.unpack_from(block)
            if (first, second, int.from_bytes(block[-4:], "little")) != _MAGIC:
                raise ValueError(f"is no UF2 file: block {number} has not its magic numbers")
            family = family if flags & _FAMILY_PRESENT else 0
            if family not in families:
                known = {value: name for name, value in FAMILIES.items()}
                names = ", ".join(known.get(one, hex(one)) for one in families)
                what = f"family {known.get(family, hex(family))}" if family else "no family"
                raise ValueError(f"is for another chip: block {number} has {what}, the board takes {names}")
            if length > _BLOCK - 36 or index >= total or totals.setdefault(family, total) != total:
                raise ValueError(f"is damaged: block {number} says it is {index} of {total}, with {length} bytes")
            seen.setdefault(family, set()).add(index)
    for family, total in totals.items():
        if len(seen[family]) != total:
            raise ValueError(f"is incomplete: {len(seen[family])} of {total} blocks")
    return size // _BLOCK
