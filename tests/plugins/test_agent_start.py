# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the agent of a run lives, and that a start that fails leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playing import Stage, processes_of, remove_runtime

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


def test_failed_start_leaves_nothing(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage("dut1")
    stage.fake_agent({"start": "fail"})
    result = stage.run([TASK]).result("dut1")
    assert "the fake agent does not want to start" in result["msg"]
    assert os.listdir(stage.runtime / "jumpstarter-lab") == []


_HANGING = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from playing import Stage, processes_of, remove_runtime
folder = Path(sys.argv[2])
(folder / "board.yaml").write_text("")
stage = Stage(folder, {"dut1": {"jumpstarter_exporter_config": "board.yaml"}})
stage.fake_agent({"power": [{"event": "note", "data": {"text": "at work"}}, {"hang": True}]})
tasks = [{"name": "Hang", "jumpstarter.lab.power": {}}]
process = stage.start(stage.write([{"hosts": "duts", "gather_facts": False, "tasks": tasks}]))
for line in process.stdout:
    if "at work" in line:
        print(stage.runtime, flush=True)
        os.kill(os.getpid(), 9)
"""


def test_a_run_dies_with_a_test_process_that_is_killed(tmp_path: Path) -> None:
    """What a test run that is cut short leaves behind would wait for ever."""
    command = [sys.executable, "-c", _HANGING, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    runtime = Path(done.stdout.strip())
    deadline = time.monotonic() + 60
    while processes_of(runtime) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert processes_of(runtime) == {}
    remove_runtime(runtime)
