# SPDX-License-Identifier: Apache-2.0
"""The original's environment, a lab, and what other areas' tests have for both."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "controller"))
sys.path.insert(0, str(Path(__file__).parents[1] / "plugins"))
sys.path.insert(0, str(Path(__file__).parents[1] / "lab_plays"))

from controller_harness import LabFiles
from original_exporters import original_commands


@pytest.fixture
def lab(tmp_path: Path) -> LabFiles:
    """The files of a lab, on SQLite: both databases speak the same wire."""
    return LabFiles.make(tmp_path / "lab")


@pytest.fixture(scope="session")
def original() -> Path:
    """Folder of the original's commands, in a virtual environment of its own."""
    return original_commands()
