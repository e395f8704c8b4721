# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the agent of a run lives, and that a start that fails leaves nothing."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from playing import Stage

from ansible_collections.jumpstarter.lab.plugins.plugin_utils import _spawn

# The longest socket below the folder of all runs: "/r-<16 hex>/f-<8 hex>-<number>.sock".
LONGEST_SOCKET = "/r-" + 16 * "0" + "/f-" + 8 * "0" + "-9999.sock"
TASK: dict[str, Any] = {"name": "Do it", "jumpstarter.lab.power": {}}


@pytest.mark.parametrize("length", [20, 50, 51, 52, 60, 90, 120])
@pytest.mark.parametrize("variable", ["XDG_RUNTIME_DIR", "TMPDIR"])
def test_every_socket_has_a_path_the_system_takes(variable: str, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="jl-", dir="/tmp") as short:
        deep = Path(short) / ("d" * (length - len(short) - 1))
        deep.mkdir()
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        monkeypatch.setattr(tempfile, "tempdir", str(deep) if variable == "TMPDIR" else "/tmp")
        if variable == "XDG_RUNTIME_DIR":
            monkeypatch.setenv(variable, str(deep))
        base = _spawn.base_dir()
        assert len(os.fsencode(base + LONGEST_SOCKET)) <= 107
        assert base.startswith(str(deep)) or length > 45


def test_failed_start_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "board.yaml").write_text("a: board\n")
    stage = Stage(tmp_path, {"dut1": {"jumpstarter_exporter_config": "board.yaml"}})
    stage.fake_agent({"start": "fail"})
    result = stage.run([TASK]).result("dut1")
    assert "the fake agent does not want to start" in result["msg"]
    assert os.listdir(stage.runtime / "jumpstarter-lab") == []
