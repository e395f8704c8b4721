# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the helpers of this folder importable whatever pytest's import mode is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from playing import Stage


@pytest.fixture
def make_stage(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    """Makes stages whose hosts have an exporter configuration each; whatever a test leaves running ends with it."""
    made: list[Stage] = []

    def make(*hosts: str) -> Stage:
        for host in hosts:
            (tmp_path / f"{host}.yaml").write_text("a: board\n")
        made.append(Stage(tmp_path, {host: {"jumpstarter_exporter_config": f"{host}.yaml"} for host in hosts}))
        return made[-1]

    yield make
    for stage in made:
        stage.close()
