# SPDX-License-Identifier: Apache-2.0
"""A virtual machine with a screen."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "qemu"))

from conftest_qemu import board

from jumpstarter.common.utils import serve


@pytest.fixture(scope="module")
def machine() -> Iterator[Any]:
    """Client of a running machine whose firmware leaves the screen alone: QEMU shows a line of text of its own."""
    with serve(board(vnc=True)) as client:
        client.power.on()
        yield client
