# SPDX-License-Identifier: Apache-2.0
"""Where programs put their sockets: private, and short enough for the system."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path

import pytest

from jumpstarter.common.runtime import runtime_directory


def test_it_is_private_below_the_users_own_and_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    # Short, and of this test alone: another run of the tests may be under way.
    with tempfile.TemporaryDirectory(prefix="jl-", dir="/tmp") as base:
        monkeypatch.setenv("XDG_RUNTIME_DIR", base)
        with runtime_directory() as made:
            assert made.parent == Path(base)
            assert stat.S_IMODE(made.stat().st_mode) == 0o700
        assert not made.exists()


@pytest.mark.parametrize("base", ["long", "missing"])
def test_a_directory_that_leaves_no_room_for_a_sockets_name_or_is_not_there_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    given = tmp_path / ("x" * 90) if base == "long" else tmp_path / "missing"
    if base == "long":
        given.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(given))
    with runtime_directory() as made:
        assert given not in made.parents
        assert len(str(made / "exporter.sock")) <= 107
