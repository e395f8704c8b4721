# SPDX-License-Identifier: GPL-3.0-or-later
"""What an action takes is what its documentation says it takes, and the documented examples are valid."""

from __future__ import annotations

import functools
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

ROOT = Path(__file__).resolve().parents[2]
ACTIONS = sorted(path.stem for path in (ROOT / "plugins" / "action").glob("[a-z]*.py"))
COLLECTION = "ansible_collections.jumpstarter.lab.plugins"
# Documentation-only keys, and keys documentation has no word for.
_SPEC_ONLY = {"no_log"}
_DOC_ONLY = {"description", "version_added"}


@functools.cache
def all_documentation() -> dict[str, Any]:
    """What ansible-doc makes of our modules, fragments merged: the same thing a user reads."""
    names = [f"jumpstarter.lab.{name}" for name in ACTIONS]
    command = [sys.executable, "-m", "ansible", "doc", "--json", *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def documentation(name: str) -> dict[str, Any]:
    found: dict[str, Any] = all_documentation()[f"jumpstarter.lab.{name}"]
    return found


def action(name: str) -> Any:
    return importlib.import_module(f"{COLLECTION}.action.{name}").ActionModule


def comparable_spec(spec: dict[str, Any]) -> dict[str, Any]:
    result = {}
    for name, option in spec.items():
        entry = {key: value for key, value in option.items() if key not in _SPEC_ONLY | {"options"}}
        if entry.get("required") is False:
            del entry["required"]
        if "options" in option:
            entry["options"] = comparable_spec(option["options"])
        result[name] = entry
    return result


def comparable_docs(options: dict[str, Any]) -> dict[str, Any]:
    result = {}
    for name, option in options.items():
        entry = {key: value for key, value in option.items() if key not in _DOC_ONLY | {"suboptions"}}
        if "suboptions" in option:
            entry["options"] = comparable_docs(option["suboptions"])
        result[name] = entry
    return result


def test_every_action_has_a_module_and_every_module_an_action() -> None:
    modules = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("[a-z]*.py"))
    assert modules == ACTIONS


def test_every_action_is_in_the_action_group() -> None:
    runtime = yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text())
    assert sorted(runtime["action_groups"]["lab"]) == ACTIONS


@pytest.mark.parametrize("name", ACTIONS)
def test_spec_and_documentation_are_the_same(name: str) -> None:
    assert comparable_spec(action(name).SPEC) == comparable_docs(documentation(name)["doc"].get("options", {}))


@pytest.mark.parametrize("name", ACTIONS)
def test_examples_are_named_tasks_that_the_specs_accept(name: str) -> None:
    tasks = yaml.safe_load(documentation(name)["examples"])
    assert any(f"jumpstarter.lab.{name}" in task for task in tasks)
    for task in tasks:
        assert task["name"][0].isupper()
        for key, arguments in task.items():
            if not key.startswith("jumpstarter.lab."):
                continue
            cls = action(key.rpartition(".")[2])
            assert ArgumentSpecValidator(cls.SPEC, **cls.RULES).validate(arguments or {}).error_messages == []


@pytest.mark.parametrize("name", ACTIONS)
def test_returned_values_are_documented_with_type_and_moment(name: str) -> None:
    values = documentation(name)["return"]
    assert values
    for value in values.values():
        assert {"description", "returned", "type"} <= set(value)


@pytest.mark.parametrize("name", ACTIONS)
def test_attributes_say_check_mode_diff_and_idempotence(name: str) -> None:
    attributes = documentation(name)["doc"]["attributes"]
    assert {"check_mode", "diff_mode", "idempotent", "async", "delegation", "action_group"} <= set(attributes)
    for attribute in attributes.values():
        assert attribute["support"] in {"full", "partial", "none", "N/A"}


@pytest.mark.parametrize("name", ACTIONS)
def test_durations_are_documented_options(name: str) -> None:
    cls = action(name)
    assert set(cls.DURATIONS) <= set(cls.SPEC)


def test_actions_stay_thin() -> None:
    long = {
        name: n for name in ACTIONS if (n := len((ROOT / f"plugins/action/{name}.py").read_text().splitlines())) > 80
    }
    assert not long
