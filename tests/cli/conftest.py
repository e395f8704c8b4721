# SPDX-License-Identifier: Apache-2.0
"""The commands in an environment of their own, a certificate authority, and a lab with a controller process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "controller"))

from cli_harness import Authority, Cli
from controller_harness import LabFiles


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    (tmp_path / "pki").mkdir()
    return Authority(tmp_path / "pki")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabFiles]:
    """A controller process for the tests of a module, each of which brings its own names."""
    settings = {"deprecatedLabels": {"keys": {"old": "use board"}}, "hiddenLabels": {"keys": ["shelf"]}}
    files = LabFiles.make(tmp_path_factory.mktemp("cli") / "lab", **settings)
    with files.serving():
        yield files


@pytest.fixture(scope="module")
def root(lab: LabFiles) -> Path:
    """The configuration of an administrator."""
    return lab.client("root", "--admin")
