# SPDX-License-Identifier: Apache-2.0
"""The commands in an environment of their own, and a certificate authority."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_harness import Authority, Cli


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    (tmp_path / "pki").mkdir()
    return Authority(tmp_path / "pki")
