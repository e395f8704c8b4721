# SPDX-License-Identifier: GPL-3.0-or-later
"""Stages for plays against the real agent and real exporters."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "plugins"))
sys.path.insert(0, str(Path(__file__).parents[1] / "controller"))
sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
sys.path.insert(0, str(Path(__file__).parents[1] / "power"))
sys.path.insert(0, str(Path(__file__).parents[1] / "snmp"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tasmota"))

from benches import Bench, board_config, build_image
from labs import Lab

EMULATED = {"arm64", "arm64_image", "x86_image"}


def pytest_configure(config: pytest.Config) -> None:
    """Marks of this folder."""
    config.addinivalue_line("markers", "lab_settings(**settings): settings of the controller of the fixture `lab`")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what boots an emulated board: with -m "not qemu" the rest, which is quick, can be had alone."""
    if EMULATED & set(getattr(item, "fixturenames", ())):
        item.add_marker("qemu")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Makes benches; at the end of the test nothing of them may be left."""
    made: list[Bench] = []

    def make(hosts: dict[str, dict[str, Any]], **variables: Any) -> Bench:
        folder = tmp_path / f"bench{len(made)}"
        folder.mkdir()
        made.append(Bench(folder, hosts, **variables))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def lab(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A running controller without exporters, with the settings of a mark `lab_settings`; all of it ends here."""
    mark = request.node.get_closest_marker("lab_settings")
    made = Lab.start(tmp_path / "lab", **(mark.kwargs if mark is not None else {}))
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


@pytest.fixture
def arm64(bench: Callable[..., Bench]) -> Bench:
    """An emulated arm64 board with an empty disk."""
    made = bench({"virt-arm64": {"jumpstarter_exporter_config": "virt-arm64.yaml"}})
    board_config(made, "virt-arm64")
    return made
