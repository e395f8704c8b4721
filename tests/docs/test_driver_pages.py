# SPDX-License-Identifier: Apache-2.0
"""The pages of docs/drivers: every driver has one, and what stands there is valid as written."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from jumpstarter.common.importlib import import_class
from jumpstarter.common.utils import serve
from jumpstarter.config.exporter import ExporterConfigV1Alpha1
from jumpstarter.driver import Driver

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import driver_pages  # noqa: E402
import reference  # noqa: E402

PAGES = sorted(path.name for path in driver_pages.PAGES.glob("*.md") if path.name != driver_pages.INDEX)
_FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What a page's configuration expects in the exporter's environment.
ENVIRONMENT = {"CORELLIUM_API_HOST": "corellium.example.org", "CORELLIUM_API_TOKEN": "not-a-token"}
HEAD = {"apiVersion": "jumpstarter.dev/v1alpha1", "kind": "ExporterConfig", "endpoint": "", "token": ""}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def _blocks(page: str, language: str) -> list[str]:
    text = (driver_pages.PAGES / page).read_text()
    return [body for kind, body in _FENCE.findall(text) if kind == language]


def _exporters(page: str) -> list[dict[str, Any]]:
    """The page's exporter configurations; what they leave out of the head is filled in."""
    found = []
    for body in _blocks(page, "yaml"):
        loaded = yaml.safe_load(body)
        if isinstance(loaded, dict) and "export" in loaded:
            found.append(HEAD | {"metadata": {"namespace": "default", "name": "bench"}} | loaded)
    return found


def _config(document: dict[str, Any]) -> ExporterConfigV1Alpha1:
    return ExporterConfigV1Alpha1.model_validate(document)


def _own_name(path: str) -> str:
    """The path of a class where it is defined: pages and configurations may name it by where it is imported."""
    module, _, name = path.rpartition(".")
    cls = getattr(import_module(module), name)
    return f"{cls.__module__}.{cls.__qualname__}"


def test_every_driver_is_on_one_page_and_no_page_names_another() -> None:
    known = {f"{cls.__module__}.{cls.__qualname__}" for cls in reference._driver_classes()}
    there = {name for name in known if ".driver." in name}  # the others are children that their parents make
    told = Counter(_own_name(entry.type) for entry in driver_pages.entries())
    assert not there - set(told), f"no page in docs/drivers: {sorted(there - set(told))}"
    others = {name for name in set(told) - known if issubclass(import_class(name, unsafe=True), Driver)}
    assert not others, f"no driver of this repository: {sorted(others)}"
    assert not [name for name, count in told.items() if count > 1]


def test_the_tests_extras_and_actions_of_the_table_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for entry in driver_pages.entries():
        for test in entry.tests:
            assert (ROOT / test).is_file(), f"{entry.page}: {entry.type}: no test {test}"
        assert entry.extra == "none" or entry.extra in extras, f"{entry.page}: {entry.type}: no extra {entry.extra}"
        action = entry.action.removeprefix("jumpstarter.lab.")
        assert (ROOT / "plugins" / "modules" / f"{action}.py").is_file(), f"{entry.page}: no action {entry.action}"


@pytest.mark.parametrize("page", PAGES)
def test_the_configurations_of_a_page_are_valid_and_name_its_drivers(page: str) -> None:
    named = set()
    for document in _exporters(page):
        driver = _config(document).instantiate()
        try:
            named |= {f"{type(it).__module__}.{type(it).__qualname__}" for it in _walk(driver)}
        finally:
            driver.close()
    told = {_own_name(item["type"]) for item in driver_pages.front_matter(driver_pages.PAGES / page)["drivers"]}
    # What works on top of drivers has a row of the table too, but nothing to configure.
    told = {name for name in told if issubclass(import_class(name, unsafe=True), Driver)}
    assert told <= named, f"no configuration on the page has {sorted(told - named)}"


def _walk(driver: Driver) -> Iterator[Driver]:
    # Not enumerate(): that shows an alias as its target.
    yield driver
    for child in driver.children.values():
        yield from _walk(child)


@pytest.mark.parametrize("page", PAGES)
def test_the_tasks_of_a_page_use_options_that_exist(page: str) -> None:
    for body in _blocks(page, "yaml"):
        loaded = yaml.safe_load(body)
        for task in loaded if isinstance(loaded, list) else []:
            for action in (key for key in task if key.startswith("jumpstarter.lab.")):
                path = ROOT / "plugins" / "modules" / f"{action.removeprefix('jumpstarter.lab.')}.py"
                assert path.is_file(), f"{page}: no action {action}"
                documented = yaml.safe_load(reference._documentation(path)["DOCUMENTATION"])
                reference._merge_fragments(documented)
                unknown = set(task[action] or {}) - set(documented["options"])
                assert not unknown, f"{page}: {action} has no {sorted(unknown)}"


@pytest.mark.parametrize("page", PAGES)
def test_the_j_commands_of_a_page_exist(page: str) -> None:
    lines = [
        line.removeprefix("$ ")
        for body in _blocks(page, "console")
        for line in body.replace("\\\n", " ").splitlines()
        if line.startswith("$ j ")
    ]
    if not lines:
        return
    problems: dict[str, str] = {}
    for document in _exporters(page):
        with serve(_config(document).instantiate()) as client:
            for line in lines:
                try:
                    _parse(client.cli(), shlex.split(line.split("|")[0].split(" > ")[0].split(" < ")[0], comments=True))
                except click.UsageError as error:
                    problems.setdefault(line, error.format_message())
                else:
                    problems[line] = ""
    assert not {line: why for line, why in problems.items() if why}
    assert set(problems) == set(lines)


def _parse(command: click.Command, words: list[str]) -> None:
    """Follow a command line down its groups, without running it. Raises UsageError."""
    name, arguments, parent = words[0], words[1:], None
    while True:
        # Arguments may be files of the reader's.
        for parameter in command.params:
            if isinstance(parameter.type, click.Path):
                parameter.type = click.Path()
        context = command.make_context(name, arguments, parent=parent)
        if not isinstance(command, click.Group):
            return
        rest = [*context._protected_args, *context.args]
        found, inner, arguments = command.resolve_command(context, rest)
        assert found is not None and inner is not None
        name, command, parent = found, inner, context
