# SPDX-License-Identifier: Apache-2.0
"""A lab with a controller that keeps its address over restarts, and homes that are nobody's."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "controller")]

from exporter_harness import Place  # noqa: E402 (the path comes first)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for name in ("run", "state", "home"):
        (tmp_path / name).mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    # As `jmp run` logs; and what a failing test then shows.
    logger = logging.getLogger("jumpstarter")
    before = logger.level
    logger.setLevel(logging.DEBUG)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    yield Place.make(tmp_path)
    logger.setLevel(before)
