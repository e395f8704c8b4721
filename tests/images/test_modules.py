# SPDX-License-Identifier: Apache-2.0
"""Kernel modules are loaded after what they depend on, and a missing one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from labimages.errors import BuildError
from labimages.modules import load_order


def _module(directory: Path, name: str, needs: str) -> None:
    (directory / f"{name}.ko").write_bytes(b"\x7fELF\0license=GPL\0depends=" + needs.encode() + b"\0name=x\0")


def test_dependencies_come_first_and_once(tmp_path: Path) -> None:
    _module(tmp_path, "virtio", "virtio_ring")
    _module(tmp_path, "virtio_ring", "")
    _module(tmp_path, "virtio_blk", "virtio,virtio_ring")
    _module(tmp_path, "virtio-rng", "virtio")  # a dash in the file name is an underscore everywhere else
    names = [path.name for path in load_order(tmp_path, ["virtio_blk", "virtio_rng"])]
    assert names == ["virtio_ring.ko", "virtio.ko", "virtio_blk.ko", "virtio-rng.ko"]


def test_a_missing_module_is_named_unless_the_kernel_has_it(tmp_path: Path) -> None:
    _module(tmp_path, "a", "b")
    with pytest.raises(BuildError, match="kernel module b is not there"):
        load_order(tmp_path, ["a"])
    assert [path.name for path in load_order(tmp_path, ["a"], builtin=["b"])] == ["a.ko"]
