# SPDX-License-Identifier: Apache-2.0
"""sshd for the tests of the ssh driver."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
sys.path.insert(0, str(Path(__file__).parents[1] / "plugins"))
sys.path.insert(0, str(Path(__file__).parents[1] / "controller"))

from benches import Bench
from ssh_server import SshServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    folder = tmp_path / "sshd"
    folder.mkdir()
    made = SshServer(folder)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def no_keys_of_this_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only what the driver gives may open the door."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


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
