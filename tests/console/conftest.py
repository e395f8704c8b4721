# SPDX-License-Identifier: Apache-2.0
"""Shared by the console tests: a way to run coroutines, and the image of the reference board."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def virt_arm64_image() -> Path:
    """Path of the reference board's disk image, built if need be."""
    script = Path(__file__).parents[2] / "images" / "virt_arm64.py"
    built = subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True)
    return Path(built.stdout.strip().splitlines()[-1].rpartition(" (")[0])


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for all tests of a module, so that they can share a booted board."""
    with asyncio.Runner() as shared:
        yield shared
