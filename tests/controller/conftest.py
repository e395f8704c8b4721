# SPDX-License-Identifier: Apache-2.0
"""A controller with its own authority and database, for each test that asks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from controller_harness import LabFiles


@pytest.fixture
def lab(tmp_path: Path) -> LabFiles:
    return LabFiles.make(tmp_path / "lab")
