# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands of the shell driver from a play, and under `j` with their exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benches import Bench

TOOLS = {
    "tools": {
        "type": "jumpstarter_driver_shell.driver.Shell",
        "config": {"methods": {"say": 'echo "$1 $WORD"; exit $2'}, "allow_env": ["WORD"]},
    }
}


def test_a_play_gets_output_and_status(bench: Callable[..., Bench]) -> None:
    made = bench({"dut": {"jumpstarter_exporter_config": "dut.yaml"}})
    made.config("dut", TOOLS)
    call: dict[str, Any] = {"driver": "tools", "method": "run_method", "args": ["say", ["hello", "3"], {"WORD": "you"}]}
    played = made.run([{"name": "Say", "jumpstarter.lab.call": call}])
    assert played.rc == 0, played.output
    assert played.result("dut")["value"] == {"rc": 3, "stdout": "hello you\n", "stderr": "", "truncated": False}
    made.wait_gone()


def test_j_passes_the_exit_status_on(tmp_path: Path) -> None:
    import yaml

    config = tmp_path / "dut.yaml"
    head = {"apiVersion": "jumpstarter.dev/v1alpha1", "kind": "ExporterConfig", "metadata": {"name": "dut"}}
    config.write_text(yaml.safe_dump({**head, "export": TOOLS}))
    binaries = Path(sys.executable).parent
    command = [binaries / "jmp", "shell", "--exporter-config", config, "--"]
    command += ["sh", "-c", "j tools say -e WORD=there hello 7; echo status $?"]
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.stdout == "hello there\nstatus 7\n", done.stderr
