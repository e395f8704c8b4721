# SPDX-License-Identifier: Apache-2.0
"""The fake board."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_pico import FakePico


@pytest.fixture
def pico(tmp_path: Path) -> Iterator[FakePico]:
    made = FakePico(tmp_path / "RPI RP2")
    yield made
    made.close()
