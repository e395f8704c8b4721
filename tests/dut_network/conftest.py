# SPDX-License-Identifier: Apache-2.0
"""The namespaces of a DUT network, and benches for the play."""

from __future__ import annotations

import os
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
from dut_lab import MAC, Lab, run


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("JUMPSTARTER_HOST", "")
    monkeypatch.setenv("JMP_DRIVERS_ALLOW", "")
    made = Lab(f"jd{os.getpid()}", tmp_path)
    spaces = [f"{made.name}-{where}" for where in ("host", "dut", "world")]
    try:
        for space in spaces:
            run("ip", "netns", "add", space)
            run("ip", "-n", space, "link", "set", "lo", "up")
        host, dut, world = spaces
        run("ip", "-n", host, "link", "add", "dut0", "type", "veth", "peer", "name", "eth0", "netns", dut)
        run("ip", "-n", host, "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", world)
        run("ip", "-n", dut, "link", "set", "eth0", "address", MAC, "up")
        run("ip", "-n", world, "addr", "add", "203.0.113.1/24", "dev", "eth0")
        run("ip", "-n", world, "link", "set", "eth0", "up")
        run("ip", "-n", host, "addr", "add", "203.0.113.2/24", "dev", "up0")
        run("ip", "-n", host, "link", "set", "up0", "up")
        run("ip", "-n", host, "route", "add", "default", "via", "203.0.113.1")
        run("ip", "netns", "exec", host, "nft", "add", "table", "ip", "of_somebody_else")
        yield made
    finally:
        for space in spaces:
            for pid in run("ip", "netns", "pids", space, check=False).split():
                os.kill(int(pid), 9)
            run("ip", "netns", "del", space, check=False)


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
