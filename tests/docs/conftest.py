# SPDX-License-Identifier: Apache-2.0
"""Readers of the guides, and what the guides presume to be there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "storage"))
sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
sys.path.insert(0, str(Path(__file__).parents[1] / "plugins"))
sys.path.insert(0, str(Path(__file__).parents[1] / "controller"))
sys.path.insert(0, str(Path(__file__).parents[1] / "lab_plays"))
sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))

from benches import build_image
from guide_board import Board
from guide_pages import Reader


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Callable[..., Reader]]:
    """Makes a reader with a directory of its own: ``reader(replace={"/dev/x": "/dev/y"})``."""
    made: list[Reader] = []

    def make(**options: dict[str, str]) -> Reader:
        directory = tmp_path / f"reader{len(made)}"
        directory.mkdir()
        made.append(Reader(directory, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    """A board on a serial port, which boots to a shell when it is switched on."""
    made = Board(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="session")
def arm64_image() -> Path:
    """The image of the board virt-arm64."""
    return build_image("virt_arm64")


@pytest.fixture(scope="session")
def x86_image() -> Path:
    """The image of the board virt-x86."""
    return build_image("virt_x86")
