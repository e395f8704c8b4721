# SPDX-License-Identifier: Apache-2.0
"""Kernel modules and what they need, read from the .ko files themselves (no kmod, any architecture)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import BuildError

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def _index(directory: Path) -> dict[str, Path]:
    return {path.stem.replace("-", "_"): path for path in directory.rglob("*.ko")}


def _needs(module: Path) -> list[str]:
    found = _DEPENDS.search(module.read_bytes())
    if found is None:
        raise BuildError(f"{module}: holds no list of dependencies; is it a kernel module?")
    return [name.replace("-", "_") for name in found.group(1).decode().split(",") if name]


def load_order(directory: Path, wanted: Iterable[str], *, builtin: Sequence[str] = ()) -> list[Path]:
    """Files of the *wanted* modules and of all they depend on, in an order in which insmod can load them.

    directory: /lib/modules/VERSION of the kernel; builtin: names that may be missing because the kernel holds them.
    """
    index = _index(directory)
    order: list[Path] = []

    def visit(name: str) -> None:
        path = index.get(name)
        if path is None:
            if name in builtin:
                return
            raise BuildError(f"{directory}: kernel module {name} is not there")
        if path in order:
            return
        for need in _needs(path):
            visit(need)
        order.append(path)

    for name in wanted:
        visit(name.replace("-", "_"))
    return order
