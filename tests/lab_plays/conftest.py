# SPDX-License-Identifier: GPL-3.0-or-later
"""Plays against a lab: its controller, its exporters, and an administrator's configuration."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "controller"))
sys.path.insert(0, str(Path(__file__).parents[1] / "plugins"))

from controller_harness import LabFiles
from lab_stage import PlayedLab
from playing import Stage, remove_runtime


@pytest.fixture
def played_lab(tmp_path: Path) -> Iterator[PlayedLab]:
    """A controller and an empty lab; plays on localhost use the administrator's configuration."""
    files = LabFiles.make(tmp_path / "lab")
    folder = tmp_path / "stage"
    folder.mkdir()
    with files.serving():
        admin = files.client("admin", "--admin")
        local = {"ansible_connection": "local", "jumpstarter_client_config": str(admin)}
        stage = Stage(folder, {"localhost": local})
        try:
            yield PlayedLab(files, admin, stage)
        finally:
            remove_runtime(stage.runtime)
