# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing of the collection makes Ansible warn: no deprecated call, no doubtful documentation, on whichever core."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playing import Stage

ROOT = Path(__file__).resolve().parents[2]
EXECUTED = {"result": {"rc": 0, "stdout_b64": "aGkK", "stderr_b64": ""}}
# What the actions cannot do without; the others have a default for everything.
OPTIONS: dict[str, dict[str, Any]] = {
    "access_policy": {"name": "nightly", "rules": [{"priority": 1}]},
    "call": {"driver": "power", "method": "status"},
    "can": {"send": ["123#00"]},
    "client": {"name": "ci", "state": "absent"},
    "console": {"action": "send", "send": "x"},
    "copy_from": {"src": "/etc/hostname", "dest": "here"},
    "copy_to": {"src": "image.img", "dest": "/tmp/image"},
    "exporter": {"name": "virt-1", "state": "absent"},
    "flash": {"src": "image.img"},
    "forward": {"driver": "ssh"},
    "operation": {"id": "op-1"},
    "storage": {"state": "status"},
    "uboot": {"commands": ["version"]},
}
ACTIONS = sorted(path.stem for path in (ROOT / "plugins" / "action").glob("[a-z]*.py"))
DOCUMENTED = [
    (kind, path.stem)
    for kind, folder in (("module", "modules"), ("connection", "connection"), ("callback", "callback"))
    for path in sorted((ROOT / "plugins" / folder).glob("[a-z]*.py"))
]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    (tmp_path / "board.yaml").write_text("a: board\n")
    (tmp_path / "image.img").write_bytes(b"image")
    stage = Stage(tmp_path, {"dut1": {"jumpstarter_exporter_config": "board.yaml"}})
    stage.env["ANSIBLE_DEPRECATION_WARNINGS"] = "1"
    yield stage
    stage.close()


def warnings(text: str) -> list[str]:
    return [line for line in text.splitlines() if "WARNING" in line or "DEPRECAT" in line.upper()]


@pytest.mark.parametrize("options", [[], ["--check", "--diff"]], ids=["run", "check"])
def test_actions_connection_and_callback_cause_no_warning(stage: Stage, options: list[str]) -> None:
    facts = {"ansible_host": "dut1.lab", "board": "virt"}
    stage.fake_agent({"lease": [{"result": {"changed": True, "ansible_facts": facts}}], "console_exec": [EXECUTED] * 2})
    tasks: list[dict[str, Any]] = [
        {"name": f"Do {name}", f"jumpstarter.lab.{name}": OPTIONS.get(name, {})} for name in ACTIONS
    ]
    tasks.append({"name": "Say", "ansible.builtin.raw": "hi"})
    played = stage.run(tasks, *options, callbacks="jumpstarter.lab.recording")
    assert played.rc == 0, played.output
    assert "Report: " in played.output
    assert warnings(played.output) == []


def test_failing_task_causes_no_warning(stage: Stage) -> None:
    stage.fake_agent({"boot": [{"error": {"code": "timeout", "message": "dut1: boot: no shell", "data": {}}}]})
    played = stage.run([{"name": "Boot", "jumpstarter.lab.boot": {}}], callbacks="jumpstarter.lab.recording")
    assert played.rc == 2
    assert warnings(played.output) == []


@pytest.mark.parametrize("kind", sorted({kind for kind, _name in DOCUMENTED}))
def test_documentation_is_shown_without_a_word_on_stderr(kind: str, tmp_path: Path) -> None:
    names = [f"jumpstarter.lab.{name}" for one, name in DOCUMENTED if one == kind]
    env = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    env |= {"ANSIBLE_HOME": str(tmp_path), "ANSIBLE_LOCAL_TEMP": str(tmp_path / "tmp"), "PAGER": "cat"}
    command = [sys.executable, "-m", "ansible", "doc", "--type", kind]
    text = subprocess.run([*command, *names], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (text.returncode, text.stderr) == (0, "")
    assert all(name.upper() in text.stdout.upper() for name in names)
    structured = subprocess.run([*command, "--json", *names], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert structured.stderr == ""
    assert set(json.loads(structured.stdout)) == set(names)
