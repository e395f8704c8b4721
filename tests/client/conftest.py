# SPDX-License-Identifier: Apache-2.0
"""A lab for each test that asks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "controller"))

from controller_harness import LabFiles


@pytest.fixture
def lab(tmp_path: Path) -> LabFiles:
    return LabFiles.make(tmp_path / "lab")
