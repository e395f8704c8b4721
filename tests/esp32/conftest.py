# SPDX-License-Identifier: Apache-2.0
"""The fake chip, on a pseudo terminal (fast) and behind an RFC 2217 server (with modem lines)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_esp32 import FakeEsp32Board, FakeEsp32OnPty


@pytest.fixture
def pty_board(tmp_path: Path) -> Iterator[FakeEsp32OnPty]:
    made = FakeEsp32OnPty(str(tmp_path / "ttyESP"))
    yield made
    made.close()


@pytest.fixture
def net_board() -> Iterator[FakeEsp32Board]:
    made = FakeEsp32Board()
    yield made
    made.close()
