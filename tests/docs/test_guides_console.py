# SPDX-License-Identifier: Apache-2.0
"""The guides about console and ssh do what they say, with a real U-Boot and a real Linux."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from guide_pages import ROOT, Reader


@pytest.mark.timeout(900)
def test_console_and_boot(reader: Callable[..., Reader], arm64_image: Path) -> None:
    made = reader(replace={"~/jumpstarter.lab": str(ROOT)})
    assert arm64_image == ROOT / "build" / "images" / "virt-arm64.img"
    made.read("console-and-boot.md")


@pytest.mark.timeout(1200)
def test_ssh(reader: Callable[..., Reader], x86_image: Path) -> None:
    made = reader(replace={"~/jumpstarter.lab": str(ROOT)})
    assert x86_image == ROOT / "build" / "images" / "virt-x86.img"
    made.read("ssh.md")
