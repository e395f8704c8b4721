# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a private base directory, an agent in it, and hosts with a real exporter behind each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agent_harness import Board, RunningAgent, agent_base


@pytest.fixture
def base() -> Iterator[Path]:
    with agent_base() as path:
        yield path


@pytest.fixture
def start_agent(base: Path) -> Iterator[Callable[[], RunningAgent]]:
    agents: list[RunningAgent] = []

    def start() -> RunningAgent:
        agents.append(RunningAgent(base))
        return agents[-1]

    yield start
    for agent in agents:
        agent.close()


@pytest.fixture
def agent(start_agent: Callable[[], RunningAgent]) -> RunningAgent:
    return start_agent()


@pytest.fixture
def make_board(tmp_path: Path) -> Callable[[str], Board]:
    return lambda name: Board(tmp_path, name)


@pytest.fixture
def board(make_board: Callable[[str], Board]) -> Board:
    return make_board("board-1")
