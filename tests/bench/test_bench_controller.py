# SPDX-License-Identifier: Apache-2.0
"""`make bench-controller` measures what it says, on both databases, and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_the_controller_bench_gives_every_row_of_its_table(tmp_path: Path, database: str) -> None:
    out = tmp_path / "rows.json"
    argv = [sys.executable, ROOT / "bench" / "controller.py", "--quick", "--only", database, "--out", out]
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text())
    assert {row["database"] for row in rows} == {database}
    assert {row["exporters"] for row in rows} == {1, 3}
    assert all(row["value"] >= 0 for row in rows if "memory" not in row["row"])
    names = {row["row"] for row in rows}
    for what in (
        "acquire, p50",
        "acquire, p99",
        "leases taken and given back, 8 clients",
        "controller memory (PSS) per exporter more",
        "dial to first byte back, p50",
        "tunnel over bare relay, TLS, up",
        "tunnel over bare relay, TLS, down",
    ):
        assert what in names, sorted(names)
    targets = {row["row"]: row["target"] for row in rows if row["target"]}
    assert targets["acquire, p50"] == "< 50 ms"
    assert targets["controller memory (PSS) per exporter more"] == "<= 100 KiB"
    assert targets["tunnel over bare relay, TLS, up"] == ">= 0.8 x"
    ended = {row["ended"] for row in rows if row["row"] == "acquire, p50"}
    assert ended == {0, 20}
    assert "3 online, 20 ended" in done.stdout
